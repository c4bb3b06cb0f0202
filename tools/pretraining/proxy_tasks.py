# SPDX-License-Identifier: Apache-2.0
"""The proxy tasks of Swin UNETR's pre-training: crops are turned, and boxes cut out of them, on the device.

Source: Tang et al., Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis, CVPR 2022, section
3, and its code, github.com/Project-MONAI/research-contributions, SwinUNETR/Pretrain/utils/ops.py. The defaults are
those of the code. Where the paper differs:

- Image Rotation: the paper turns about the z axis, the code about the first axis of the array, which is X. `axis=2` is
  the paper's. Voxels that are not of equal size in the plane that turns give a quarter turn away.
- Masked Volume Inpainting: the paper cuts boxes out of a crop; in the code they hold noise, and in a second pass pieces
  of another crop of the batch, of which the paper says nothing. `swap=0` leaves that pass out.

One thing differs from the code: a box that would exceed the budget of its pass is shortened. In the code it is not, and
the removed volume exceeds the budget by up to a box, 1.4 % of the crop.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.utils import ensure_tuple_rep
from torch import Tensor

from tools.errors import ConfigValueError

AXES = "XYZ"
SMALLEST_EDGE, LARGEST_EDGE = 0.05, 0.25  # of a box, as shares of the crop's edge; the largest is excluded
DRAWN_BOXES = 192  # at a time; a budget of 0.3 takes about 140 boxes
FILL_RANGES = ("unit", "crop")


class ProxyTasks:
    """Make two corrupted views of each crop of a batch, and tell what became of them: `prepare_batch` of an engine.

    Each view is turned by itself, then boxes of it are replaced by noise, then, in a second pass, by pieces of another
    crop of the batch. Each pass has a budget, drawn uniformly up to its share of the crop's volume; voxels that two
    boxes share count twice. As in the code, the crops of a batch are corrupted one after the other, so that the pieces
    come from a crop that is corrupted already, if it is an earlier one, or clean; and it may be the crop itself, when
    the second pass is left out. With B crops that has the probability 1 / B; a batch of one has no second pass.

    The random numbers are those of torch's generator of the device, hence a function of the seed, the epoch and the
    rank alone under `tools.handlers.EpochSeed`.

    Args:
        roi_size: voxels of the crops along X, Y, Z, or one number for all three.
        axis: spatial axis about which crops are turned, 0 for X.
        turns: quarter turns to choose from; none: crops are not turned and have no `rotation`.
        cutout: largest share of the crop's volume for noise; 0: none.
        swap: largest share of the crop's volume for pieces of other crops; 0: none.
        fill_range: values of the noise in a box. "unit": from 0 to 1, for intensities scaled to that; "crop": from the
            crop's lowest value to its highest in each channel, for any others.
        seed: None for training. With a number the corruption is a function of it and of the crops of the batch alone,
            the same one in each validation, and no generator but its own is used.

    Raises:
        ConfigValueError: if a value is out of range, or a crop would have another shape when turned.
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        axis: int = 0,
        turns: Sequence[int] = (0, 1, 2, 3),
        cutout: float = 0.3,
        swap: float = 0.3,
        fill_range: str = "unit",
        seed: int | None = None,
    ) -> None:
        self.roi_size = ensure_tuple_rep(roi_size, 3)
        if axis not in (0, 1, 2):
            raise ConfigValueError("turn_axis", str(axis), "0, 1 or 2", "correct --turn_axis")
        if not set(turns) <= {0, 1, 2, 3}:
            raise ConfigValueError("turns", str(list(turns)), "quarter turns from 0 to 3", "correct it")
        for name, share in (("cutout", cutout), ("swap", swap)):
            if not 0 <= share <= 1:
                raise ConfigValueError(name, str(share), "a share from 0 to 1", "correct it")
        if fill_range not in FILL_RANGES:
            raise ConfigValueError("fill_range", repr(fill_range), f"one of {', '.join(FILL_RANGES)}", "correct it")
        if {1, 3} & set(turns) and not is_square(self.roi_size, axis):
            raise _refuse_turns(self.roi_size, axis)
        self.plane = tuple(2 + other for other in range(3) if other != axis)  # in (N, C, X, Y, Z)
        self.turns = tuple(turns)
        self.cutout = cutout
        self.swap = swap
        self.fill_range = fill_range
        self.seed = seed

    @torch.no_grad()
    def __call__(
        self,
        batch: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the views `(2B, C, X, Y, Z)`, the first ones of all crops, then the second ones, and their targets.

        The targets are `reconstruction` `(2B, C, X, Y, Z)`, the views as they were when turned; `mask` `(2B, 1, X, Y,
        Z)`, true where a box lies; and `rotation` `(2B,)`, the quarter turns, if crops are turned.

        Args:
            batch: `image`, the clean crops `(B, C, X, Y, Z)`.
            device: where to move them; None: they stay where they are.
            non_blocking: whether the copy to a GPU may overlap with computation.
            kwargs: further arguments of `Tensor.to`.
        """
        crops = batch["image"].as_subclass(Tensor)
        image = crops.to(device, non_blocking=non_blocking, **kwargs)
        generator = None if self.seed is None else make_generator(self.seed, crops, image.device)
        clean = torch.cat([image, image])
        targets = {}
        if self.turns:
            choice = torch.randint(len(self.turns), (len(clean),), generator=generator, device=clean.device)
            targets["rotation"] = torch.tensor(self.turns, device=clean.device)[choice]
            clean = self._turn(clean, targets["rotation"])
        views, mask = self._cut_out(clean, generator)
        if self.swap and len(image) > 1:
            views, swapped = self._swap(clean, views, generator)
            mask |= swapped
        return views, {"reconstruction": clean, "mask": mask, **targets}

    def _turn(self, image: Tensor, turns: Tensor) -> Tensor:
        turned = image
        for turn in set(self.turns) - {0}:
            chosen = (turns == turn).view(-1, 1, 1, 1, 1)
            turned = torch.where(chosen, torch.rot90(image, turn, self.plane), turned)
        return turned

    def _cut_out(self, clean: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return the crops `(N, C, X, Y, Z)` with boxes of noise in them, and where these are `(N, 1, X, Y, Z)`."""
        shape = clean.shape[2:]
        views, mask = clean.flatten(2).clone(), clean.new_zeros((len(clean), math.prod(shape)), dtype=torch.bool)
        boxes = draw_boxes(draw_budgets(len(clean), self.cutout, shape, generator, clean.device), shape, generator)
        sample, place, box = list_voxels(boxes, shape)
        if len(box):
            noise = torch.randn(len(box), clean.shape[1], generator=generator, device=clean.device)
            lowest = noise.new_zeros(len(boxes.sample)).scatter_reduce(
                0, box, noise.amin(1), "amin", include_self=False
            )
            highest = lowest.scatter_reduce(0, box, noise.amax(1), "amax", include_self=False)
            # a box of one voxel has no range; it gets the lowest value
            noise = (noise - lowest[box, None]) / (highest - lowest)[box, None].clamp(min=torch.finfo(noise.dtype).tiny)
            if self.fill_range == "crop":
                low, high = (bound[sample] for bound in clean.flatten(2).aminmax(dim=2))
                noise = low + noise * (high - low)
            # where boxes overlap the last one counts; the order of writing is not defined on a GPU
            last = torch.full_like(mask, -1, dtype=torch.long).flatten()
            last.scatter_reduce_(0, sample * mask.shape[1] + place, box, "amax")
            visible = last.view(mask.shape)[sample, place] == box
            views[sample[visible], :, place[visible]] = noise[visible].to(views.dtype)
            mask[sample, place] = True
        return views.view(clean.shape), mask.view(len(clean), 1, *shape)

    def _swap(self, clean: Tensor, noisy: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return the crops with pieces of each other in them, and where these are `(N, 1, X, Y, Z)`."""
        shape, count, device = clean.shape[2:], len(clean) // 2, clean.device
        partner = torch.randint(count, (2, count), generator=generator, device=device)
        budgets = draw_budgets(len(clean), self.swap, shape, generator, device)
        budgets = budgets * (partner != torch.arange(count, device=device)).flatten()
        mask = clean.new_zeros((len(clean), math.prod(shape)), dtype=torch.bool)
        sample, place, _ = list_voxels(draw_boxes(budgets, shape, generator), shape)
        mask[sample, place] = True
        mask = mask.view(len(clean), 1, *shape)
        views, half = clean.unflatten(0, (2, count)).clone(), torch.arange(2, device=device)
        for crop, (here, own) in enumerate(
            zip(mask.unflatten(0, (2, count)).unbind(1), noisy.unflatten(0, (2, count)).unbind(1), strict=True)
        ):
            views[:, crop] = torch.where(here, views[half, partner[:, crop]], own)
        return views.flatten(0, 1), mask


class Boxes(NamedTuple):
    """Boxes in the order in which they are placed: the crop `(M,)`, first voxel and edges along X, Y, Z `(M, 3)`."""

    sample: Tensor
    start: Tensor
    edge: Tensor


def draw_budgets(
    count: int, largest: float, shape: Sequence[int], generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Return voxels that boxes may take of each of `count` crops, uniform up to the share `largest`."""
    share = largest * torch.rand(count, generator=generator, device=device, dtype=torch.float64)
    return (share * math.prod(shape)).long()


def draw_boxes(budgets: Tensor, shape: Sequence[int], generator: torch.Generator | None = None) -> Boxes:
    """Place boxes in crops of `shape` until the sum of their volumes is each crop's budget.

    The box that would exceed the budget is shortened along X; less than a layer of it may remain unused.

    Args:
        budgets: voxels for each crop, whole numbers `(N,)`.
        shape: voxels of a crop along X, Y, Z.
        generator: of the device of the budgets; None: the global one.
    """
    smallest = [max(1, int(SMALLEST_EDGE * size)) for size in shape]
    largest = [max(low + 1, int(LARGEST_EDGE * size)) for low, size in zip(smallest, shape, strict=True)]
    options: dict[str, Any] = {"generator": generator, "device": budgets.device}
    drawn = (len(budgets), DRAWN_BOXES)
    placed = torch.zeros_like(budgets)
    empty = budgets.new_zeros(0)
    rounds = [Boxes(empty, empty.view(0, 3), empty.view(0, 3))]
    while bool((placed < budgets).any()):
        start = [torch.randint(0, size - low, drawn, **options) for size, low in zip(shape, smallest, strict=True)]
        edge = [torch.randint(low, high, drawn, **options) for low, high in zip(smallest, largest, strict=True)]
        edge = [torch.minimum(e, size - s) for e, s, size in zip(edge, start, shape, strict=True)]  # ends at the border
        layer = edge[1] * edge[2]
        total = placed[:, None] + (edge[0] * layer).cumsum(dim=1)
        left = budgets[:, None] - (total - edge[0] * layer)
        edge[0] = torch.minimum(edge[0], left.clamp(min=0) // layer)
        kept = edge[0].nonzero(as_tuple=True)
        rounds.append(Boxes(kept[0], torch.stack(start, -1)[kept], torch.stack(edge, -1)[kept]))
        placed = total[:, -1]
    return Boxes(*(torch.cat(parts) for parts in zip(*rounds, strict=True)))


def list_voxels(boxes: Boxes, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return of each voxel of each box its crop, its place in the flattened crop and its box, all `(P,)`."""
    volume = boxes.edge.prod(dim=1)
    box = torch.arange(len(volume), device=volume.device).repeat_interleave(volume)
    number = torch.arange(len(box), device=volume.device) - (volume.cumsum(0) - volume)[box]
    _, width, depth = boxes.edge[box].unbind(1)
    inside = torch.stack([number // (width * depth), number // depth % width, number % depth], dim=1)
    x, y, z = (boxes.start[box] + inside).unbind(1)
    return boxes.sample[box], (x * shape[1] + y) * shape[2] + z, box


def make_generator(seed: int, crops: Tensor, device: torch.device) -> torch.Generator:
    """Return a generator on `device` whose state is a function of the seed and of the values of the crops."""
    values = zlib.crc32(crops.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    state = int(np.random.SeedSequence([seed, values]).generate_state(1)[0])
    return torch.Generator(device).manual_seed(state)


def is_square(roi_size: Sequence[int], axis: int) -> bool:
    """Tell whether a crop keeps its shape in a quarter turn about a spatial axis."""
    first, second = (size for other, size in enumerate(roi_size) if other != axis)
    return first == second


def find_turn_axis(roi_size: Sequence[int]) -> int:
    """Return the spatial axis about which crops `(X, Y, Z)` keep their shape in quarter turns: X, else Z, else Y.

    X is that of the published code, Z that of the paper. X too where there is none; `ProxyTasks` says what to do then.
    """
    return next((axis for axis in (0, 2, 1) if is_square(roi_size, axis)), 0)


def _refuse_turns(roi_size: Sequence[int], axis: int) -> ConfigValueError:
    first, second = (name for other, name in enumerate(AXES) if other != axis)
    others = [str(other) for other in range(3) if is_square(roi_size, other)]
    return ConfigValueError(
        "roi_size",
        "×".join(map(str, roi_size)),
        f"the same along {first} and {second} for quarter turns about {AXES[axis]}",
        f"change it, set {f'--turn_axis {others[0]} or ' if others else ''}--turns [0,2], half turns alone",
    )
