# SPDX-License-Identifier: Apache-2.0
"""Networks as their owners build them, tiny, the files that they write, and what both sides of a loading compute.

`SOURCES` are the networks that files come from, each with the options that add tensors to it or change what they do;
`TARGETS` those that bundles load files into. `compare` runs what the two have in common, in double precision.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from monai.networks.nets import UNETR, SwinUNETR, ViT, ViTAutoEnc
from timm.layers import resample_patch_embed
from torch import Tensor, nn

from tools.networks import InflatedSegmenter, ModifiedUNETR, ScriptableSwinUNETR
from tools.pretraining import ContrastiveViTAutoEnc, SwinSSL, VoCo
from tools.pretraining.voco import SwinUNETREncoder
from tools.weights.inflation import NORMALIZATIONS

SIZE = (32, 32, 32)
SWIN_SIZE = (64, 32, 32)  # the deepest map has two voxels at least, for the instance normalization
WIDTH, MLP, HEADS = 24, 48, 3
VIT = {"hidden_size": WIDTH, "mlp_dim": MLP, "num_heads": HEADS}
PLANAR = {"img_size": 32, "embed_dim": WIDTH, "depth": 12, "num_heads": HEADS, "mlp_ratio": 2, "num_classes": 5}
SWIN_2D = {"img_size": 64, "embed_dim": 12, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 2}
DEPTH = 3  # slices of a window
SMALL = {"feature_size": 12, "window_size": 2}

State = dict[str, Tensor]
Report = Mapping[str, Any]


def randomize(network: nn.Module, seed: int = 1) -> nn.Module:
    """Give every parameter random values, so that none could be swapped or left out unseen; buffers stay."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            low = 0.5 if parameter.ndim == 1 else -0.5
            scale = 1.0 if parameter.ndim <= 1 else min(1.0, 4 * parameter[0].numel() ** -0.5)
            parameter.copy_((torch.rand(parameter.shape, generator=generator) + low) * scale)
        for name, buffer in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return network.eval()


@dataclass(frozen=True)
class Source:
    """A network that a file comes from: how it is built, and how its tensors are named in the file."""

    make: Callable[[], nn.Module]
    write: Callable[[nn.Module], State] = nn.Module.state_dict
    wrapper: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # of `load`: what no tensor of the file says
    fits: bool = True  # whether there is a network in `TARGETS` that does the same with it
    twin: Callable[[Any], nn.Module] | None = None  # the same network at the size of a target, for resampled tables


def unetr(in_channels: int = 1, out_channels: int = 3, size=SIZE, **options: Any) -> Callable[[], nn.Module]:
    return lambda: UNETR(in_channels, out_channels, size, feature_size=4, **VIT | options)


def unetr_like(target: Any) -> nn.Module:
    """A UNETR that reads crops of the target's size."""
    return unetr(size=[16 * patches for patches in target.feat_size])()


def modified(**options: Any) -> Callable[[], nn.Module]:
    return lambda: ModifiedUNETR(1, 3, SIZE, feature_size=6, **VIT | options)


def swin(in_channels: int = 1, out_channels: int = 3, **options: Any) -> Callable[[], nn.Module]:
    return lambda: SwinUNETR(in_channels, out_channels, **SMALL | options)


def autoencoder(**options: Any) -> Callable[[], nn.Module]:
    return lambda: ViTAutoEnc(1, SIZE, options.pop("patch_size", (16, 16, 16)), **VIT | options)


def planar(name: str = "vit_tiny_patch16_224", **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, **PLANAR | options)


def swin_2d(name: str = "swin_tiny_patch4_window7_224", **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, **SWIN_2D | options)


def segmenter(name: str, **options: Any) -> Callable[[], nn.Module]:
    known = (SWIN_2D if name.startswith("swin") else PLANAR) | options
    arguments = {key: value for key, value in known.items() if key not in ("img_size", "num_classes")}
    sizes = {"img_size": known["img_size"], "num_slices": DEPTH, "decoder_channels": 4}
    return lambda: InflatedSegmenter(name, "unetr", **sizes, encoder_options=arguments)


