# SPDX-License-Identifier: Apache-2.0
"""Whole volumes through networks that see a few neighbouring slices and segment the one in their middle."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from torch import Tensor
from tqdm import tqdm

from tools.errors import ConfigValueError


class SliceWindowInferer(Inferer):
    """Segment a volume slice by slice: `(B, C, H, W, D)` to logits `(B, K, H, W, D)`.

    The window of slice `s` are the slices `s - n // 2` to `s + n // 2`; beyond the ends of the volume the last slice
    is repeated. Windows are gathered for one batch at a time, so that memory does not grow with the number of slices
    beyond the volume and its logits.

    Args:
        num_slices: slices `n` of a window, odd.
        batch_size: windows in one pass of the network.
        output_device: where the logits are collected; default: that of the volume.
        progress: show a bar.

    Raises:
        ConfigValueError: if `num_slices` is even or one of the numbers is not positive.

    Source: Zhang et al., ML4H 2022, section 3, for windows of neighbouring slices.
    """

    def __init__(
        self,
        num_slices: int,
        batch_size: int = 8,
        output_device: str | torch.device | None = None,
        progress: bool = False,
    ) -> None:
        if num_slices < 1 or num_slices % 2 == 0:
            raise ConfigValueError("num_slices", str(num_slices), "an odd number, 1 or more", "use 1, 3, 5 or 7")
        if batch_size < 1:
            raise ConfigValueError("batch_size of the inferer", str(batch_size), "1 or more", "correct it")
        self.num_slices = num_slices
        self.batch_size = batch_size
        self.output_device = output_device
        self.progress = progress

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the logits of all slices.

        Args:
            inputs: volumes `(B, C, H, W, D)`.
            network: maps windows `(N, C, H, W, n)` to logits `(N, K, H, W)` of their middle slice.
            args: passed to `network`.
            kwargs: likewise.

        Raises:
            ConfigValueError: if there is no slice.
        """
        if inputs.numel() == 0:
            raise ConfigValueError("image", f"size {tuple(inputs.shape)}", "at least one slice", "check the scan")
        # windows of a MetaTensor would each carry a copy of its header
        volumes = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        depth = volumes.shape[-1]
        device = self.output_device or volumes.device
        logits: Tensor | None = None
        bar = tqdm(total=len(volumes) * depth, unit="slice", disable=not self.progress, leave=False, file=sys.stderr)
        with bar:
            for number, volume in enumerate(volumes):
                for slices in torch.arange(depth, device=volumes.device).split(self.batch_size):
                    found = network(self.gather(volume, slices), *args, **kwargs)
                    if logits is None:
                        shape = (len(volumes), found.shape[1], *found.shape[2:], depth)
                        logits = torch.empty(shape, dtype=found.dtype, device=device)
                    logits[number, ..., slices.to(device)] = found.movedim(0, -1).to(device)
                    bar.update(len(slices))
        assert logits is not None  # there is at least one slice
        # Invertd finds its way back to the source by the header
        return convert_to_dst_type(logits, inputs, dtype=logits.dtype, device=torch.device(device))[0]

    def gather(self, volume: Tensor, slices: Tensor) -> Tensor:
        """Return the windows `(N, C, H, W, n)` around N slices of a volume `(C, H, W, D)`."""
        half = self.num_slices // 2
        offsets = torch.arange(-half, half + 1, device=slices.device)
        neighbours = (slices[:, None] + offsets).clamp(0, volume.shape[-1] - 1)
        return volume[..., neighbours].movedim(-2, 0)
