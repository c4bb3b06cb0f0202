# SPDX-License-Identifier: Apache-2.0
"""Parameter groups for optimizers: what is decayed, and how fast each layer learns."""

from __future__ import annotations

from typing import Any

from timm.optim import param_groups_layer_decay
from torch import nn

from tools.errors import ConfigValueError


def group_parameters(
    network: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return the parameter groups of a network whose `encoder.model` is a transformer of timm.

    Norms, biases, class tokens and position tables are not decayed: everything with one dimension, and what the timm
    model names. (The original looked for `LayerNorm.weight` in names where it is called `norm1.weight`.) Each
    layer of the encoder learns `layer_decay` times as fast as the next one, the last as fast as the decoder.

    Args:
        network: an `InflatedSegmenter`.
        learning_rate: of the decoder.
        weight_decay: of all other parameters.
        layer_decay: 1 for the same rate everywhere; 0.65 to 0.9 are usual for pre-trained transformers.

    Raises:
        ConfigValueError: if `layer_decay` is not above 0 and at most 1.

    Source: Bao et al., "BEiT: BERT Pre-Training of Image Transformers", ICLR 2022, for the decay by layers.
    """
    if not 0 < layer_decay <= 1:
        raise ConfigValueError("layer_decay", str(layer_decay), "a number above 0, at most 1", "correct --layer_decay")
    model = network.get_submodule("encoder.model")
    list_spared: Any = getattr(model, "no_weight_decay", tuple)
    groups = param_groups_layer_decay(model, weight_decay, list_spared(), layer_decay=layer_decay)
    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"], "lr": learning_rate * group["lr_scale"]}
        for group in groups
    ]
    grouped = {id(parameter) for group in groups for parameter in group["params"]}
    others = [parameter for parameter in network.parameters() if id(parameter) not in grouped]
    for decay, flat in ((weight_decay, False), (0.0, True)):
        parameters = [parameter for parameter in others if (parameter.ndim <= 1) == flat and parameter.requires_grad]
        groups.append({"params": parameters, "weight_decay": decay, "lr": learning_rate})
    return [group for group in groups if group["params"]]