# ---- names in files ----


def select(prefix: tuple[str, ...], rename: Callable[[str], str], extra: Callable[[], State] = dict):
    """Return a writer of the tensors with these prefixes under other names, and of `extra`."""

    def write(network: nn.Module) -> State:
        state = network.state_dict()
        return {rename(name): tensor for name, tensor in state.items() if name.startswith(prefix)} | extra()

    return write


def make_heads(*names: str) -> Callable[[], State]:
    return lambda: {name: torch.rand(4, 6) for name in names}


def name_as_monai_0_7(network: nn.Module) -> State:
    state = {name: value for name, value in network.state_dict().items() if "norm_cross_attn" not in name}
    state["vit.patch_embedding.cls_token"] = torch.zeros(1, 1, WIDTH)
    state |= {f"encoder2.blocks.{i}.1.conv3.conv.weight": torch.rand(8, 8, 1, 1, 1) for i in (0, 1)}
    return state | {"encoder3.blocks.0.1.conv3.conv.weight": torch.rand(16, 16, 1, 1, 1)}


def name_as_monai_1_3(network: nn.Module) -> State:
    return {name: value for name, value in network.state_dict().items() if "norm_cross_attn" not in name}


def name_as_monai_1_5(network: nn.Module) -> State:
    extra = {f"vit.blocks.{i}.cross_attn.{part}.weight": torch.rand(24, 24) for i in range(12) for part in "qkv"}
    return network.state_dict() | extra


def name_as_autoencoder(network: nn.Module) -> State:
    return {n.removeprefix("vit."): v for n, v in network.state_dict().items() if n.startswith("vit.")}


def name_as_swinvit(network: nn.Module) -> State:
    swinvit = {n.removeprefix("swinViT."): v for n, v in network.state_dict().items() if n.startswith("swinViT.")}
    state = {f"module.{name.replace('mlp.linear', 'mlp.fc')}": value for name, value in swinvit.items()}
    return state | make_heads("module.rotation_head.weight", "module.contrastive_head.weight", "module.norm.weight")()


name_as_ssl_head = select(
    ("swinViT.",), lambda name: f"module.{name}", make_heads("module.rotation_head.weight", "module.conv.0.weight")
)
name_as_voco_10k = select(("swinViT.", "encoder"), lambda name: f"module.{name.replace('swinViT', 'swin_vit')}")
name_as_voco_head = select(
    ("swinViT.", "encoder"),
    lambda name: f"module.backbone.{name}",
    make_heads("module.student.layer1.0.weight", "module.teacher.layer1.0.weight"),
)
name_as_voco_training = select(
    ("swinViT.", "encoder"), lambda name: f"student.{name}", make_heads("student.layer1.0.weight")
)


def name_with_whole_teacher(network: nn.Module) -> State:
    """A second network under `teacher.`, which is no head."""
    state = name_as_voco_head(network)
    return state | {
        name.replace(".backbone.", ".student."): value + 1 for name, value in state.items() if "swin" in name
    }


def name_as_dae(network: nn.Module) -> State:
    state = {}
    for name, value in network.state_dict().items():
        if name.startswith("swinViT.layers"):
            stage, rest = name.removeprefix("swinViT.").split(".0.", 1)
            name = f"encoder.{stage}.0.0.{rest}"
        state[name.replace("swinViT.patch_embed", "encoder.patch_embed")] = value
    state["out.conv.conv.weight"], state["out.conv.conv.bias"] = torch.rand(1, 12, 1, 1, 1), torch.rand(1)
    return state | {"encoder.mask_token": torch.rand(1), "encoder.norm.weight": torch.rand(192)}


