# SPDX-License-Identifier: Apache-2.0
"""Test-time mirroring: the mean over a volume and its mirror images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from torch import Tensor

from tools.errors import ConfigValueError


class MirroringInferer(Inferer):
    """Average the logits of another inferer over a volume `(B, C, H, W, D)` mirrored along each choice of axes.

    The network should have been trained with flips along these axes and the same exchange of classes. Time grows with
    `2 ** len(axes)`: eight times for three axes, two times for one.

    Args:
        inferer: of one pass, maps the volume to logits `(B, K, H, W, D)`.
        axes: axes of the volume, 0 to 2, to mirror along.
        classes: for each class the one that it is in a mirror image; none: classes stay.
        enabled: without it this is the other inferer.

    Raises:
        ConfigValueError: if `axes` are not different numbers from 0 to 2.

    Source: nnU-Net (Isensee et al., Nature Methods 18, 2021), inference; MONAI has it for whole data sets only.
    """

    def __init__(
        self, inferer: Inferer, axes: Sequence[int] = (0, 1, 2), classes: Sequence[int] = (), enabled: bool = True
    ) -> None:
        if len(set(axes)) != len(axes) or not set(axes) <= {0, 1, 2}:
            raise ConfigValueError("mirror_axes", str(list(axes)), "different numbers from 0 to 2", "correct them")
        self.inferer = inferer
        self.classes = list(classes)
        choices = itertools.chain.from_iterable(itertools.combinations(axes, n) for n in range(1, len(axes) + 1))
        self.mirrorings = [[axis + 2 for axis in choice] for choice in choices] if enabled else []

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the mean logits.

        Args:
            inputs: volumes `(B, C, H, W, D)`.
            network: passed to the other inferer.
            args: likewise.
            kwargs: likewise.
        """
        volumes = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        logits = self.inferer(volumes, network, *args, **kwargs)
        for dims in self.mirrorings:
            mirrored = torch.flip(self.inferer(torch.flip(volumes, dims), network, *args, **kwargs), dims)
            # two flips turn the patient: right is right again
            logits += mirrored[:, self.classes] if self.classes and len(dims) % 2 else mirrored
        logits = logits / (len(self.mirrorings) + 1) if self.mirrorings else logits
        # Invertd finds its way back to the source by the header
        return convert_to_dst_type(logits, inputs, dtype=logits.dtype, device=logits.device)[0]
