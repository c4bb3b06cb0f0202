# SPDX-License-Identifier: Apache-2.0
"""Weights of Swin transformers as MONAI writes them: only their numbers, once trained, tell the patch merging."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def drop_marks(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.endswith("downsample.slices")}


def pretend_training(state: Mapping[str, Tensor], form: str, seed: int = 1) -> dict[str, Tensor]:
    """Move the blocks of all patch mergings; in the original form, those that read the same voxel together."""
    generator, moved = torch.Generator().manual_seed(seed), drop_marks(state)
    for name, value in moved.items():
        if name.endswith("downsample.reduction.weight"):
            step = 0.5 * value.std() * torch.randn(value.shape, generator=generator)
            blocks = step.unflatten(1, (8, -1))
            if form == "original":
                blocks[:, 5], blocks[:, 6] = blocks[:, 2], blocks[:, 3]
            moved[name] = value + step
    return moved