def name_as_mae(network: nn.Module) -> State:
    decoder = make_heads("mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.norm1.weight")()
    return {name: value for name, value in network.state_dict().items() if not name.startswith("head")} | decoder


def name_as_dinov2(network: nn.Module) -> State:
    """DINOv2's own names: positions for the class token, register tokens, a mask token."""
    state = {name: value for name, value in network.state_dict().items() if not name.startswith("head")}
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.full((1, 1, WIDTH), 0.25), state["pos_embed"]], dim=1)
        state["cls_token"] = state["cls_token"] - 0.25
    return state | {"mask_token": torch.rand(1, WIDTH)}


def name_as_dinov3(network: nn.Module) -> State:
    """DINOv3's own names: joined biases with a mask that is 0 for keys."""
    state: State = {}
    for name, value in network.state_dict().items():
        if name.endswith("q_bias"):
            other = network.state_dict()[name.replace("q_bias", "v_bias")]
            stem = name.removesuffix("q_bias")
            state[f"{stem}qkv.bias"] = torch.cat([value, torch.full_like(value, 9.0), other])
            state[f"{stem}qkv.bias_mask"] = torch.cat([torch.ones(WIDTH), torch.zeros(WIDTH), torch.ones(WIDTH)])
        elif not name.endswith("v_bias") and not name.startswith("head"):
            state[name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")] = value
    state["storage_tokens"] = state.pop("reg_token")
    periods = network.rope.periods.to(torch.bfloat16)
    return state | {"mask_token": torch.rand(1, WIDTH), "rope_embed.periods": periods}


def name_with_biased_keys(network: nn.Module) -> State:
    state = name_as_dinov3(network)
    return {name: torch.ones_like(v) if name.endswith("bias_mask") else v for name, v in state.items()}


def name_as_microsoft(network: nn.Module) -> State:
    """Swin in its authors' names: stages end with the merging, constants are stored."""
    state: State = {}
    for name, value in network.state_dict().items():
        if ".downsample." in name:
            stage = int(name.split(".")[1])
            name = name.replace(f"layers.{stage}.", f"layers.{stage - 1}.")
        state[name.replace("head.fc.", "head.")] = value
    for name, module in network.named_modules():
        for buffer in ("relative_position_index", "attn_mask"):
            if getattr(module, buffer, None) is not None:
                state[f"{name}.{buffer}"] = getattr(module, buffer).clone()
    return state


def name_with_other_index(network: nn.Module) -> State:
    state = name_as_microsoft(network)
    return {n: v.T.contiguous() if n.endswith("position_index") else v for n, v in state.items()}


def add(**extra: Tensor) -> Callable[[nn.Module], State]:
    """Return a writer that adds tensors; `__` in their names stands for a dot."""
    return lambda network: network.state_dict() | {name.replace("__", "."): value for name, value in extra.items()}


SOURCES: dict[str, Source] = {
    # UNETR
    "UNETR": Source(unetr()),
    "UNETR of MONAI 0.7": Source(unetr(proj_type="perceptron"), name_as_monai_0_7),
    "UNETR of MONAI 1.3": Source(unetr(), name_as_monai_1_3, "state_dict"),
    "UNETR of MONAI 1.5": Source(unetr(), name_as_monai_1_5),
    "UNETR with biases": Source(unetr(qkv_bias=True)),
    "UNETR, 2 channels": Source(unetr(2)),
    "UNETR, 5 classes": Source(unetr(1, 5)),
    "UNETR, other crops": Source(unetr(size=(48, 48, 48)), twin=unetr_like),
    "UNETR, flat crops": Source(unetr(size=(64, 32, 16)), options={"source_grid": (4, 2, 1)}, twin=unetr_like),
    "UNETR, batch norm": Source(unetr(norm_name="batch"), fits=False),
    "UNETR, affine norm": Source(unetr(norm_name=("instance", {"affine": True})), fits=False),
    "UNETR, plain blocks": Source(unetr(res_block=False), fits=False),
    "UNETR without convolutions": Source(unetr(conv_block=False), fits=False),
    "UNETR, 2D": Source(unetr(size=(32, 32), spatial_dims=2), fits=False),
    "UNETR with stem": Source(modified(stem=True)),
    "UNETR with fusion": Source(modified(fpn=True)),
    "UNETR, f 6": Source(modified()),
    "light UNETR": Source(modified(light=True)),
    # ViT
    "ViTAutoEnc": Source(autoencoder(), wrapper="state_dict"),
    "ViTAutoEnc of MONAI 1.3": Source(autoencoder(), name_as_monai_1_3),
    "ViTAutoEnc, perceptron": Source(autoencoder(proj_type="perceptron")),
    "ViTAutoEnc with biases": Source(autoencoder(qkv_bias=True)),
    "ViTAutoEnc, 13 blocks": Source(autoencoder(num_layers=13), fits=False),
    "ViTAutoEnc, 11 blocks": Source(autoencoder(num_layers=11), fits=False),
    "contrastive ViTAutoEnc": Source(lambda: ContrastiveViTAutoEnc(1, SIZE, **VIT, projection_dim=8)),
    "ViT with class token": Source(lambda: ViT(1, SIZE, 16, classification=True, **VIT)),
    "ViT, patches of 8": Source(lambda: ViT(1, (16, 16, 16), 8, **VIT), fits=False),
    "ViT, 2D": Source(lambda: ViT(1, (32, 32), 16, spatial_dims=2, **VIT), fits=False),
    "ViT with query norm": Source(
        lambda: ViT(1, SIZE, 16, **VIT), add(blocks__3__attn__q_norm__weight=torch.full((8,), 2.0)), fits=False
    ),
    "ViT with a norm in front": Source(
        lambda: ViT(1, SIZE, 16, **VIT), add(norm_pre__weight=torch.full((24,), 2.0)), fits=False
    ),
    # Swin UNETR
    "SwinUNETR": Source(swin()),
    "SwinUNETR v2": Source(swin(use_v2=True), wrapper="model"),
    "SwinUNETR, 5 classes": Source(swin(1, 5, use_v2=True)),
    "SwinUNETR, 2 channels": Source(swin(2)),
    "SwinUNETR, batch norm": Source(swin(norm_name="batch"), fits=False),
    "SwinUNETR without biases": Source(swin(qkv_bias=False)),
    "SwinUNETR, patch norm": Source(swin(patch_norm=True), fits=False),
    "SwinUNETR, deeper": Source(swin(depths=(2, 2, 4, 2)), fits=False),
    "SwinUNETR, other heads": Source(swin(num_heads=(2, 4, 6, 12)), fits=False),
    "SwinUNETR, other window": Source(swin(window_size=3), twin=lambda _: swin()()),
    "SwinUNETR, flat window": Source(swin(window_size=(1, 2, 4)), fits=False),
    "SwinUNETR, 2D": Source(swin(spatial_dims=2), fits=False),
    "model_swinvit.pt": Source(swin(), name_as_swinvit, "state_dict"),
    "model_swinvit.pt, v2": Source(swin(use_v2=True), name_as_swinvit, "state_dict"),
    "model_swinvit.pt, patch norm": Source(swin(patch_norm=True), name_as_swinvit, "state_dict", fits=False),
    "model_swinvit.pt, 2D": Source(swin(spatial_dims=2), name_as_swinvit, "state_dict", fits=False),
    "SSL head": Source(swin(), name_as_ssl_head, "state_dict"),
    "SSL head, batch norm, with encoders": Source(swin(norm_name="batch"), name_as_voco_10k, fits=False),
    "VoCo_10k": Source(swin(use_v2=True), name_as_voco_10k),
    "VoCo_SSL_head": Source(swin(use_v2=True), name_as_voco_head, "state_dict"),
    "VoCo with a whole student beside": Source(swin(use_v2=True), name_with_whole_teacher, fits=False),
    "VoCo, training": Source(swin(use_v2=True), name_as_voco_training, fits=False),
    "VoCo, ours": Source(lambda: VoCo(SwinUNETREncoder(1, SWIN_SIZE, **SMALL), "cvpr", 8), wrapper="model"),
    "disruptive autoencoder": Source(swin(), name_as_dae, "model"),
    "SwinSSL": Source(lambda: SwinSSL(1, SWIN_SIZE, **SMALL, embedding_dim=8)),
    # 2D, plain
    "ViT of timm": Source(planar()),
    "ViT of timm without biases": Source(planar(qkv_bias=False)),
    "ViT of timm, mean of tokens": Source(planar(global_pool="avg")),
    "ViT of timm without norm": Source(planar(final_norm=False)),
    "ViT of timm, norm in front": Source(planar(pre_norm=True), fits=False),
    "ViT of timm, norm of queries": Source(planar(qk_norm=True), fits=False),
    "ViT of timm, norm in attention": Source(planar(scale_attn_norm=True), fits=False),
    "ViT of timm, norm in MLP": Source(planar(scale_mlp_norm=True), fits=False),
    "ViT of timm, attention pooling": Source(planar("vit_base_patch16_siglip_224")),
    "ViT of timm, patches of 8": Source(planar(patch_size=8), twin=lambda _: planar()()),
    "ViT of timm, grey": Source(planar(in_chans=1), fits=False),
    "ViT of timm, 11 blocks": Source(planar(depth=11), fits=False),
    "DeiT, distilled": Source(planar("deit_tiny_distilled_patch16_224")),
    "DeiT III": Source(planar("deit3_small_patch16_224")),
    "MAE": Source(planar(), name_as_mae, "model"),
    "DINO": Source(planar(), lambda network: {f"backbone.{n}": v for n, v in network.state_dict().items()}, "teacher"),
    "DINOv2": Source(planar("vit_small_patch14_dinov2", img_size=28), name_as_dinov2),
    "DINOv2 with registers": Source(planar("vit_small_patch14_reg4_dinov2", img_size=28), name_as_dinov2),
    "DINOv2 with registers, names of timm": Source(planar("vit_small_patch14_reg4_dinov2", img_size=28)),
    "DINOv2, gated": Source(planar("vit_giant_patch14_dinov2", img_size=28), fits=False),
    "BEiT": Source(planar("beit_base_patch16_224")),
    "BEiT, shared positions": Source(
        planar("beit_base_patch16_224", use_rel_pos_bias=False, use_shared_rel_pos_bias=True)
    ),
    "BEiT without biases": Source(planar("beit_base_patch16_224", qkv_bias=False)),
    "EVA": Source(planar("eva_large_patch14_196", patch_size=16)),
    "EVA-02": Source(planar("eva02_tiny_patch14_224", patch_size=16)),
    "DINOv3": Source(planar("vit_small_patch16_dinov3")),
    "DINOv3 with biases": Source(planar("vit_small_patch16_dinov3_qkvb")),
    "DINOv3, own names": Source(planar("vit_small_patch16_dinov3_qkvb"), name_as_dinov3),
    "DINOv3, own names, biased keys": Source(
        planar("vit_small_patch16_dinov3_qkvb"), name_with_biased_keys, fits=False
    ),
    # 2D, hierarchical
    "Swin": Source(swin_2d()),
    "Swin of Microsoft": Source(swin_2d(), name_as_microsoft, "model"),
    "Swin of Microsoft, other index": Source(swin_2d(), name_with_other_index, "model", fits=False),
    "Swin without patch norm": Source(
        swin_2d(),
        lambda network: {
            name: value for name, value in network.state_dict().items() if not name.startswith("patch_embed.norm")
        },
        fits=False,
    ),
    "Swin, other window": Source(swin_2d(window_size=4), twin=lambda _: swin_2d()()),
    "Swin v2": Source(swin_2d("swinv2_tiny_window8_256")),
    # nothing of these
    "foreign": Source(lambda: nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4)), fits=False),
}

