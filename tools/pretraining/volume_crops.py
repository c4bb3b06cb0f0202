# SPDX-License-Identifier: Apache-2.0
"""The pretext task of VoCo: tell by its content where in a volume a crop lies, on the device.

A volume is tiled by base crops; of a random crop is known which share of it lies in each of them. Sources: Wu et al.,
VoCo, CVPR 2024, section 3, with its code, github.com/Luffy03/VoCo, and its extension, github.com/Luffy03/
Large-Scale-Medical. All three have one layer of base crops; the defaults here are those of the extension:

|              | paper and its code                    | extension         |
|--------------|---------------------------------------|-------------------|
| grid         | 4×4×1                                 | 3×3×1             |
| base crop    | 96³, given to the network as 64³      | 64³               |
| random crops | 2                                     | 2 (supervised: 4) |
| shift        | with a probability of 0.1             | 0.5               |

Two things differ from the codes: the last place of a random crop, flush with the end of the volume, is drawn like any
other, where theirs exclude it; and a grid may have several layers, with the shares of volumes instead of areas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.utils import ensure_tuple_rep
from torch import Tensor

from tools.errors import ConfigValueError
from tools.pretraining.proxy_tasks import is_square, make_generator

Z_AXIS = 2  # crops are turned about it


class VolumeCrops:
    """Cut whole volumes into base crops and random crops, and tell their overlap: `prepare_batch` of an engine.

    Each crop is flipped, turned and shifted by itself, as published: the overlap is that of the places they were taken
    from. The random numbers are those of torch's generator of the device, hence a function of the seed, the epoch and
    the rank alone under `tools.handlers.EpochSeed`.

    Args:
        crop_size: voxels of a crop along X, Y, Z, or one number for all three.
        grid: base crops along X, Y, Z; the volume has `grid` times `crop_size` voxels. Along an axis with one of them a
            random crop has the only place there is.
        num_crops: random crops of each volume.
        resized: voxels along X, Y, Z that crops are brought to, trilinear; None: as they are.
        flip_prob: probability of a flip, along each axis.
        turn_prob: probability of a quarter turn about Z or two or three of them; one and three need crops that are
            square along X and Y.
        shift: largest shift of the intensities of a crop, up or down.
        shift_prob: probability of a shift.
        seed: None for training. With a number all that is random is a function of it and of the volumes of the batch
            alone, the same in each validation, and no generator but its own is used.

    Raises:
        ConfigValueError: if a value is out of range.
    """

    def __init__(
        self,
        crop_size: Sequence[int] | int = 64,
        grid: Sequence[int] = (3, 3, 1),
        num_crops: int = 2,
        resized: Sequence[int] | int | None = None,
        flip_prob: float = 0.2,
        turn_prob: float = 0.2,
        shift: float = 0.1,
        shift_prob: float = 0.5,
        seed: int | None = None,
    ) -> None:
        self.crop_size = ensure_tuple_rep(crop_size, 3)
        self.grid = tuple(grid)
        if len(self.grid) != 3 or min(self.grid) < 1 or math.prod(self.grid) < 2:
            raise ConfigValueError("grid", str(list(grid)), "base crops along X, Y, Z, two in all", "use [3, 3, 1]")
        if num_crops < 1:
            raise ConfigValueError("num_crops", str(num_crops), "one random crop at least", "correct --num_crops")
        for name, share in (("flip_prob", flip_prob), ("turn_prob", turn_prob), ("shift_prob", shift_prob)):
            if not 0 <= share <= 1:
                raise ConfigValueError(name, str(share), "a probability from 0 to 1", "correct it")
        if turn_prob and not is_square(self.crop_size, Z_AXIS):
            found = "×".join(map(str, self.crop_size))
            wanted = "the same along X and Y for quarter turns about Z"
            raise ConfigValueError("crop_size", found, wanted, "change it or set turn_prob to 0")
        self.num_crops = num_crops
        self.resized = None if resized is None else ensure_tuple_rep(resized, 3)
        self.flip_prob = flip_prob
        self.turn_prob = turn_prob
        self.shift = shift
        self.shift_prob = shift_prob
        self.seed = seed

    @property
    def volume_size(self) -> tuple[int, ...]:
        """Voxels of a volume along X, Y, Z."""
        return tuple(count * size for count, size in zip(self.grid, self.crop_size, strict=True))

    @torch.no_grad()
    def __call__(
        self,
        batch: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the crops, `base` `(B, K, C, x, y, z)` and `random` `(B, S, C, x, y, z)`, and the overlap `(B, S, K)`.

        Base crops are in the order of a flattened grid, those along Z next to each other.

        Args:
            batch: `image`, the volumes `(B, C, X, Y, Z)`.
            device: where to move them; None: they stay where they are.
            non_blocking: whether the copy to a GPU may overlap with computation.
            kwargs: further arguments of `Tensor.to`.

        Raises:
            ConfigValueError: if the volumes do not have the size of the grid.
        """
        volumes = batch["image"].as_subclass(Tensor)
        if volumes.shape[2:] != self.volume_size:
            grid, crop, wanted = ("×".join(map(str, size)) for size in (self.grid, self.crop_size, self.volume_size))
            found = f"volumes of {'×'.join(map(str, volumes.shape[2:]))} voxels"
            remedy = "pad, crop or resize them to it, or change grid or crop_size"
            raise ConfigValueError("image", found, f"{wanted}, {grid} crops of {crop}", remedy)
        image = volumes.to(device, non_blocking=non_blocking, **kwargs)
        generator = None if self.seed is None else make_generator(self.seed, volumes, image.device)
        starts = self._draw_starts(len(image), image.device, generator)
        crops = {"base": self._tile(image), "random": take_crops(image, starts, self.crop_size)}
        crops = {name: self._augment(part.flatten(0, 1), generator) for name, part in crops.items()}
        views = {name: part.unflatten(0, (len(image), -1)) for name, part in crops.items()}
        return views, compute_overlap(starts, self.crop_size, self.grid)

    def _draw_starts(self, count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Return the first voxels of the random crops along X, Y, Z, `(B, S, 3)`."""
        ends = [total - size + 1 for total, size in zip(self.volume_size, self.crop_size, strict=True)]
        shape = (count, self.num_crops)
        return torch.stack([torch.randint(end, shape, generator=generator, device=device) for end in ends], dim=-1)

    def _tile(self, image: Tensor) -> Tensor:
        for axis in (2, 1, 0):  # from the last one on, so that the places of the others stay
            image = image.unflatten(2 + axis, (self.grid[axis], self.crop_size[axis]))
        return image.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(1, 3)

    def _augment(self, crops: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return crops `(N, C, x, y, z)`, each resized, flipped, turned and shifted by itself, as in the codes."""

        def choose(probability: float) -> Tensor:
            drawn = torch.rand(len(crops), generator=generator, device=crops.device)
            return (drawn < probability).view(-1, 1, 1, 1, 1)

        if self.resized is not None and self.resized != self.crop_size:
            crops = F.interpolate(crops, self.resized, mode="trilinear", align_corners=True)
        if self.flip_prob:
            for axis in (2, 3, 4):
                crops = torch.where(choose(self.flip_prob), crops.flip(axis), crops)
        if self.turn_prob:
            turns = torch.randint(1, 4, (len(crops),), generator=generator, device=crops.device).view(-1, 1, 1, 1, 1)
            turns = turns * choose(self.turn_prob)
            clean = crops
            for turn in (1, 2, 3):
                crops = torch.where(turns == turn, torch.rot90(clean, turn, (2, 3)), crops)
        if self.shift_prob and self.shift:
            drawn = torch.rand(len(crops), 1, 1, 1, 1, generator=generator, device=crops.device)
            crops = crops + (2 * drawn - 1) * self.shift * choose(self.shift_prob)
        return crops


def take_crops(image: Tensor, starts: Tensor, crop_size: Sequence[int]) -> Tensor:
    """Return crops `(B, S, C, x, y, z)` of volumes `(B, C, X, Y, Z)` from their first voxels `(B, S, 3)`."""
    volume = torch.arange(len(image), device=image.device).view(-1, 1, 1, 1, 1)
    x, y, z = (
        (starts[..., axis, None] + torch.arange(size, device=image.device)).view(
            *starts.shape[:2], *(size if axis == other else 1 for other in range(3))
        )
        for axis, size in enumerate(crop_size)
    )
    return image.movedim(1, -1)[volume, x, y, z].movedim(-1, 2)


def compute_overlap(starts: Tensor, crop_size: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Return the share of each random crop that lies in each base crop, `(B, S, K)` in float32; it sums to 1 over K.

    With one layer of base crops these are areas in the plane, as published; else volumes.

    Args:
        starts: first voxels of the random crops along X, Y, Z, `(B, S, 3)`.
        crop_size: voxels of all crops along X, Y, Z.
        grid: base crops along X, Y, Z.
    """
    shares = []
    for axis, (size, count) in enumerate(zip(crop_size, grid, strict=True)):
        places = size * torch.arange(count, device=starts.device)
        shares.append((size - (starts[..., axis, None] - places).abs()).clamp(min=0).double() / size)
    x, y, z = shares
    overlap = x[..., :, None, None] * y[..., None, :, None] * z[..., None, None, :]
    return overlap.flatten(2).float()


def compute_constant_retrieval(grid: Sequence[int]) -> float:
    """Return how often one base crop, always the same, holds most of a random crop: what retrieval must exceed.

    The places of random crops are uniform, so that a base crop within the grid is nearest twice as often as one at its
    border: 1/4 of the time for 3×3×1, and not 1/9.
    """
    per_axis = [1.0 if count == 1 else (0.5 if count == 2 else 1.0) / (count - 1) for count in grid]
    return math.prod(per_axis)
