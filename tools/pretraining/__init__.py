# SPDX-License-Identifier: Apache-2.0
"""Self-supervised pre-training: networks with their heads, losses, and what goes into them."""

from __future__ import annotations

from tools.pretraining.omni import OmniBatch, OmniLoader, OmniLoss, OmniNetwork
from tools.pretraining.proxy_tasks import ProxyTasks, find_turn_axis
from tools.pretraining.swin_ssl import ProxyTaskLoss, SwinSSL
from tools.pretraining.views import RepeatableDataset, stack_views
from tools.pretraining.vit_autoencoder import ContrastiveViTAutoEnc, ReconstructionContrastLoss
from tools.pretraining.voco import SwinUNETREncoder, VoCo
from tools.pretraining.volume_contrast import VolumeContrastLoss
from tools.pretraining.volume_crops import VolumeCrops

__all__ = [
    "ContrastiveViTAutoEnc",
    "OmniBatch",
    "OmniLoader",
    "OmniLoss",
    "OmniNetwork",
    "ProxyTaskLoss",
    "ProxyTasks",
    "ReconstructionContrastLoss",
    "RepeatableDataset",
    "SwinSSL",
    "SwinUNETREncoder",
    "VoCo",
    "VolumeContrastLoss",
    "VolumeCrops",
    "find_turn_axis",
    "stack_views",
]
