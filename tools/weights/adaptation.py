# SPDX-License-Identifier: Apache-2.0
"""Tensors that fit after a conversion: other projection, channels, position grid or window than in the checkpoint."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
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
        tensor: from the checkpoint, of another shape or another projection.
        wanted: the network's own.
        network: read for its patch size and grid.
        source_grid: patches along X, Y, Z of the checkpoint's position table, for grids that are no cubes.

    Raises:
        ConfigValueError: if `source_grid` does not have as many patches as the table has rows.
    """
    converters: tuple[tuple[re.Pattern[str], Callable[[], Adaptation | None]], ...] = (
        (PROJECTION, lambda: _adapt_projection(tensor, wanted, get_sizes(network, "patch_size"))),
        (POSITION_TABLE, lambda: _adapt_positions(tensor, wanted, get_sizes(network, "feat_size"), source_grid)),
        (WINDOW_TABLE, lambda: _adapt_window_table(tensor, wanted)),
        (WINDOW_INDEX, lambda: Adaptation(wanted, "the index of this window size")),
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
    return tuple(int(size) for size in value) if value is not None else None


def _adapt_projection(tensor: Tensor, wanted: Tensor, patch_size: tuple[int, ...] | None) -> Adaptation | None:
    if tensor.shape[0] != wanted.shape[0]:
        return None
    if tensor.ndim == 1:  # the bias is the same in both projections
        return Adaptation(tensor, "projection renamed", exact=True)
    if patch_size is None or tensor[0].numel() % math.prod(patch_size):
        return None
    kernel = tensor if tensor.ndim == 5 else order_as_convolution(tensor, patch_size)
    if tuple(kernel.shape[2:]) != patch_size:
        return None
    steps = [] if tensor.ndim == wanted.ndim else ["conv -> perceptron" if wanted.ndim == 2 else "perceptron -> conv"]
    channels = wanted[0].numel() // math.prod(patch_size)
    exact = kernel.shape[1] == channels
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


def _adapt_window_table(tensor: Tensor, wanted: Tensor) -> Adaptation | None:
    old, new = (round(table.shape[0] ** (1 / 3)) for table in (tensor, wanted))
    if tensor.shape[1:] != wanted.shape[1:] or old**3 != tensor.shape[0] or new**3 != wanted.shape[0]:
        return None
    table = resize_table(tensor.unsqueeze(0), (old,) * 3, (new,) * 3).squeeze(0)
    return Adaptation(table, f"window {(old + 1) // 2} -> {(new + 1) // 2}")


def _adapt_channels(tensor: Tensor, wanted: Tensor) -> Adaptation | None:
    if tensor.ndim != wanted.ndim or tensor.shape[0] != wanted.shape[0] or tensor.shape[2:] != wanted.shape[2:]:
        return None
    return Adaptation(spread_channels(tensor, wanted.shape[1]), _tell_channels(tensor.shape[1], wanted.shape[1]))


def _tell_channels(old: int, new: int) -> str:
    return f"{old} -> {new} input channels"


def _by(grid: Sequence[int]) -> str:
    return " × ".join(str(size) for size in grid)
