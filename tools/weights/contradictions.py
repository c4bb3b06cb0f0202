# SPDX-License-Identifier: Apache-2.0
"""Tensors of a file that fit by themselves and not together: no one network has them all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from tools.weights.adaptation import INPUT_LAYERS, PROJECTION, WINDOW_TABLE
from tools.weights.classes import HEAD, find_class_axis


def find_contradictions(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], patch_size: Sequence[int] | None
) -> dict[str, str]:
    """Return what in a file speaks against another tensor of it, by the names in the network, and how.

    Each of them could be adapted to the network on its own: input channels, windows, classes.

    Args:
        tensors: those of the file, by their names in the network.
        wanted: the network's.
        patch_size: voxels of a ViT's patch, None for other networks.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name in wanted}
    faults: dict[str, str] = {}
    for kind, numbers in (
        ("input channels", _read_channels(shapes, patch_size)),
        (
            "classes",
            {name: shape[find_class_axis(shape)] for name, shape in shapes.items() if HEAD.fullmatch(name) and shape},
        ),
    ):
        own = {name: shapes[name] == tuple(wanted[name].shape) for name in numbers}
        if len(set(numbers.values())) > 1:
            # where all differ from the network's, and among themselves, all are told
            told = [name for name in numbers if not own[name]]
            faults |= {name: f"{numbers[name]} {kind}, and others in the file have another number" for name in told}
    for name, shape in shapes.items():
        if WINDOW_TABLE.fullmatch(name) and shape:
            index = shapes.get(name.replace("bias_table", "index"))
            width = round(index[0] ** (1 / 3)) if index else 0
            if index and width**3 == index[0] and shape[0] != (2 * width - 1) ** 3:
                faults[name] = f"{shape[0]} rows for a window of {width}"
    return faults


def _read_channels(shapes: Mapping[str, tuple[int, ...]], patch_size: Sequence[int] | None) -> dict[str, int]:
    """Return how many channels of an image each layer expects that reads it."""
    channels = {}
    for name, shape in shapes.items():
        projection = PROJECTION.fullmatch(name)
        if len(shape) == 5 and (INPUT_LAYERS.fullmatch(name) or projection):
            channels[name] = shape[1]
        elif projection and len(shape) == 2 and patch_size and shape[1] % math.prod(patch_size) == 0:
            channels[name] = shape[1] // math.prod(patch_size)
    return channels
