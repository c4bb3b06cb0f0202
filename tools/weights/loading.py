# SPDX-License-Identifier: Apache-2.0
"""Loading of weights into a network: all of them or an error that says which do not fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from tools.errors import CheckpointError
from tools.weights.files import read_state_dict

logger = logging.getLogger(__name__)

Network = TypeVar("Network", bound=nn.Module)

# MONAI >= 1.4 creates these in every transformer block and uses them only for cross-attention, which no
# segmentation network here has: 24 tensors of a 12-layer UNETR that checkpoints of MONAI <= 1.3 lack.
NEVER_USED = ".norm_cross_attn."


def load(network: Network, path: str | Path) -> Network:
    """Load the weights in `path` into `network` and log what matched; refuse anything but a full match.

    Half-precision files are converted to the network's own precision. The only tensors that may be missing are
    those that never enter the forward pass (`NEVER_USED`).

    Args:
        network: the network to fill, changed in place.
        path: a checkpoint, see `read_state_dict`.

    Returns:
        `network`, so that a config can write `network: {_target_: tools.weights.load, ...}`.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is unreadable or belongs to another network.
    """
    return fill(network, read_state_dict(path), path)


def fill(network: Network, offered: Mapping[str, torch.Tensor], source: str | Path) -> Network:
    """Do what `load` does with a state dict that has been read already; `source` is named in messages.

    Raises:
        CheckpointError: if it belongs to another network.
    """
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in offered and NEVER_USED not in name]
    unexpected = [name for name in offered if name not in wanted]
    reshaped = [name for name in wanted if name in offered and offered[name].shape != wanted[name].shape]
    if missing or unexpected or reshaped:
        raise CheckpointError(
            source,
            _describe(offered, wanted, missing, unexpected, reshaped),
            f"the {len(wanted)} tensors of {type(network).__name__} as configured",
            "use the overlay that belongs to this checkpoint (models/<name>.yaml), or set the arguments of "
            "network_def (feature_size, hidden_size, num_classes, roi_size, switches) as they were in training",
        )
    network.load_state_dict({**wanted, **offered})
    parameters = sum(tensor.numel() for tensor in offered.values())
    logger.info("%s: %d of %d tensors loaded, %.1f M values", source, len(offered), len(wanted), parameters / 1e6)
    return network


def initialize(network: Network, path: str | Path | None) -> Network:
    """Start training from the weights in `path`, or from the random initialisation when `path` is None.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is unreadable or belongs to another network.
    """
    if path is None:
        logger.info("training starts from random weights")
        return network
    return load(network, path)


def _describe(
    offered: Mapping[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
    missing: list[str],
    unexpected: list[str],
    reshaped: list[str],
) -> str:
    matched = len(offered) - len(unexpected) - len(reshaped)
    parts = [f"{matched} of {len(wanted)} tensors that fit"]
    if reshaped:
        name = reshaped[0]
        shapes = f"{tuple(offered[name].shape)} instead of {tuple(wanted[name].shape)}"
        parts.append(f"{len(reshaped)} of another shape ({name} {shapes})")
    if missing:
        parts.append(f"{len(missing)} missing ({missing[0]})")
    if unexpected:
        parts.append(f"{len(unexpected)} unknown ({unexpected[0]})")
    return ", ".join(parts)
