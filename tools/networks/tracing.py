# SPDX-License-Identifier: Apache-2.0
"""What `torch.jit.script` gets of a network that it cannot compile."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tools.errors import ConfigValueError


class TracedNetwork(nn.Module):
    """A traced network behind a check of the shape of images, which `torch.jit.script` compiles; any batch size.

    A trace is true for one shape only, and keeps the mode, training or evaluation, that it was made in.

    Args:
        network: maps an image `(B, *shape)` to a tensor; it stays as it is, and shares its parameters.
        shape: of images, channels first.
    """

    def __init__(self, network: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = list(shape)
        # two images: of one, the trace could not tell the batch from an axis of length 1
        images = next(network.parameters()).new_zeros(2, *shape)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # sizes are constants, as `shape` is
            # the name is that of DataParallel's part, which whoever reads state dicts knows to leave out
            self.module = torch.jit.trace(network, images, check_trace=False)

    def forward(self, images: Tensor) -> Tensor:
        """Compute what the network does."""
        found = list(images.shape[1:])
        if found != self.shape:
            raise ConfigValueError("image", f"shape {found}", f"shape {self.shape}", "give images of this shape")
        return self.module(images)
