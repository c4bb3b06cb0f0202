# SPDX-License-Identifier: Apache-2.0
"""The pre-trained weights that timm names for its models, fetched as other public weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tools.errors import ConfigValueError
from tools.weights.downloads import download
from tools.weights.timm_encoders import takes_timm


def fetch_timm(network: nn.Module, folder: str | Path | None = None, mirror: str | None = None) -> Path:
    """Download the weights that timm has for the encoder of an `InflatedSegmenter`, unless they are there already.

    Args:
        network: read for the name of its encoder.
        folder: where the file goes; default: `timm` in torch's cache of models.
        mirror: as of `download`.

    Raises:
        ConfigValueError: if the encoder is no model of timm, or timm has no weights for it.
        DownloadError: if they cannot be had; its text says what to do by hand.
    """
    if not takes_timm(network):
        raise ConfigValueError("pretrained", "timm", "a file, for this network", "give --pretrained FILE")
    import timm  # takes 2 s, and most networks do without

    encoder: Any = network.get_submodule("encoder")
    config = timm.get_pretrained_cfg(encoder.name)
    if config is None or not config.hf_hub_id:
        raise ConfigValueError(
            "pretrained", f"timm, which has no weights for {encoder.name}", "a file", "give --pretrained FILE"
        )
    target = Path(folder or Path(torch.hub.get_dir()) / "timm") / f"{Path(config.hf_hub_id).name}.safetensors"
    return download(f"https://huggingface.co/{config.hf_hub_id}/resolve/main/model.safetensors", target, mirror=mirror)
