# SPDX-License-Identifier: Apache-2.0
"""The layouts of public checkpoints, one table each: how their keys are recognized, renamed and left out.

A layout says what a file is, not what the network is: the same table serves any size of it. The number of tensors
that must match is therefore not typed in, it follows from the network: every tensor whose name `fills` matches.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from tools.errors import ConfigValueError

# prefixes that wrappers put before the names: DataParallel, torch.compile, and the training scripts of VoCo and others
PREFIXES = ("module.", "_orig_mod.", "backbone.", "net.")

_TOKENS = "class and register tokens, to which the others attend in the file's network: UNETR has none"
# MONAI >= 1.4 creates these in every transformer block and uses them for cross-attention only, which no segmentation
# network has: 24 tensors of a 12-layer UNETR that files of MONAI <= 1.3 lack.
UNUSED = {r".*\.norm_cross_attn\.(weight|bias)": "never used in the forward pass"}
CROSS_ATTENTION = {r"(vit\.)?blocks\.\d+\.cross_attn\..*": "never used in the forward pass (MONAI 1.4 and 1.5)"}
PART = "part"  # in the header of a file that `convert` wrote
NOT_STATED = "not stated by its owner"


@dataclass(frozen=True)
class Layout:
    """A family of checkpoint files.

    Args:
        name: for the argument `layout`.
        title: what the files are.
        source: where that is told.
        marks: patterns of names and the number of dimensions (None: any); the file must have one key for each.
        absent: patterns that no key of the file may match.
        renames: patterns of names in the file and what they become in the network; the first that matches counts.
        drops: patterns of names in the file that are left out, and why.
        fills: names in the network that the file must provide.
        may_lack: names in the network that it need not provide all the same, and why.
        proofs: patterns in `may_lack`, and names in the file of which one must show that its network lacks them too.
        family: the network it belongs to, for messages.
        planar: whether it is a 2D network, to be inflated.
        normalization: intensities that a 2D network expects, a key of `inflation.NORMALIZATIONS`.
        norm_epsilon: of the layer norms in a 2D transformer where it is not PyTorch's 1e-5, which MONAI has.
        licence: of the public files in this layout.
        counts: tensors that match in the published network size, for orientation.
    """

    name: str
    title: str
    source: str
    marks: Mapping[str, int | None]
    renames: Mapping[str, str]
    fills: str
    family: str
    absent: Collection[str] = ()
    drops: Mapping[str, str] = field(default_factory=dict)
    may_lack: Mapping[str, str] = field(default_factory=dict)
    proofs: Mapping[str, str] = field(default_factory=dict)
    planar: bool = False
    normalization: str = "imagenet"
    norm_epsilon: float | None = None
    licence: str = NOT_STATED
    counts: str = ""

    def recognizes(self, shapes: Mapping[str, int]) -> bool:
        """Tell whether a file with these names and numbers of dimensions is in this layout."""
        marked = all(
            any(re.fullmatch(pattern, name) and ndim in (None, shapes[name]) for name in shapes)
            for pattern, ndim in self.marks.items()
        )
        return marked and not any(re.fullmatch(pattern, name) for pattern in self.absent for name in shapes)

    def rename(self, name: str) -> str | None:
        """Return the name in the network, None if the table has none."""
        for pattern, replacement in self.renames.items():
            if match := re.fullmatch(pattern, name):
                return match.expand(replacement)
        return None

    def find_drop(self, name: str) -> str | None:
        """Return why a key of the file is left out, None if it is not."""
        return find_reason(self.drops, name)


def find_reason(table: Mapping[str, str], name: str) -> str | None:
    """Return the entry of a table of patterns that `name` matches, None if there is none."""
    return next((reason for pattern, reason in table.items() if re.fullmatch(pattern, name)), None)


SAME = {r"(.*)": r"\1"}

OWN = Layout(
    name="own",
    title="weights in no public layout",
    source="torch: state_dict()",
    marks={},
    renames=SAME,
    fills=r".*",
    may_lack=UNUSED,
    family="the network that it was saved from",
    licence="that of the training run it comes from",
    counts="all",
)

UNETR_0_7 = Layout(
    name="unetr_monai_0.7",
    title="a UNETR of MONAI 0.7, such as UNETR_model_best_acc.pth",
    source="github.com/Project-MONAI/research-contributions, UNETR/BTCV",
    marks={r"vit\.patch_embedding\.cls_token": 3, r"encoder1\.layer\.conv1\.conv\.weight": 5},
    drops={
        r"vit\.patch_embedding\.cls_token": "never used in the forward pass of MONAI 0.7",
        r"encoder[23]\.blocks\.\d\.1\.conv3\.conv\.weight": "residual convolution, unused as channels are equal",
    },
    renames=SAME,
    fills=r".*",
    may_lack=UNUSED,
    family="UNETR",
    counts="170",
)

UNETR_0_9 = Layout(
    name="unetr_monai",
    title="a UNETR of MONAI 0.9 or later, our own included",
    source="github.com/Project-MONAI/MONAI",
    marks={r"vit\.patch_embedding\.position_embeddings": 3, r"encoder1\.layer\.conv1\.conv\.weight": 5},
    drops=CROSS_ATTENTION,
    renames=SAME,
    fills=r".*",
    may_lack=UNUSED,
    family="UNETR",
    counts="170 (MONAI <= 1.3), 194",
)

VIT_AUTOENCODER = Layout(
    name="vit_autoencoder",
    title="MONAI's ViTAutoEnc or ViT, pre-trained: UNETR's transformer",
    source="github.com/Project-MONAI/tutorials, self_supervised_pretraining; MONAI issue 3947",
    marks={r"patch_embedding\.position_embeddings": 3, r"blocks\.0\.mlp\.linear1\.weight": 2},
    drops={
        r"conv3d_transpose(_1)?\.(weight|bias)": "decoder of the pretext task",
        r"(projection|classification_head)\..*": "head of the pretext task",
        r"patch_embedding\.cls_token": "never used in the forward pass of MONAI 0.7",
        r"cls_token": _TOKENS,
        **CROSS_ATTENTION,
    },
    renames={r"((?:patch_embedding|blocks|norm)\..*)": r"vit.\1"},
    fills=r"vit\..*",
    may_lack=UNUSED,
    family="UNETR",
    counts="161 (137 of MONAI <= 1.3)",
)

_PLANAR_BLOCKS = {
    r"patch_embed\.proj\.(weight|bias)": r"vit.patch_embedding.patch_embeddings.\1",
    r"pos_embed": r"vit.patch_embedding.position_embeddings",
    r"blocks\.(\d+)\.(norm[12]|attn\.qkv)\.(weight|bias)": r"vit.blocks.\1.\2.\3",
    r"blocks\.(\d+)\.attn\.proj\.(weight|bias)": r"vit.blocks.\1.attn.out_proj.\2",
    r"blocks\.(\d+)\.mlp\.fc([12])\.(weight|bias)": r"vit.blocks.\1.mlp.linear\2.\3",
    r"norm\.(weight|bias)": r"vit.norm.\1",
}
_HEADS = {
    r"mask_token": "token of the pretext task",
    r"fc_norm\.(weight|bias)": "normalizes the mean of all tokens, for the head of the 2D task",
    r"(head|head_dist|fc|pre_logits|attn_pool|lm_head|dino_head|ibot_head|last_layer)\..*": "head of the 2D task",
    r"decoder\..*|decoder_(pos_embed|(embed|blocks|norm|pred)\..*)": "head of the 2D task",
}
_PLANAR_DROPS = {r"cls_token|dist_token|reg_token|register_tokens": _TOKENS, **_HEADS}
# the last normalization may be in the head: that of the mean of all tokens
_NO_NORM = {r"vit\.norm\.(weight|bias)": "the 2D network normalizes the mean of its tokens, not the tokens"}
_NORM_PROOF = dict.fromkeys(_NO_NORM, r"fc_norm\.weight")
_POSITIONS = r"vit\.patch_embedding\.position_embeddings"

DINOV3_2D = Layout(
    name="dinov3_2d",
    title="DINOv3, names of timm (rotary positions, which no tensor holds)",
    source="github.com/huggingface/pytorch-image-models",
    marks={r"patch_embed\.proj\.weight": 4, r"blocks\.0\.gamma_1": 1, r"reg_token": 3},
    absent=(r"pos_embed", r".*relative_position_bias_table"),
    drops=_PLANAR_DROPS,
    renames=_PLANAR_BLOCKS,
    fills=r"vit\..*",
    may_lack={
        **UNUSED,
        _POSITIONS: "the 2D network turns queries and keys by their positions, UNETR does not: features differ from "
        "the 2D network's",
    },
    family="UNETR",
    planar=True,
    norm_epsilon=1e-5,
    licence="that of the 2D weights (DINOv3: its own)",
    counts="one for each tensor of the 2D trunk",
)

BEIT_2D = Layout(
    name="beit_2d",
    title="BEiT and its like (relative positions, biases of queries and values), names of timm",
    source="github.com/huggingface/pytorch-image-models",
    marks={
        r"patch_embed\.proj\.weight": 4,
        r"blocks\.0\.attn\.(q_bias|relative_position_bias_table)|rel_pos_bias\.relative_position_bias_table": None,
    },
    drops={
        r"(blocks\.\d+\.attn|rel_pos_bias)\.relative_position_(bias_table|index)": "UNETR has no relative positions: "
        "features differ from the 2D network's",
        **_PLANAR_DROPS,
    },
    renames=_PLANAR_BLOCKS,
    fills=r"vit\..*",
    may_lack={**UNUSED, _POSITIONS: "the 2D network has no absolute positions", **_NO_NORM},
    proofs={_POSITIONS: r".*relative_position_bias_table", **_NORM_PROOF},
    family="UNETR",
    planar=True,
    norm_epsilon=1e-6,
    normalization="half",
    licence="that of the 2D weights (BEiT: MIT)",
    counts="one for each tensor of the 2D trunk",
)

VIT_2D = Layout(
    name="vit_2d",
    title="a 2D vision transformer: timm's ViT, DeiT, MAE, DINO, DINOv2",
    source="github.com/huggingface/pytorch-image-models, github.com/facebookresearch/dinov2",
    marks={r"patch_embed\.proj\.weight": 4, r"blocks\.0\.attn\.qkv\.weight": 2, r"pos_embed": 3},
    drops=_PLANAR_DROPS,
    renames=_PLANAR_BLOCKS,
    fills=r"vit\..*",
    may_lack={**UNUSED, **_NO_NORM},
    proofs=_NORM_PROOF,
    family="UNETR",
    planar=True,
    norm_epsilon=1e-6,
    licence="that of the 2D weights (DINO, DINOv2: Apache-2.0)",
    counts="one for each tensor of the 2D trunk",
)

_SWIN_DROPS = {
    r"(rotation_head|contrastive_head|rotation_pre|contrastive_pre|conv)\..*": "head of the pretext task",
    r"norm\.(weight|bias)": "normalization before the heads of the pretext task",
    r"(proj_head|predictor|(student|teacher)\.layer[123])\..*": "head of the pretext task",  # VoCo's heads
}

SWIN_SSL_0_8_1 = Layout(
    name="swin_ssl_0.8.1",
    title="the self-supervised Swin transformer of the 0.8.1 release, model_swinvit.pt",
    source="Tang et al., CVPR 2022; github.com/Project-MONAI/MONAI-extra-test-data",
    marks={r"patch_embed\.proj\.weight": 5, r"layers1\.0\.blocks\.0\.mlp\.fc1\.weight": 2},
    drops=_SWIN_DROPS,
    renames={
        r"(layers\d\.0\.blocks\.\d+\.mlp)\.fc([12])\.(weight|bias)": r"swinViT.\1.linear\2.\3",
        r"((?:patch_embed|layers\dc?)\..*)": r"swinViT.\1",
    },
    fills=r"swinViT\..*",
    family="SwinUNETR",
    counts="126 (v2, written by our pre-training: 134)",
)

SWIN_SSL_HEAD = Layout(
    name="swin_ssl_head",
    title="a self-supervised Swin transformer with its heads, written by the current pre-training script or by ours",
    source="github.com/Project-MONAI/research-contributions, SwinUNETR/Pretrain",
    marks={r"(swinViT|swin_vit)\.patch_embed\.proj\.weight": 5},
    absent=(r"encoder1\..*", r"decoder1\..*"),
    drops=_SWIN_DROPS,
    renames={r"(?:swinViT|swin_vit)\.(.*)": r"swinViT.\1"},
    fills=r"swinViT\..*",
    family="SwinUNETR",
    licence="that of the pre-training it comes from",
    counts="126 (v2: 134)",
)

VOCO = Layout(
    name="voco",
    title="VoCo's Swin transformer and convolutional encoders of SwinUNETR, without decoder",
    source="Wu et al., CVPR 2024 (VoCo_10k) and Large-Scale-Medical (VoCo_{B,L,H}_SSL_head)",
    marks={r"(swinViT|swin_vit)\.patch_embed\.proj\.weight": 5, r"encoder10\.layer\.conv1\.conv\.weight": 5},
    absent=(r"decoder\d\..*",),
    drops={r"teacher_backbone\..*": "the teacher, a moving average of the student", **_SWIN_DROPS},
    renames={r"(?:swinViT|swin_vit)\.(.*)": r"swinViT.\1", r"(encoder(?:[1-4]|10)\..*)": r"\1"},
    fills=r"swinViT\..*|encoder([1-4]|10)\..*",
    family="SwinUNETR",
    licence="Apache-2.0 (code, github.com/Luffy03); of the weights " + NOT_STATED,
    counts="145 (v2)",
)

SWIN_UNETR = Layout(
    name="swin_unetr",
    title="a whole SwinUNETR (models finetuned on BTCV and BraTS, VoComni, our own)",
    source="github.com/Project-MONAI/research-contributions, SwinUNETR/BTCV; Large-Scale-Medical (VoComni)",
    marks={r"(swinViT|swin_vit)\.patch_embed\.proj\.weight": 5, r"decoder1\.conv_block\.conv1\.conv\.weight": 5},
    renames={r"swin_vit\.(.*)": r"swinViT.\1", **SAME},
    fills=r".*",
    family="SwinUNETR",
    counts="159 (v2: 167)",
)

SWIN_DAE = Layout(
    name="swin_dae",
    title="a disruptive autoencoder with encoder and decoder, ssl_pretrained_weights.pth",
    source="Valanarasu et al., arXiv 2307.16896; github.com/Project-MONAI/tutorials",
    marks={r"encoder\.patch_embed\.proj\.weight": 5, r"encoder\.layers1\.0\.0\.blocks\.0\.norm1\.weight": 1},
    drops={
        r"encoder\.(mask_token|norm\.(weight|bias))": "part of the pretext task",
        r"out\.conv\.conv\.(weight|bias)": "head of the pretext task",
    },
    renames={
        r"encoder\.(patch_embed\..*)": r"swinViT.\1",
        r"encoder\.(layers\d\.0)\.0\.(.*)": r"swinViT.\1.\2",
        **SAME,
    },
    fills=r"(?!out\.).*",
    family="SwinUNETR",
    counts="157",
)

# for networks whose encoder is a model of timm: chosen by the network, not by the names, which are those of VIT_2D too
TIMM = Layout(
    name="timm",
    title="a 2D transformer in the names of timm",
    source="github.com/huggingface/pytorch-image-models",
    marks={r"patch_embed\.proj\.weight": 4},
    drops={
        **{name: reason for name, reason in _HEADS.items() if not name.startswith("fc_norm")},
        r"(.*\.)?(relative_position_index|attn_mask)": "a constant",
        r"(rope|rope_embed)\.periods": "a constant",
        r"(projectors|local_cls_norm)\..*": "head of the pretext task",
    },
    renames={r"(.*)": r"encoder.model.\1"},
    fills=r"encoder\.model\..*",
    family="InflatedSegmenter",
    planar=True,
    licence="that of the 2D weights",
    counts="one for each tensor of the 2D trunk",
)

# in the order in which they are tried
LAYOUTS = {
    layout.name: layout
    for layout in (
        UNETR_0_7,
        UNETR_0_9,
        VIT_AUTOENCODER,
        DINOV3_2D,
        BEIT_2D,
        VIT_2D,
        SWIN_SSL_0_8_1,
        SWIN_SSL_HEAD,
        VOCO,
        SWIN_UNETR,
        SWIN_DAE,
        TIMM,
        OWN,
    )
}


def recognize(tensors: Mapping[str, Tensor]) -> Layout:
    """Return the layout of a file by the names of its tensors; `OWN` if it is none of the public ones."""
    shapes = {name: tensor.ndim for name, tensor in tensors.items()}
    return next(layout for layout in LAYOUTS.values() if layout.recognizes(shapes))


def get_layout(name: str) -> Layout:
    """Return the layout of that name.

    Raises:
        ConfigValueError: if there is none.
    """
    if not isinstance(name, str) or name not in LAYOUTS:
        raise ConfigValueError("layout", repr(name), f"auto or one of {', '.join(LAYOUTS)}", "correct it")
    return LAYOUTS[name]


def describe_part(names: Collection[str]) -> Layout:
    """Return the layout of a file that `convert` wrote: a part of the network under the network's own names."""
    fills = "|".join(re.escape(name) for name in names)
    return replace(OWN, name=PART, title="a part of a network, converted", fills=fills, counts="as many as it has")


def strip_prefixes(name: str) -> str:
    """Remove the wrappers' prefixes, however many, from a name."""
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), ""):
        name = name.removeprefix(prefix)
    return name
