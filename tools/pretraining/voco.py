# SPDX-License-Identifier: Apache-2.0
"""Pre-training of Swin UNETR's encoder by VoCo: crops of a volume are told by their likeness to its base crops.

Sources: Wu et al., VoCo: A Simple-yet-Effective Volume Contrastive Learning Framework for 3D Medical Image Analysis,
CVPR 2024, section 3; its code, github.com/Luffy03/VoCo; its extension, github.com/Luffy03/Large-Scale-Medical. They
differ, and `variant` chooses:

|                    | paper              | cvpr, the paper's code            | extension                       |
|--------------------|--------------------|-----------------------------------|---------------------------------|
| teacher            | none               | encoder and head                  | head, on the student's encoder  |
| random crop, with  | bases, no gradient | teacher's bases; teacher's crop   | teacher's bases                 |
|                    |                    | with student's bases; the mean    |                                 |
| no overlap, s to 0 | as any other       | s²                                | -log(1 - s)                     |
| bases, apart by    | mean abs cosine    | ReLU(cosine)², one of a pair      | the same                        |
|                    |                    | without gradient                  |                                 |
| bases of others    | -                  | -                                 | student's likeness to teacher's |
| head, dropout      | 2048, -            | 2048, -                           | 1024, 0.2                       |

Where this module differs from both codes: the teacher starts as a copy of the student and not at random; no optimizer
gets it; the head is normalized over the crops of all processes and the next volume may be that of another process; the
dropout is that of single features, where the extension's `Dropout1d` on `(N, F)` zeroes all features of a crop.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from monai.networks.nets import SwinUNETR
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tools.errors import ConfigValueError, is_out_of_memory
from tools.networks.patch_merging import make_patch_merging
from tools.networks.swin_unetr import check_sizes
from tools.pretraining.vit_autoencoder import gather_batch
from tools.pretraining.volume_crops import VolumeCrops

# with the channels and voxels of the input's resolution: what encoder1 keeps of a crop for the backward pass (two
# convolutions, two normalizations, the residual path); for the whole encoder it is 8, measured with 12 and 24 features
KEPT_MAPS = 5
DECODER = ("decoder1", "decoder2", "decoder3", "decoder4", "decoder5", "out")


class Variant(NamedTuple):
    """What distinguishes the published forms of the network."""

    embedding_dim: int
    dropout: float = 0.0
    has_teacher: bool = True
    shares_encoder: bool = False


VARIANTS = {
    "cvpr": Variant(2048),
    "extension": Variant(1024, dropout=0.2, shares_encoder=True),
    "paper": Variant(2048, has_teacher=False),
}


def get_variant(name: str) -> Variant:
    """Return the variant of that name.

    Raises:
        ConfigValueError: if there is none.
    """
    if name not in VARIANTS:
        raise ConfigValueError("variant", repr(name), f"one of {', '.join(VARIANTS)}", "correct --variant")
    return VARIANTS[name]


class SwinUNETREncoder(SwinUNETR):
    """Swin UNETR without its decoder: crops `(N, C, X, Y, Z)` to features `(N, 24 * feature_size)`.

    The state dict has the names of SwinUNETR: `swinViT.*`, `encoder1.*` to `encoder4.*` and `encoder10.*`, 145 tensors
    with `use_v2`. The features are the means over all voxels of the five maps that the decoder reads after these
    blocks; the map of stride 16, which it reads as it is, is left out as in both codes.

    Args:
        in_channels: channels `C` of the image.
        img_size: voxels of the crop along X, Y, Z, or one number for all three. It is checked, not built in.
        feature_size: channels at stride 1; 48, 96 and 192 are the published sizes B, L and H.
        window_size: tokens along X, Y, Z that attend to each other, or one number; fine-tuning must have the same.
        use_v2: whether a convolution block precedes each stage, as published.
        use_checkpoint: whether to compute activations again in the backward pass, which saves memory.
        patch_merging: of the transformer, see `tools.networks.ScriptableSwinUNETR`.

    Raises:
        ConfigValueError: if the sizes do not fit together.
    """

    def __init__(
        self,
        in_channels: int,
        img_size: Sequence[int] | int,
        feature_size: int = 48,
        window_size: Sequence[int] | int = 7,
        use_v2: bool = True,
        use_checkpoint: bool = False,
        patch_merging: str | None = None,
    ) -> None:
        voxels = ensure_tuple_rep(img_size, 3)
        check_sizes(voxels, feature_size, "crop_size")
        super().__init__(
            in_channels=in_channels,
            out_channels=1,
            feature_size=feature_size,
            window_size=ensure_tuple_rep(window_size, 3),
            use_v2=use_v2,
            use_checkpoint=use_checkpoint,
            downsample=make_patch_merging(patch_merging),
        )
        self.patch_merging = patch_merging
        for name in DECODER:
            delattr(self, name)
        self.in_channels = in_channels
        self.feature_size = feature_size
        self.num_features = 24 * feature_size

    def forward(self, image: Tensor) -> Tensor:
        """Return the features of crops `(N, C, X, Y, Z)`."""
        maps = self.swinViT(image, self.normalize)
        blocks = (self.encoder1, self.encoder2, self.encoder3, self.encoder4, self.encoder10)
        inputs = (image, *maps[:3], maps[4])
        return torch.cat([block(x).mean(dim=(2, 3, 4)) for block, x in zip(blocks, inputs, strict=True)], dim=1)


class ProjectionHead(nn.Module):
    """Features `(N, F)` to embeddings `(N, D)`: three linear layers, two of them normalized over the crops.

    The normalization has no weights and no running means: an embedding depends on all the crops it is computed with, in
    evaluation too ("norm on all instances" in both codes).

    Args:
        num_features: `F`.
        embedding_dim: `D`, and the width of the layers before.
    """

    def __init__(self, num_features: int, embedding_dim: int) -> None:
        super().__init__()
        self.layer1 = _make_layer(num_features, embedding_dim)
        self.layer2 = _make_layer(embedding_dim, embedding_dim)
        self.layer3 = nn.Sequential(nn.Linear(embedding_dim, embedding_dim))

    def forward(self, features: Tensor) -> Tensor:
        """Return the embeddings.

        Raises:
            ConfigValueError: if there is one crop alone.
        """
        if len(features) < 2:
            remedy = "give it the base crops and the random crops of a volume together"
            raise ConfigValueError("projection head", "one crop", "two at least, to normalize over", remedy)
        return self.layer3(self.layer2(self.layer1(features)))


def _make_layer(width: int, embedding_dim: int) -> nn.Sequential:
    norm = nn.BatchNorm1d(embedding_dim, affine=False, track_running_stats=False)
    return nn.Sequential(nn.Linear(width, embedding_dim), norm, nn.ReLU(inplace=True))


class VoCo(nn.Module):
    """Embeddings of the crops of `VolumeCrops` by a student and, but for the variant "paper", its teacher.

    The state dict has the names of the extension: `backbone.*` and `student.*`, encoder and head of the student, and
    `teacher.*`, the teacher's head. The teacher's encoder of the variant "cvpr" is `teacher_backbone.*`. The loader's
    layout `voco` takes `backbone.*`, the student, in all variants, and leaves the rest out.

    In training the teacher moves towards the student by `1 - momentum` of the way, once in each forward pass, before it
    is asked; in evaluation it stands still. It has no gradient; optimizers get `trainable_parameters()`. Of several
    processes each computes the head on the features of all, so that it is normalized as in a single process with the
    whole batch; they must have equally many crops then. In evaluation each has its own crops only.

    Args:
        backbone: the student's encoder, with the weights to start from: the teacher is copied from it here.
        variant: "extension", "cvpr" or "paper", see the module.
        embedding_dim: length of an embedding and width of the head; None: that of the variant.
        momentum: share of the teacher that stays in a step, constant.
        dropout: share of the features that the student's head does not see; None: that of the variant.
        crops_at_once: for a grid that exceeds the memory: crops of which the encoder keeps activations at a time; they
            are computed again in the backward pass, a third more time. None: those of all crops.

    Raises:
        ConfigValueError: if a value is out of range.
    """

    def __init__(
        self,
        backbone: SwinUNETREncoder,
        variant: str = "extension",
        embedding_dim: int | None = None,
        momentum: float = 0.9,
        dropout: float | None = None,
        crops_at_once: int | None = None,
    ) -> None:
        super().__init__()
        form = get_variant(variant)
        if not 0 <= momentum <= 1:
            raise ConfigValueError("momentum", str(momentum), "a number from 0 to 1", "correct --momentum")
        if embedding_dim is not None and embedding_dim < 1:
            raise ConfigValueError(
                "embedding_dim", str(embedding_dim), "at least 1", "correct it, or null for the default"
            )
        if crops_at_once is not None and crops_at_once < 1:
            raise ConfigValueError("crops_at_once", str(crops_at_once), "at least 1", "correct it, or None for all")
        self.momentum = momentum
        self.crops_at_once = crops_at_once
        self.backbone = backbone
        self.dropout = nn.Dropout(form.dropout if dropout is None else dropout)
        self.student = ProjectionHead(backbone.num_features, embedding_dim or form.embedding_dim)
        self.teacher = copy.deepcopy(self.student) if form.has_teacher else None
        self.teacher_backbone = copy.deepcopy(backbone) if form.has_teacher and not form.shares_encoder else None
        for module in (self.teacher, self.teacher_backbone):
            if module is not None:
                module.requires_grad_(False)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the student's parameters, all that an optimizer may have."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def estimate_bytes(self, crops: VolumeCrops, batch_size: int, amp: bool = False) -> int:
        """Return the memory that a training step needs at the least; two or three times as much is usual.

        It is that of the volumes, of their crops, and of `KEPT_MAPS` of those crops that the encoder sees at a time.

        Args:
            crops: how volumes are cut.
            batch_size: volumes.
            amp: whether the encoder computes in half precision.
        """
        count = batch_size * (math.prod(crops.grid) + crops.num_crops)
        voxels = math.prod(crops.resized or crops.crop_size)
        inputs = self.backbone.in_channels * (batch_size * math.prod(crops.volume_size) + count * voxels)
        maps = KEPT_MAPS * self.backbone.feature_size * min(count, self.crops_at_once or count) * voxels
        return 4 * inputs + (2 if amp else 4) * maps

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the student's embeddings, `base` `(B, K, D)` and `random` `(B, S, D)`, in float32.

        With a teacher also its own, `teacher_base` and `teacher_random`, without gradient.

        Args:
            views: crops, `base` `(B, K, C, X, Y, Z)` and `random` `(B, S, C, X, Y, Z)`.

        Raises:
            ConfigValueError: if the memory does not hold what the encoder keeps of the crops.
        """
        volumes = len(views["base"])
        crops = torch.cat([views["base"].flatten(0, 1), views["random"].flatten(0, 1)])
        counts = [volumes * views["base"].shape[1], volumes * views["random"].shape[1]]
        if self.training:
            self._update_teacher()
        features = self._encode(self.backbone, crops)
        embeddings = {"": self._project(self.student, self.dropout(features))}
        if self.teacher is not None:
            with torch.no_grad():
                if self.teacher_backbone is not None:
                    features = self._encode(self.teacher_backbone, crops)
                embeddings["teacher_"] = self._project(self.teacher, features)
        return {
            prefix + name: part.unflatten(0, (volumes, -1))
            for prefix, both in embeddings.items()
            for name, part in zip(("base", "random"), both.split(counts), strict=True)
        }

    @torch.no_grad()
    def _update_teacher(self) -> None:
        for teacher, student in ((self.teacher, self.student), (self.teacher_backbone, self.backbone)):
            if teacher is not None:
                for follower, leader in zip(teacher.parameters(), student.parameters(), strict=True):
                    follower.lerp_(leader, 1 - self.momentum)

    def _encode(self, backbone: nn.Module, crops: Tensor) -> Tensor:
        """Return features `(N, F)`; the encoder sees each crop by itself, so that parts give the same as the whole."""
        try:
            if self.crops_at_once is None:
                return backbone(crops)
            parts = crops.split(self.crops_at_once)
            if not torch.is_grad_enabled():
                return torch.cat([backbone(part) for part in parts])
            return torch.cat([checkpoint(backbone, part, use_reentrant=False) for part in parts])
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            found = (
                f"{len(crops)} crops of {'×'.join(map(str, crops.shape[2:]))}, {self.crops_at_once or 'all'} at once"
            )
            remedy = "set --crops_at_once to fewer, or a smaller grid, batch_size or feature_size"
            raise ConfigValueError("grid", found, "crops whose activations fit into the memory", remedy) from error

    def _project(self, head: nn.Module, features: Tensor) -> Tensor:
        # float32 in mixed precision too: cosines near 1 are compared, and the head takes no time beside the encoder
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            if not (self.training and dist.is_available() and dist.is_initialized()):
                return head(features)
            return head(gather_batch(features)).chunk(dist.get_world_size())[dist.get_rank()]
