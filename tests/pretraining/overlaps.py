# SPDX-License-Identifier: Apache-2.0
"""What the tests of VoCo's network and of its loss share."""

from __future__ import annotations

import torch
from torch import Tensor

VARIANTS = ("cvpr", "extension", "paper")
TERMS = ("prediction", "positive", "negative", "inter_volume", "regularization")


def make_overlap(volumes: int = 2, crops: int = 2, bases: int = 4) -> Tensor:
    """Return shares that sum to 1; in each crop the last base crop has none."""
    shares = torch.rand(volumes, crops, bases, generator=torch.Generator().manual_seed(2)) + 0.05
    shares[..., -1] = 0
    return shares / shares.sum(-1, keepdim=True)
