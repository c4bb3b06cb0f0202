# SPDX-License-Identifier: Apache-2.0
"""Tensors that fit after a conversion: other projection, channels, position grid or window than in the checkpoint."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets.swin_unetr import WindowAttention
from torch import Tensor, nn

from tools.errors import ConfigValueError

# MONAI's two patch projections, "conv" and "perceptron", name their parameters differently
PROJECTION = re.compile(r"(?P<stem>.*patch_embeddings)(?P<linear>\.1)?\.(?P<kind>weight|bias)")
POSITION_TABLE = re.compile(r".*patch_embedding\.position_embeddings")
WINDOW_TABLE = re.compile(r".*\.relative_position_bias_table")
WINDOW_INDEX = re.compile(r".*\.relative_position_index")
# the layers that read the image; all others see features
INPUT_LAYERS = re.compile(r".*(swinViT\.patch_embed\.proj|encoder1\.layer\.conv[13]\.conv)\.weight")


@dataclass(frozen=True)
class Adaptation:
    """A converted tensor, what was done to it in words, and whether the network computes the same with it."""

    tensor: Tensor
    note: str
    exact: bool = False


def adapt(
    name: str, tensor: Tensor, wanted: Tensor, network: nn.Module, source_grid: Sequence[int] | None = None
) -> Adaptation | None:
    """Convert a tensor of the checkpoint to the shape of the network's tensor `name`; None if there is no way.

    Args:
        name: in the network.
        tensor: from the checkpoint, of another shape, another projection or another position grid.
        wanted: the network's own.
        network: read for its patch size and grid.
        source_grid: patches along X, Y, Z of the checkpoint's position table, for grids that are no cubes.

    Raises:
        ConfigValueError: if `source_grid` does not have as many patches as the table has rows.
    """
    if not tensor.ndim:
        return None
    converters: tuple[tuple[re.Pattern[str], Callable[[], Adaptation | None]], ...] = (
        (PROJECTION, lambda: _adapt_projection(tensor, wanted, get_sizes(network, "patch_size"))),
        (POSITION_TABLE, lambda: _adapt_positions(tensor, wanted, get_grid(network), source_grid)),
        (WINDOW_TABLE, lambda: _adapt_window_table(tensor, wanted)),
        (WINDOW_INDEX, lambda: _adapt_window_index(tensor, wanted)),
        (INPUT_LAYERS, lambda: _adapt_channels(tensor, wanted)),
    )
    return next((convert() for pattern, convert in converters if pattern.fullmatch(name)), None)


def spread_channels(weight: Tensor, channels: int) -> Tensor:
    """Return a kernel for `channels` input channels: the sum over those of `weight` `(E, C, ...)`, shared equally.

    An image that is the same in all channels gives the same response as before.
    """
    shared = weight.sum(dim=1, keepdim=True) / channels
    return shared.expand(-1, channels, *shared.shape[2:]).contiguous()


def order_as_perceptron(weight: Tensor) -> Tensor:
    """Turn the kernel of a patch convolution `(E, C, h, w, d)` into the matrix of a perceptron `(E, h * w * d * C)`.

    Both projections give the same tokens: MONAI's perceptron reads a patch voxel by voxel, channels fastest.
    """
    return weight.movedim(1, -1).flatten(1).contiguous()


def order_as_convolution(weight: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Undo `order_as_perceptron`; the number of channels follows from the matrix."""
    return weight.unflatten(1, (*patch_size, -1)).movedim(-1, 1).contiguous()


