# SPDX-License-Identifier: Apache-2.0
"""The committed models, and which of them stand for all of them in each commit's check."""

from __future__ import annotations

from tools.bundles import BUNDLES

MODELS = sorted(BUNDLES.glob("*/models/*.yaml"))
IDS = {path: f"{path.parents[1].name}-{path.stem}" for path in MODELS}
# one bundle and one model for each commit, those that take least; all of them before a release
SAMPLED_BUNDLE = "unetr_btcv"
SAMPLED_MODEL = BUNDLES / SAMPLED_BUNDLE / "models" / "msd04_hippocampus.yaml"