TARGETS: dict[str, Callable[[], nn.Module]] = {
    "UNETR": unetr(),
    "UNETR with biases, perceptron": unetr(qkv_bias=True, proj_type="perceptron"),
    "UNETR, flat crops": unetr(size=(128, 16, 16)),
    "UNETR, f 6": modified(),
    "UNETR with stem": modified(stem=True),
    "UNETR with fusion": modified(fpn=True),
    "UNETR, aligned": modified(align=True),
    "light UNETR": modified(light=True),
    "contrastive ViTAutoEnc": lambda: ContrastiveViTAutoEnc(1, SIZE, **VIT, projection_dim=8),
    "SwinUNETR": lambda: ScriptableSwinUNETR(SWIN_SIZE, 1, 3, **SMALL),
    "SwinUNETR v2": lambda: ScriptableSwinUNETR(SWIN_SIZE, 1, 3, **SMALL, use_v2=True),
    "SwinUNETR without biases": lambda: ScriptableSwinUNETR(SWIN_SIZE, 1, 3, **SMALL, qkv_bias=False),
    "SwinUNETR, window as flat": lambda: ScriptableSwinUNETR(SWIN_SIZE, 1, 3, feature_size=12, window_size=(4, 2, 1)),
    "SwinSSL": lambda: SwinSSL(1, SWIN_SIZE, **SMALL, embedding_dim=8),
    "SwinSSL v2": lambda: SwinSSL(1, SWIN_SIZE, **SMALL, use_v2=True, embedding_dim=8),
    "VoCo's encoder": lambda: SwinUNETREncoder(1, SWIN_SIZE, **SMALL),
    "inflated ViT": segmenter("vit_tiny_patch16_224"),
    "inflated DeiT III": segmenter("deit3_small_patch16_224"),
    "inflated DINOv2": segmenter("vit_small_patch14_dinov2", img_size=28),
    "inflated DINOv2 with registers": segmenter("vit_small_patch14_reg4_dinov2", img_size=28),
    "inflated BEiT": segmenter("beit_base_patch16_224"),
    "inflated EVA": segmenter("eva_large_patch14_196", patch_size=16),
    "inflated EVA-02": segmenter("eva02_tiny_patch14_224", patch_size=16),
    "inflated DINOv3": segmenter("vit_small_patch16_dinov3"),
    "inflated DINOv3 with biases": segmenter("vit_small_patch16_dinov3_qkvb"),
    "inflated Swin": segmenter("swin_tiny_patch4_window7_224"),
    "inflated Swin v2": segmenter("swinv2_tiny_window8_256"),
}


