# SPDX-License-Identifier: Apache-2.0
"""Networks that MONAI lacks; the configs refer to them as `tools.networks.<class>`."""

from __future__ import annotations

from tools.networks.crops import fit_roi_size
from tools.networks.inflated import InflatedEncoder, InflatedSegmenter, flatten_slices
from tools.networks.swin_unetr import ScriptableSwinUNETR
from tools.networks.unetr import ModifiedUNETR

__all__ = [
    "InflatedEncoder",
    "InflatedSegmenter",
    "ModifiedUNETR",
    "ScriptableSwinUNETR",
    "fit_roi_size",
    "flatten_slices",
]
