# SPDX-License-Identifier: Apache-2.0
"""2D decoders: feature maps of a transformer to logits, of any height and width.

A plain transformer (ViT, BEiT, DINO) has maps of one stride, its patch size; a hierarchical one (Swin) has a pyramid.
Every decoder takes both, and tells them apart by the strides.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn

from tools.errors import ConfigValueError
from tools.networks.layers import (
    NORMS,
    PyramidPooling,
    build_convolution,
    build_norm,
    build_skip,
    build_upsampling,
    describe_norm,
    resize,
)


@dataclass(frozen=True)
class Plan:
    """What a decoder reads and gives.

    Args:
        channels: channels of each feature map, in the order of the transformer.
        strides: pixels of the image per position of each map; all the same, or growing.
        in_channels: channels of the image.
        out_channels: classes, background included.
        width: channels of the decoder.
        norm: a key of `NORMS`. `group` needs no large batch and is the same on one device and on many.
        dropout_rate: share of the channels in front of the last layer that is dropped in training.

    Raises:
        ConfigValueError: if a number is out of range, `norm` is unknown or the strides are of neither kind.
    """

    channels: Sequence[int]
    strides: Sequence[int]
    in_channels: int
    out_channels: int
    width: int
    norm: str = "group"
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        for name, value in {"out_channels": self.out_channels, "decoder_channels": self.width}.items():
            if value < 1:
                raise ConfigValueError(name, str(value), "at least 1", "correct it")
        if not 0 <= self.dropout_rate < 1:
            raise ConfigValueError("dropout_rate", str(self.dropout_rate), "0 or more, less than 1", "correct it")
        if self.norm not in NORMS:
            raise ConfigValueError("norm", repr(self.norm), f"one of {', '.join(NORMS)}", "correct it")
        is_pyramid(self.strides)

    def check_count(self, wanted: int, decoder: str) -> None:
        """Raise a `ConfigValueError` if there are more or less maps than wanted."""
        if len(self.strides) != wanted:
            maps = f"{len(self.strides)} maps of strides {list(self.strides)}"
            raise ConfigValueError("depths", maps, f"{wanted} for {decoder}", "leave depths out, or give as many")


class Decoder(nn.Module, ABC):
    """Base of the decoders: maps `(B, Ci, hi, wi)` and image `(B, in, H, W)` to logits `(B, out, h, w)`.

    The logits come on the grid that the decoder ends on; the caller resamples them to that of the image.
    """

    default_width: ClassVar[int] = 256

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(plan.dropout_rate)

    @staticmethod
    def choose_depths(strides: Sequence[int]) -> list[int]:
        """Return which blocks or stages to read, given the stride of every one that the transformer has."""
        return [len(strides) - 1]

    @abstractmethod
    def forward(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:
        """Decode `maps`; only UNETR reads `image` too."""


class UPerNetDecoder(Decoder):
    """Pyramid pooling on the coarsest of the maps, then a feature pyramid; logits at the stride of the finest map.

    Of a plain transformer of patch size p, four maps are resampled to strides p/4, p/2, p and 2p first.

    Source: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018; the pyramid for plain
        transformers and the places of normalizations are those of BEiT's and TransSeg's code, with 768 channels for
        BEiT-B and 512 for Swin-B. Those of the plain pyramid have `width` channels here.
    """

    @staticmethod
    def choose_depths(strides: Sequence[int]) -> list[int]:
        """Return all stages, or blocks 3, 5, 7, 11 of 12, counted from 0."""
        if is_pyramid(strides):
            return list(range(len(strides)))
        return space_depths([round(len(strides) * share) - 1 for share in (1 / 3, 1 / 2, 2 / 3, 1)], len(strides))

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        channels, width, norm = list(plan.channels), plan.width, plan.norm
        if is_pyramid(plan.strides):
            self.pyramid = nn.ModuleList(nn.Identity() for _ in channels)
        else:
            plan.check_count(4, "upernet")
            self.pyramid = nn.ModuleList(
                (
                    nn.Sequential(
                        build_upsampling(channels[0], width),
                        build_norm(norm, width),
                        nn.GELU(),
                        build_upsampling(width, width),
                    ),
                    build_upsampling(channels[1], width),
                    nn.Identity(),
                    nn.MaxPool2d(kernel_size=2, ceil_mode=True),  # a grid of one row keeps it
                )
            )
            channels = [width, width, *channels[2:]]
        self.laterals = nn.ModuleList(build_convolution(count, width, 1, norm) for count in channels[:-1])
        self.pooling = PyramidPooling(channels[-1], width, norm)
        self.smoothings = nn.ModuleList(build_convolution(width, width, 3, norm) for _ in channels[:-1])
        self.fusion = build_convolution(len(channels) * width, width, 3, norm)
        self.classifier = nn.Conv2d(width, plan.out_channels, kernel_size=1)

    def forward(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:
        """Decode `maps`; `image` is not needed."""
        maps = [resample(features) for resample, features in zip(self.pyramid, maps, strict=True)]
        levels = [lateral(features) for lateral, features in zip(self.laterals, maps, strict=False)]
        levels.append(self.pooling(maps[-1]))
        for index in reversed(range(len(levels) - 1)):
            levels[index] = levels[index] + resize(levels[index + 1], levels[index].shape[2:])
        levels[:-1] = [smooth(level) for smooth, level in zip(self.smoothings, levels, strict=False)]
        fused = self.fusion(torch.cat([resize(level, levels[0].shape[2:]) for level in levels], dim=1))
        return self.classifier(self.dropout(fused))


class PUPDecoder(Decoder):
    """Progressive up-sampling of the last map: 3x3 convolutions, each but the last followed by a bilinear doubling.

    Logits at about stride 2, so four convolutions for patches of 14 and 16 pixels, five for stride 32.

    Source: Zheng et al., "Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers",
        CVPR 2021 (SETR-PUP); with `instance` it has the parameters of TransSeg's.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        plan.check_count(1, "setr_pup")
        counts = [plan.channels[0], *[plan.width] * count_doublings(plan.strides[0])]
        self.convolutions = nn.ModuleList(
            build_convolution(before, after, 3, plan.norm, bias=True) for before, after in pairwise(counts)
        )
        self.classifier = nn.Conv2d(plan.width, plan.out_channels, kernel_size=1)

    def forward(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:
        """Decode the one map; `image` is not needed."""
        features = maps[0]
        for index, convolution in enumerate(self.convolutions):
            if index:
                features = resize(features, [2 * size for size in features.shape[2:]])
            features = convolution(features)
        return self.classifier(self.dropout(features))


class TransposedDecoder(Decoder):
    """Transposed 2x2 convolutions of the last map, normalization and ReLU before each; logits at about stride 1.

    Source: the lightest decoder of TransSeg's code (`convtrans`); with `instance` it has the same parameters.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        plan.check_count(1, "transposed")
        counts = [plan.channels[0], *[plan.width] * (count_doublings(plan.strides[0]) - 1)]
        self.activations = nn.ModuleList(
            nn.Sequential(build_norm(plan.norm, count), nn.ReLU(inplace=True)) for count in counts
        )
        self.upsamplings = nn.ModuleList(build_upsampling(before, after) for before, after in pairwise(counts))
        self.classifier = build_upsampling(counts[-1], plan.out_channels)

    def forward(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:
        """Decode the one map; `image` is not needed."""
        features = maps[0]
        for activation, upsampling in zip(self.activations, self.upsamplings, strict=False):
            features = upsampling(activation(features))
        return self.classifier(self.dropout(self.activations[-1](features)))


class UNETRDecoder(Decoder):
    """The decoder of UNETR in 2D: skips at strides 8, 4 and 2 and the image itself, joined from coarse to fine.

    With `width` f there are f channels at stride 1, 2f at stride 2, and so on. Skips of a plain transformer are maps of
    its patch size, brought to their strides by transposed convolutions; for patches of 16 pixels this is MONAI's UNETR.
    Patches of 14 are decoded as if they were of 16, so that the strides are 7, 3.5 and 1.75, and what is at 1.75 is
    resampled to half of the image before it meets the image. Skips of a hierarchical transformer are the maps of their
    strides, and where there is none (stride 2 in Swin) the next coarser map, up-sampled.

    Source: Hatamizadeh et al., "UNETR: Transformers for 3D Medical Image Segmentation", WACV 2022.
    """

    default_width = 16  # as in MONAI's UNETR

    @staticmethod
    def choose_depths(strides: Sequence[int]) -> list[int]:
        """Return all stages, or blocks 3, 6, 9, 11 of 12 (counted from 0) for patches of 14 or 16 pixels."""
        count = len(strides)
        if is_pyramid(strides):
            return list(range(count))
        levels = count_doublings(strides[-1])
        return space_depths([*(level * count // levels for level in range(1, levels)), count - 1], count)

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        channels, width, norm = plan.channels, plan.width, plan.norm
        reached = [count_doublings(stride) for stride in plan.strides]  # a map of level n has about stride 2^n
        levels = reached[-1]
        if is_pyramid(plan.strides):
            coarse_enough = ([i for i, found in enumerate(reached) if found >= level] for level in range(1, levels))
            self.sources = [maps[0] for maps in coarse_enough]
        else:
            plan.check_count(levels, "unetr")
            self.sources = list(range(levels - 1))
        widths = [width * 2**level for level in range(levels)]
        self.stem = UnetrBasicBlock(2, plan.in_channels, width, 3, 1, describe_norm(norm, width), res_block=True)
        self.skips = nn.ModuleList(
            build_skip(channels[source], widths[level], reached[source] - level, norm)
            for level, source in enumerate(self.sources, start=1)
        )
        self.joins = nn.ModuleList(
            UnetrUpBlock(2, below, above, 3, 2, describe_norm(norm, above), res_block=True)
            for above, below in zip(widths, [*widths[1:], channels[-1]], strict=True)
        )
        self.classifier = UnetOutBlock(2, width, plan.out_channels)

    def forward(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:
        """Decode `maps` and `image`, whose height and width must be even."""
        skips = [self.stem(image)]
        skips.extend(skip(maps[source]) for skip, source in zip(self.skips, self.sources, strict=True))
        features = maps[-1]
        for join, skip in zip(reversed(self.joins), reversed(skips), strict=True):
            features = join(resize(features, [size // 2 for size in skip.shape[2:]]), skip)
        return self.classifier(self.dropout(features))


DECODERS: dict[str, type[Decoder]] = {
    "upernet": UPerNetDecoder,
    "setr_pup": PUPDecoder,
    "transposed": TransposedDecoder,
    "unetr": UNETRDecoder,
}


def is_pyramid(strides: Sequence[int]) -> bool:
    """Tell whether maps of these strides are those of a hierarchical transformer.

    Raises:
        ConfigValueError: if strides differ without each being larger than the one before.
    """
    if len(set(strides)) == 1:
        return False
    if any(fine >= coarse for fine, coarse in pairwise(strides)):
        raise ConfigValueError("encoder", f"maps of strides {list(strides)}", "equal or growing ones", "choose another")
    return True


def count_doublings(stride: int) -> int:
    """Return how many doublings undo a stride best: 4 for 14 and 16."""
    return max(1, round(math.log2(stride)))


def space_depths(depths: Sequence[int], count: int) -> list[int]:
    """Move depths down where two are the same, as happens in transformers of few blocks.

    Raises:
        ConfigValueError: if there are fewer blocks than depths.
    """
    if count < (wanted := len(depths)):
        raise ConfigValueError("encoder", f"{count} blocks", f"at least {wanted}", "choose a deeper one")
    spaced = list(depths)
    for index in reversed(range(len(spaced) - 1)):
        spaced[index] = min(spaced[index], spaced[index + 1] - 1)
    return spaced
