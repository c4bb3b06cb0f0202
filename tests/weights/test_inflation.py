# SPDX-License-Identifier: Apache-2.0
"""2D networks inflated to 3D: on the centre slice, or the mean slice, they do what they did before."""

from __future__ import annotations

import pytest
import timm
import torch
from comparisons import assert_equal_to_scale
from monai.networks.nets import UNETR
from safetensors.torch import load_file
from timm.layers import resample_patch_embed
from torch import Tensor, nn

from tools.bundles import REPOSITORY
from tools.errors import CheckpointError, ConfigValueError
from tools.networks import InflatedEncoder, InflatedSegmenter
from tools.weights import Inflation, load, match
from tools.weights.inflation import NORMALIZATIONS, inflate_patch_embedding, inflate_position_table
from tools.weights.planar import Part, fold_layer_scale

DINOV2 = REPOSITORY.parent / "shared" / "weights" / "dinov2_vits14_fp16.safetensors"
needs_dinov2 = [
    pytest.mark.shared_data,
    pytest.mark.skipif(not DINOV2.is_file(), reason=f"{DINOV2} is not there"),
]
DEPTH = 5


def make_planar(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, -0.5, 0.5)
    return model


def load_dinov2(size: int) -> nn.Module:
    """The real network at another image size: positions resampled as its authors do."""
    model = timm.create_model("vit_small_patch14_dinov2", img_size=size).eval()
    state = {name: tensor.float() for name, tensor in load_file(DINOV2).items()}
    grid = inflate_position_table(state["pos_embed"], (size // 14, size // 14, 1))
    model.load_state_dict(state | {"pos_embed": torch.cat([state["pos_embed"][:, :1], grid], dim=1)})
    return model


class InflatedProjection(nn.Module):
    """Reads `(B, D, H, W)`, the slices of a one-channel volume, where the 2D network reads colours."""

    def __init__(self, projection: nn.Conv2d, method: str, normalization: str) -> None:
        super().__init__()
        patch_size = (*projection.kernel_size, DEPTH)
        self.weight, self.bias = inflate_patch_embedding(
            projection.weight, projection.bias, patch_size, 1, method, normalization
        )
        self.stride = patch_size

    def forward(self, slices: Tensor) -> Tensor:
        volume = slices.movedim(1, -1).unsqueeze(1)
        return nn.functional.conv3d(volume, self.weight, self.bias, self.stride).squeeze(-1)


def extract_features(model: nn.Module, image: Tensor) -> list[Tensor]:
    """Return the output of every block, or stage, and the final one."""
    features: list[Tensor] = []
    blocks = getattr(model, "blocks", None) or model.layers
    hooks = [block.register_forward_hook(lambda *arguments: features.append(arguments[2])) for block in blocks]
    with torch.no_grad():
        features.append(model.forward_features(image))
    for hook in hooks:
        hook.remove()
    return features


NETWORKS = {
    "DINOv2 ViT-S/14": pytest.param(lambda: load_dinov2(70), "imagenet", 70, marks=needs_dinov2),
    "BEiT": pytest.param(lambda: make_planar("beit_base_patch16_224", img_size=64, depth=3), "half", 64),
    "Swin": pytest.param(lambda: make_planar("swin_tiny_patch4_window7_224", img_size=56), "imagenet", 56),
}


@pytest.mark.numeric
@pytest.mark.parametrize("method", ["average", "center"])
@pytest.mark.parametrize(("make", "normalization", "size"), NETWORKS.values(), ids=NETWORKS)
def test_the_inflated_network_equals_the_2d_one_on_a_slice(make, normalization, size, method):
    model = make().double()  # in which another epsilon of the norms is told from rounding
    slices = torch.rand(2, DEPTH, size, size, generator=torch.Generator().manual_seed(1)).double()
    grey = slices[:, DEPTH // 2] if method == "center" else slices.mean(dim=1)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in NORMALIZATIONS[normalization])
    expected = extract_features(model, (grey.unsqueeze(1).expand(-1, 3, -1, -1) - mean) / std)
    model.patch_embed.proj = InflatedProjection(model.patch_embed.proj, method, normalization)
    found = extract_features(model, slices)
    assert len(found) > 3
    for one, other in zip(found, expected, strict=True):
        assert_equal_to_scale(one, other, relative=1e-7)
        assert other.std() > 0.01


def make_unetr(size=(80, 80, 32), **options) -> UNETR:
    torch.manual_seed(2)
    small = {"feature_size": 4, "hidden_size": 384, "mlp_dim": 1536, "num_heads": 6, "qkv_bias": True}
    return UNETR(1, 3, size, **small | options).eval()


@pytest.mark.numeric
@pytest.mark.shared_data
@pytest.mark.skipif(not DINOV2.is_file(), reason=f"{DINOV2} is not there")
@pytest.mark.parametrize("projection", ["conv", "perceptron"])
def test_all_of_dinov2_goes_into_unetr_and_its_blocks_compute_the_same(projection):
    network, planar = load(make_unetr(proj_type=projection), DINOV2).double(), load_dinov2(70).double()
    _, report = match(make_unetr(proj_type=projection), load_file(DINOV2))
    assert (len(report.used), report.num_loaded) == (173, 149)
    assert report.dropped.keys() == {"cls_token"}
    assert "to which the others attend" in report.dropped["cls_token"]
    assert not report.unexpected + report.missing
    assert sum("LayerScale" in note for note in report.reshaped.values()) == 48
    tokens = torch.randn(1, 26, 384, generator=torch.Generator().manual_seed(3)).double()
    expected = found = tokens
    with torch.no_grad():
        for theirs, ours in zip(planar.blocks, network.vit.blocks, strict=True):
            expected, found = theirs(expected), ours(found)
            assert_equal_to_scale(found, expected, relative=1e-7)
        assert_equal_to_scale(network.vit.norm(found), planar.norm(expected), relative=1e-7)
    assert expected.abs().max() > 5


@pytest.mark.numeric
@pytest.mark.shared_data
@pytest.mark.skipif(not DINOV2.is_file(), reason=f"{DINOV2} is not there")
@pytest.mark.parametrize("projection", ["conv", "perceptron"])
@pytest.mark.parametrize("method", ["average", "center"])
def test_tokens_of_a_volume_are_those_of_its_slice(projection, method):
    """Both patches deep: positions repeat along the depth, and tokens are those of the 2D network at patch 16."""
    network = load(make_unetr(proj_type=projection), DINOV2, inflation={"method": method})
    volume = torch.rand(1, 1, 80, 80, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        tokens = network.vit.patch_embedding(volume).reshape(1, 5, 5, 2, 384)
    planar = load_dinov2(70)
    kernel = resample_patch_embed(planar.patch_embed.proj.weight.detach(), [16, 16])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMALIZATIONS["imagenet"])
    for deep in range(2):
        slab = volume[..., 16 * deep : 16 * deep + 16]
        grey = slab[..., 8] if method == "center" else slab.mean(dim=-1)
        colour = (grey.expand(-1, 3, -1, -1) - mean) / std
        expected = nn.functional.conv2d(colour, kernel, planar.patch_embed.proj.bias.detach(), 16)
        expected = expected.flatten(2).transpose(1, 2) + planar.pos_embed.detach()[:, 1:]
        assert_equal_to_scale(tokens[..., deep, :].flatten(1, 2), expected)


PLANAR = {
    "vit_tiny_patch16_224": ("vit_2d", "imagenet", {"hidden_size": 192, "mlp_dim": 768, "num_heads": 3}, 149, 149),
    "deit3_small_patch16_224": ("vit_2d", "imagenet", {}, 173, 149),
    "vit_small_patch14_reg4_dinov2": ("vit_2d", "imagenet", {}, 173, 149),
    "beit_base_patch16_224": (*("beit_2d", "half", {"hidden_size": 768, "mlp_dim": 3072, "num_heads": 12}, 182, 146),),
    "vit_small_patch16_dinov3": ("dinov3_2d", "imagenet", {}, 160, 148),
}


@pytest.mark.parametrize("name", PLANAR)
def test_any_2d_transformer_of_timm_fills_unetr(name):
    layout, normalization, sizes, used, loaded = PLANAR[name]
    state = make_planar(name).state_dict()
    values, report = match(make_unetr(**sizes), state)
    assert report.accepted, report
    assert (report.layout, len(report.used), report.num_loaded) == (layout, used, loaded)
    assert len(report.used) + len(report.dropped) == len(state)
    assert any(f"{normalization} normalization" in note for note in report.reshaped.values())
    assert values["vit.patch_embedding.patch_embeddings.weight"].shape[1:] == (1, 16, 16, 16)


def test_checkpoints_of_dino_training_are_read(tmp_path):
    state = make_planar("vit_tiny_patch16_224").state_dict()
    student = {f"module.backbone.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    teacher = {f"backbone.{name}": tensor for name, tensor in state.items()}
    teacher |= {"head.mlp.0.weight": torch.rand(4, 4), "head.last_layer.weight_v": torch.rand(4, 4)}
    torch.save({"student": student, "teacher": teacher, "epoch": 100}, tmp_path / "checkpoint.pth")
    network = load(make_unetr(hidden_size=192, mlp_dim=768, num_heads=3), tmp_path / "checkpoint.pth")
    assert torch.equal(network.vit.blocks[3].norm1.weight, state["blocks.3.norm1.weight"])


def test_zscored_volumes_need_no_folding():
    state = make_planar("vit_tiny_patch16_224").state_dict()
    network = make_unetr(hidden_size=192, mlp_dim=768, num_heads=3)
    values, report = match(network, state, inflation=Inflation(normalization="none"))
    assert torch.equal(values["vit.patch_embedding.patch_embeddings.bias"], state["patch_embed.proj.bias"])
    assert "normalization" not in report.reshaped["vit.patch_embedding.patch_embeddings.weight"]


def test_layer_norms_get_the_epsilon_of_the_2d_network(tmp_path):
    torch.save(make_planar("vit_tiny_patch16_224").state_dict(), tmp_path / "weights.pt")
    network = load(make_unetr(hidden_size=192, mlp_dim=768, num_heads=3), tmp_path / "weights.pt")
    norms = [module.eps for module in network.modules() if isinstance(module, nn.LayerNorm)]
    assert set(norms) == {1e-6}


def test_a_network_without_biases_refuses_a_2d_one_with_them(tmp_path):
    torch.save(make_planar("vit_tiny_patch16_224").state_dict(), tmp_path / "weights.pt")
    network = make_unetr(hidden_size=192, mlp_dim=768, num_heads=3, qkv_bias=False)
    with pytest.raises(CheckpointError, match=r"12 unknown.*qkv_bias=True \(here False\)"):
        load(network, tmp_path / "weights.pt")


def test_another_network_than_unetr_is_refused():
    state = make_planar("vit_tiny_patch16_224").state_dict()
    with pytest.raises(ConfigValueError, match="Linear, wanted a UNETR, for 2D weights"):
        match(nn.Linear(2, 2), state)


@pytest.mark.parametrize("values", [{"method": "mean"}, {"normalization": "clip"}])
def test_unknown_ways_to_inflate_are_refused(values):
    with pytest.raises(ConfigValueError, match="one of"):
        Inflation(**values)


@pytest.mark.parametrize("rows", [3, 250])
def test_a_table_of_no_square_image_is_refused(rows):
    with pytest.raises(ConfigValueError, match=f"{rows} rows, wanted a square image"):
        inflate_position_table(torch.rand(1, rows, 8), (2, 2, 2))


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_rows_of_prefix_tokens_are_left_out_of_the_positions(prefix):
    grid = torch.rand(1, 49, 8)
    table = torch.cat([torch.full((1, prefix, 8), 9.0), grid], dim=1)
    inflated = inflate_position_table(table, (7, 7, 2)).reshape(1, 49, 2, 8)
    assert torch.equal(inflated[:, :, 0], grid)
    assert torch.equal(inflated[:, :, 1], grid)


@pytest.mark.numeric
@pytest.mark.parametrize("names", [("ls1.gamma", "ls2.gamma"), ("gamma_1", "gamma_2")])
def test_layer_scale_is_folded_into_the_layer_before_it(names):
    generator = torch.Generator().manual_seed(0)
    shapes = {"attn.proj.weight": (4, 4), "attn.proj.bias": (4,), "mlp.fc2.weight": (4, 6), "mlp.fc2.bias": (4,)}
    shapes |= dict.fromkeys(names, (4,))
    state = {f"blocks.0.{name}": torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    folded = fold_layer_scale({name: Part(tensor, (name,)) for name, tensor in state.items()})
    assert folded.keys() == {name for name in state if not name.endswith(names)}
    for layer, scale, width in (("attn.proj", names[0], 4), ("mlp.fc2", names[1], 6)):
        x = torch.rand(3, width, generator=generator)
        weight, bias, gamma = (state[f"blocks.0.{name}"] for name in (f"{layer}.weight", f"{layer}.bias", scale))
        expected = nn.functional.linear(x, weight, bias) * gamma
        found = nn.functional.linear(
            x, folded[f"blocks.0.{layer}.weight"].tensor, folded[f"blocks.0.{layer}.bias"].tensor
        )
        assert_equal_to_scale(found, expected)


SEGMENTERS = {
    "DINOv2 ViT-S/14": (lambda: load_dinov2(70), "vit_small_patch14_dinov2", 70),
    "BEiT": (lambda: make_planar("beit_base_patch16_224", img_size=64), "beit_base_patch16_224", 64),
    "Swin": (lambda: make_planar("swin_tiny_patch4_window7_224", img_size=224), "swin_tiny_patch4_window7_224", 224),
}


# both ways of inflating with DINOv2, the smallest
@pytest.mark.numeric
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *(pytest.param("DINOv2 ViT-S/14", method, marks=needs_dinov2) for method in ("average", "center")),
        *((kind, "average") for kind in ("BEiT", "Swin")),
        *(pytest.param(kind, "center", marks=pytest.mark.exhaustive) for kind in ("BEiT", "Swin")),
    ],
)
def test_the_encoder_of_a_segmenter_equals_the_2d_network_at_every_depth(kind, method):
    make, name, size = SEGMENTERS[kind]
    planar = make().double()
    blocks = len(getattr(planar, "blocks", None) or planar.layers)
    network = nn.ModuleDict({"encoder": InflatedEncoder(name, 2, DEPTH, size, depths=range(blocks))}).eval().double()
    values, report = match(network, planar.state_dict(), inflation=Inflation(method))
    assert report.accepted, report
    assert report.layout == "timm"
    assert all("its own normalization" in note for note in report.reshaped.values())
    assert len(report.reshaped) == 2
    network.load_state_dict({**network.state_dict(), **values})
    drawn = torch.rand(1, 1, size, size, DEPTH, generator=torch.Generator().manual_seed(1))
    windows = drawn.double().expand(-1, 2, -1, -1, -1)  # both channels alike
    grey = windows[:, 0, ..., DEPTH // 2] if method == "center" else windows[:, 0].mean(dim=-1)
    mean, std = (torch.tensor(planar.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = planar.forward_intermediates((grey.unsqueeze(1) - mean) / std, intermediates_only=True)
        found = network.encoder(windows)
    assert len(found) == len(expected) == blocks
    # the normalization is folded in in float32
    for one, other in zip(found[:-1], expected[:-1], strict=True):
        assert_equal_to_scale(one, other, relative=1e-6)
    last = expected[-1]
    if getattr(network.encoder.model, "norm", None) is not None and name != "beit_base_patch16_224":
        with torch.no_grad():
            last = planar.norm(last.movedim(1, -1)).movedim(-1, 1)
    assert_equal_to_scale(found[-1], last, relative=1e-6)


def test_a_segmenter_refuses_the_weights_of_another_model(tmp_path):
    torch.save(make_planar("vit_tiny_patch16_224").state_dict(), tmp_path / "weights.pt")
    network = InflatedSegmenter("deit3_small_patch16_224", "transposed", img_size=64, decoder_channels=8)
    with pytest.raises(CheckpointError):
        load(network, tmp_path / "weights.pt")


def test_a_segmenter_takes_its_own_checkpoint_back(tmp_path):
    network = InflatedSegmenter("vit_tiny_patch16_224", "unetr", img_size=32, decoder_channels=4)
    torch.save({"model": network.state_dict()}, tmp_path / "weights.pt")
    other = InflatedSegmenter("vit_tiny_patch16_224", "unetr", img_size=32, decoder_channels=4)
    load(other, tmp_path / "weights.pt", complete=True)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in other.state_dict().items())


def test_a_patch_that_is_not_square_gets_a_kernel_of_its_own_height_and_width():
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.rand(5, 3, 4, 6, generator=generator), torch.rand(5, generator=generator)
    same, _ = inflate_patch_embedding(weight, bias, (4, 6, 2), method="center", normalization="none")
    assert same.shape == (5, 1, 4, 6, 2)
    torch.testing.assert_close(same.sum(dim=-1)[:, 0], weight.sum(dim=1))  # a grey image, one slice of the two
    assert inflate_patch_embedding(weight, bias, (8, 4, 2))[0].shape == (5, 1, 8, 4, 2)
