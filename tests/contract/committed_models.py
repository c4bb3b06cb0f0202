# SPDX-License-Identifier: Apache-2.0
"""The committed models, and which of them stand for all of them in each commit's check."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from tools.bundles import BUNDLES

MODELS = sorted(BUNDLES.glob("*/models/*.yaml"))
IDS = {path: f"{path.parents[1].name}-{path.stem}" for path in MODELS}
# one bundle and one model for each commit, all of them before a release
SAMPLED_BUNDLE = "unetr_btcv"
SAMPLED_MODEL = BUNDLES / "inflated_vit_seg" / "models" / "msd04_hippocampus.yaml"


def sample(values: Iterable[Any], *kept: Any) -> list[Any]:
    """Mark all but those that are kept as part of a full product."""
    return [value if value in kept else pytest.param(value, marks=pytest.mark.exhaustive) for value in values]
