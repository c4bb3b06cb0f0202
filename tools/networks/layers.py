# SPDX-License-Identifier: Apache-2.0
"""2D layers that the decoders share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution, UnetrBasicBlock, UnetrPrUpBlock
from monai.networks.layers.utils import get_norm_layer
from torch import Tensor, nn

NORMS = ("group", "batch", "instance")
POOLING_SCALES = (1, 2, 3, 6)  # edges of the grids that UPerNet pools its coarsest map to


def describe_norm(norm: str, channels: int) -> tuple[str, dict[str, int]]:
    """Return MONAI's description of a normalization; group norm has up to 32 groups of 8 channels or more."""
    if norm != "group":
        return norm, {}
    fitting = (groups for groups in range(1, 33) if channels % groups == 0 and channels // groups >= 8)
    return norm, {"num_groups": max(fitting, default=1)}


def build_norm(norm: str, channels: int) -> nn.Module:
    """Build a 2D normalization layer; see `describe_norm`."""
    return get_norm_layer(describe_norm(norm, channels), spatial_dims=2, channels=channels)


def build_convolution(channels: int, width: int, kernel_size: int, norm: str, bias: bool = False) -> nn.Module:
    """Build convolution, normalization and ReLU, which keep the height and width."""
    return Convolution(
        2,
        channels,
        width,
        1,
        kernel_size,
        "NA",
        act=("RELU", {"inplace": True}),
        norm=describe_norm(norm, width),
        bias=bias,
    )


def build_upsampling(channels: int, width: int) -> nn.Module:
    """Build a transposed convolution that doubles height and width."""
    return nn.ConvTranspose2d(channels, width, kernel_size=2, stride=2)


def build_skip(channels: int, width: int, doublings: int, norm: str) -> nn.Module:
    """Build the layers between a map and its skip, which is 2^`doublings` times as large."""
    name = describe_norm(norm, width)
    if not doublings:
        return UnetrBasicBlock(2, channels, width, 3, 1, name, res_block=True)
    return UnetrPrUpBlock(2, channels, width, doublings - 1, 3, 1, 2, name, conv_block=True, res_block=True)


def resize(features: Tensor, size: Sequence[int]) -> Tensor:
    """Resample `(B, C, h, w)` bilinearly to `size`; return it as it is where it has that size."""
    if list(features.shape[2:]) == list(size):
        return features
    return F.interpolate(features, list(size), mode="bilinear", align_corners=False)


class PyramidPooling(nn.Module):
    """Means of a map `(B, C, h, w)` over grids of 1, 2, 3 and 6 cells, joined with it: `(B, width, h, w)`.

    The branch of one cell has group norm whatever `norm` is: there, instance norm sees a single value and so does
    batch norm in a batch of one, and a single value minus its mean is nothing.

    Source: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017.
    """

    def __init__(self, channels: int, width: int, norm: str) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(scale), build_convolution(channels, width, 1, "group" if scale == 1 else norm)
            )
            for scale in POOLING_SCALES
        )
        self.fusion = build_convolution(channels + len(POOLING_SCALES) * width, width, 3, norm)

    def forward(self, features: Tensor) -> Tensor:
        """Pool, project and join."""
        pooled = [resize(branch(features), features.shape[2:]) for branch in self.branches]
        return self.fusion(torch.cat([features, *pooled], dim=1))