def resize_table(table: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Resample a table `(1, prod(old), E)` on a 2D or 3D grid to `(1, prod(new), E)`, last axis fastest."""
    if tuple(old) == tuple(new):
        return table
    maps = table.transpose(1, 2).unflatten(2, tuple(old)).float()
    maps = F.interpolate(maps, tuple(new), mode="bicubic" if len(old) == 2 else "trilinear", align_corners=False)
    return maps.flatten(2).transpose(1, 2).to(table.dtype).contiguous()


def get_sizes(network: nn.Module, attribute: str) -> tuple[int, ...] | None:
    """Return an attribute of a network that is a size along each axis, such as UNETR's `feat_size`; None without it."""
    value: Any = getattr(network, attribute, None)
    # SwinUNETR has one number as its `patch_size`
    return tuple(int(size) for size in value) if isinstance(value, Sequence) else None


def get_grid(network: nn.Module) -> tuple[int, ...] | None:
    """Return the patches of a ViT along X, Y and Z; None for other networks."""
    if grid := get_sizes(network, "feat_size"):
        return grid
    voxels, patch = get_sizes(network, "img_size"), get_sizes(network, "patch_size")
    return tuple(a // b for a, b in zip(voxels, patch, strict=True)) if voxels and patch else None


def is_regridded(name: str, tensor: Tensor, network: nn.Module, source_grid: Sequence[int] | None) -> bool:
    """Tell whether a position table has as many rows as the network's for another grid, as 4 × 4 × 4 and 8 × 8 × 1 do.

    Raises:
        ConfigValueError: if nobody can know, as the rows would fill a cube too.
    """
    grid = get_grid(network)
    if grid is None or not POSITION_TABLE.fullmatch(name) or tensor.ndim != 3 or tensor.shape[1] != math.prod(grid):
        return False
    if source_grid is not None:
        return tuple(source_grid) != grid
    side = round(tensor.shape[1] ** (1 / 3))
    if side**3 == tensor.shape[1] and grid != (side,) * 3:
        raise ConfigValueError(
            "position table of the checkpoint",
            f"{tensor.shape[1]} patches, which fill a grid of {_by((side,) * 3)} as well as {_by(grid)}",
            "the patches along X, Y and Z of its training crops",
            f"give source_grid: {list(grid)} if its crops had the network's size, else their size divided by 16",
        )
    return False


def has_standard_index(index: Tensor, wanted: Tensor) -> bool:
    """Tell whether a window's index of relative positions, a constant, says what the network's does.

    Half precision rounds the numbers above 2048, of which a window of 7 × 7 × 7 has 148: rounded alike they count as
    equal.
    """
    return index.shape == wanted.shape and bool(torch.equal(index, wanted.to(index.dtype)))


def _adapt_projection(tensor: Tensor, wanted: Tensor, patch_size: tuple[int, ...] | None) -> Adaptation | None:
    if tensor.shape[0] != wanted.shape[0] or (tensor.ndim == 1) != (wanted.ndim == 1):
        return None
    if tensor.ndim == 1:  # the bias is the same in both projections
        return Adaptation(tensor, "projection renamed", exact=True)
    if patch_size is None or tensor.ndim not in (2, 5) or tensor[0].numel() % math.prod(patch_size):
        return None
    kernel = tensor if tensor.ndim == 5 else order_as_convolution(tensor, patch_size)
    if tuple(kernel.shape[2:]) != patch_size:
        return None
    steps = [] if tensor.ndim == wanted.ndim else ["conv -> perceptron" if wanted.ndim == 2 else "perceptron -> conv"]
    channels = wanted[0].numel() // math.prod(patch_size)
    exact = kernel.shape[1] == channels
    if not kernel.shape[1]:
        return None
    if not exact:
        steps.append(_tell_channels(kernel.shape[1], channels))
        kernel = spread_channels(kernel, channels)
    return Adaptation(order_as_perceptron(kernel) if wanted.ndim == 2 else kernel, ", ".join(steps), exact)


def _adapt_positions(
    tensor: Tensor, wanted: Tensor, grid: tuple[int, ...] | None, source_grid: Sequence[int] | None
) -> Adaptation | None:
    if tensor.ndim != 3 or tensor.shape[2] != wanted.shape[2] or grid is None:
        return None
    rows = tensor.shape[1]
    side = round(rows ** (1 / 3))
    old = tuple(source_grid) if source_grid else (side,) * 3
    if math.prod(old) != rows:
        raise ConfigValueError(
            "source_grid" if source_grid else "position table of the checkpoint",
            f"{old} for {rows} patches" if source_grid else f"{rows} patches, which fill no cube",
            "the patches along X, Y and Z of its training crops",
            "give source_grid: [x, y, z], their crop size divided by 16",
        )
    return Adaptation(resize_table(tensor, old, grid), f"position grid {_by(old)} -> {_by(grid)}")


def _adapt_window_index(tensor: Tensor, wanted: Tensor) -> Adaptation | None:
    width = round(tensor.shape[0] ** (1 / 3))
    if width < 1 or tuple(tensor.shape) != (width**3,) * 2 or not has_standard_index(tensor, _index_window(width)):
        return None
    return Adaptation(wanted, "the index of this window size")


def _index_window(width: int) -> Tensor:
    """Return the index of relative positions in a cubic window of MONAI's."""
    attention: Any = WindowAttention(1, 1, (width,) * 3)
    return attention.relative_position_index


def _adapt_window_table(tensor: Tensor, wanted: Tensor) -> Adaptation | None:
    if tensor.ndim != 2 or wanted.ndim != 2:
        return None
    old, new = (round(table.shape[0] ** (1 / 3)) for table in (tensor, wanted))
    if tensor.shape[1:] != wanted.shape[1:] or old**3 != tensor.shape[0] or new**3 != wanted.shape[0]:
        return None
    table = resize_table(tensor.unsqueeze(0), (old,) * 3, (new,) * 3).squeeze(0)
    return Adaptation(table, f"window {(old + 1) // 2} -> {(new + 1) // 2}")


def _adapt_channels(tensor: Tensor, wanted: Tensor) -> Adaptation | None:
    if tensor.ndim != wanted.ndim or tensor.shape[0] != wanted.shape[0] or tensor.shape[2:] != wanted.shape[2:]:
        return None
    if not tensor.shape[1]:
        return None
    return Adaptation(spread_channels(tensor, wanted.shape[1]), _tell_channels(tensor.shape[1], wanted.shape[1]))


def _tell_channels(old: int, new: int) -> str:
    return f"{old} -> {new} input channels"


def _by(grid: Sequence[int]) -> str:
    return " × ".join(str(size) for size in grid)