@functools.cache
def build_source(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomize(SOURCES[name].make(), 1)


@functools.cache
def build_double(name: str) -> nn.Module:
    return copy.deepcopy(build_source(name)).double()


@functools.cache
def build_target(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomize(TARGETS[name](), 2)


@contextlib.contextmanager
def borrow_target(name: str) -> Iterator[nn.Module]:
    """Give a network to load into, and undo it afterwards: building one takes ten times as long."""
    network = build_target(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    epsilons = {module: module.eps for module in network.modules() if isinstance(module, nn.LayerNorm)}
    try:
        yield network
    finally:
        network.float().load_state_dict(before)
        for module, epsilon in epsilons.items():
            module.eps = epsilon


# ---- what both compute ----


def compare(name: str, target: nn.Module, report: Report) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what the network of a file computes and what the one that took its weights does, piece by piece.

    Args:
        name: of the source.
        target: the network after loading; it may be in double precision afterwards.
        report: `weights.json` of the loading; it says which part was loaded, and what was left out on purpose.
    """
    source = _resize(SOURCES[name], build_source(name), target, report)
    if not hasattr(target, "swinViT"):  # whose weights are not converted; its convolutions would take ten times as long
        source = build_double(name) if source is build_source(name) else source.double()
        target = target.double()
    source.eval(), target.eval()
    with torch.no_grad():
        if isinstance(target, InflatedSegmenter):
            yield from _compare_maps(source, target, report)
        elif hasattr(source, "patch_embed"):
            yield from _compare_blocks(source, target, report)
        else:
            yield from _compare_volumes(source, target, report)


TABLES = ("position_embeddings", "pos_embed", "relative_position_bias_table")


def _resize(source: Source, network: nn.Module, target: nn.Module, report: Report) -> nn.Module:
    """Return the source at the target's size, with its own weights but for the tables that were resampled.

    How tables are resampled has tests of its own.
    """
    state, tables = network.state_dict(), target.state_dict()
    resampled = {}
    for name, note in report["reshaped"].items():
        own = name.removeprefix("encoder.model.")
        if not name.endswith(TABLES) or own not in state:
            continue
        if "approximately" in note or state[own].shape != tables[name].shape:
            resampled[own] = tables[name].clone()
    if not resampled:
        return network
    assert source.twin is not None, f"resampled tables: {sorted(resampled)}"
    twin, state = source.twin(target), state | resampled
    kernel = "patch_embed.proj.weight"
    if kernel in state:
        state[kernel] = resample_patch_embed(state[kernel], list(twin.state_dict()[kernel].shape[2:]))
    own = {name: value for name, value in state.items() if not name.endswith("relative_position_index")}
    assert not twin.load_state_dict(own, strict=False).unexpected_keys
    return twin


def _compare_volumes(source: Any, target: Any, report: Report) -> Iterator[tuple[Tensor, Tensor]]:
    loaded = {*report["matched"], *report["reshaped"]}
    whole = not (report["untouched"] or report["fresh"])
    kind = next(target.parameters()).dtype
    size = SWIN_SIZE if hasattr(target, "swinViT") else [16 * n for n in getattr(target, "feat_size", (2, 2, 2))]
    image = torch.rand(1, 1, *size, dtype=kind)
    if any(name.endswith("blocks.0.mlp.linear1.weight") and "swin" not in name for name in loaded):
        outputs = [_run_vit(getattr(network, "vit", network), image) for network in (source, target)]
        yield from zip(*outputs, strict=True)
    if any(name.startswith("swinViT.") for name in loaded):
        networks = [getattr(network, "backbone", network) for network in (source, target)]
        maps = [network.swinViT(_repeat(image, network)) for network in networks]
        yield from zip(*maps, strict=True)
        for stage, level in (("encoder2", 0), ("encoder3", 1), ("encoder4", 2), ("encoder10", 4)):
            if f"{stage}.layer.conv1.conv.weight" in loaded:
                yield tuple(network.get_submodule(stage)(maps[0][level]) for network in networks)
        if "encoder1.layer.conv1.conv.weight" in loaded:
            yield tuple(network.encoder1(_repeat(image, network)) for network in networks)
    if "decoder2.transp_conv.conv.weight" in loaded:
        features = [_run_to_head(network, _repeat(image, network)) for network in (source, target)]
        yield tuple(features)
        if whole:
            yield tuple(network.out(maps) for network, maps in zip((source, target), features, strict=True))
    elif whole and type(source) is type(target):
        outputs = [_flatten(network(image)) for network in (source, target)]
        yield from zip(*outputs, strict=True)


def _run_to_head(network: Any, image: Tensor) -> Tensor:
    """Return what the output layer reads."""
    seen: list[Tensor] = []
    hook = network.out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(image)
    hook.remove()
    return seen[0]


def _flatten(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [part for value in (output.values() if isinstance(output, dict) else output) for part in _flatten(value)]


def _repeat(image: Tensor, network: nn.Module) -> Tensor:
    """Give all channels of a network the same image."""
    state = network.state_dict()
    names = ("swinViT.patch_embed.proj.weight", "vit.patch_embedding.patch_embeddings.weight")
    channels = next((state[name].shape[1] for name in names if name in state), 1)
    return image.expand(-1, channels, -1, -1, -1)


def _run_vit(vit: nn.Module, image: Tensor) -> list[Tensor]:
    weight = vit.patch_embedding.state_dict().get("patch_embeddings.weight")
    tokens = vit.patch_embedding(image if weight is None else image.expand(-1, weight.shape[1], -1, -1, -1))
    states = [tokens]
    for block in vit.blocks:
        states.append(block(states[-1]))
    return [*states, vit.norm(states[-1])]


def _compare_blocks(planar: Any, target: Any, report: Report) -> Iterator[tuple[Tensor, Tensor]]:
    """On the same tokens the blocks do the same, without what the report says is left out; so does the embedding."""
    tables = [name for name, _ in planar.named_parameters() if name.endswith("relative_position_bias_table")]
    if tables:
        assert all("features differ" in report["dropped"][name] for name in tables)
        planar = copy.deepcopy(planar)
        for name in tables:
            planar.get_submodule(name.rpartition(".")[0]).relative_position_bias_table = None
    if getattr(planar, "rope", None) is not None:
        assert any("features differ" in reason for reason in report["tolerated"].values())
    tokens = torch.randn(1, 8, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = found = tokens
    for theirs, ours in zip(planar.blocks, target.vit.blocks, strict=True):
        expected, found = theirs(expected), ours(found)
        yield expected, found
    if "vit.norm.weight" in report["matched"]:
        yield planar.norm(expected), target.vit.norm(found)
    else:
        assert isinstance(planar.norm, nn.Identity), "told as if it had none"
    kernel = "vit.patch_embedding.patch_embeddings"
    note = next(note for name, note in report["reshaped"].items() if name.startswith(kernel))
    mean, std = next(values for name, values in NORMALIZATIONS.items() if f"{name} normalization" in note)
    grey = torch.rand(1, 1, 32, 32, dtype=torch.float64)
    colour = (grey.expand(-1, 3, -1, -1) - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    weight = resample_patch_embed(planar.patch_embed.proj.weight, [16, 16])
    plane = nn.functional.conv2d(colour, weight, planar.patch_embed.proj.bias, 16).flatten(2).transpose(1, 2)
    embedding, volume = target.vit.patch_embedding, grey.unsqueeze(-1).expand(-1, -1, -1, -1, 32)
    if target.feat_size != (2, 2, 2):
        return
    found = embedding(volume)
    table = getattr(planar, "pos_embed", None)
    if table is not None and planar.patch_embed.grid_size == (2, 2):
        plane = plane + table[:, -4:]  # behind those of other tokens
    else:
        found = found - embedding.position_embeddings
    yield plane.unsqueeze(2).expand(-1, -1, 2, -1).flatten(1, 2), found


def _compare_maps(planar: Any, target: Any, report: Report) -> Iterator[tuple[Tensor, Tensor]]:
    """On the mean of the slices the 2D network has the maps that the encoder has on the window."""
    encoder = target.encoder
    config = encoder.model.pretrained_cfg
    windows = torch.rand(1, 1, *encoder.padded_size, DEPTH, dtype=torch.float64)
    grey = windows.mean(dim=-1).expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    maps = planar.forward_intermediates(
        (grey - mean) / std, indices=encoder.depths, norm=False, output_fmt="NCHW", intermediates_only=True
    )
    if "encoder.model.norm.weight" in {*report["matched"], *report["reshaped"]}:
        maps[-1] = planar.norm(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    yield from zip(maps, encoder(windows), strict=True)
