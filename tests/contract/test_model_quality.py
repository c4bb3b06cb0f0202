# SPDX-License-Identifier: Apache-2.0
"""Committed models are as good as their cards say, on embedded scans and over whole validation lists: minutes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from committed_models import IDS, MODELS, SAMPLED_MODEL
from demonstrations import check_demo
from monai.bundle import ConfigWorkflow
from products import sample

from tools.bundles import BUNDLES, REPOSITORY

SHARED_DATA = REPOSITORY.parent / "shared" / "data"
DATA_SETS = {"msd04_hippocampus": SHARED_DATA / "msd-hippocampus", "openkbp_hn": SHARED_DATA / "openkbp-hn-ct"}

pytestmark = pytest.mark.numeric
# by the demonstration another one than that of the suite
each_model, each_dice = (
    pytest.mark.parametrize("overlay", sample(MODELS, kept), ids=IDS.values())
    for kept in (BUNDLES / "swin_unetr_ssl" / "models" / "msd04_hippocampus.yaml", SAMPLED_MODEL)
)


@each_model
def test_demo_segments_the_embedded_scans_well(overlay: Path, tmp_path: Path):
    check_demo(overlay.parents[1].name, overlay.stem, tmp_path)


@pytest.mark.shared_data
@each_dice
def test_dice_on_the_validation_cases_is_that_of_the_card(overlay: Path, tmp_path: Path):
    data = DATA_SETS[overlay.stem]
    if not data.is_dir():
        pytest.skip(f"needs {data.name} beside the checkout (shared/data)")
    root = overlay.parents[1]
    workflow = ConfigWorkflow(
        [str(root / "configs" / "train.yaml"), str(root / "configs" / "evaluate.yaml"), str(overlay)],
        str(root / "configs" / "metadata.json"),
        logging_file=False,
        bundle_root=str(root),
        dataset_dir=str(data),
        output_dir=str(tmp_path),
    )
    workflow.initialize()
    torch.set_num_threads(os.cpu_count() or 1)  # the one computation here that is worth all cores
    try:
        workflow.run()
    finally:
        torch.set_num_threads(1)
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    stated = float(re.search(r"^ +mean +([0-9.]+)", overlay.with_suffix(".md").read_text(), re.MULTILINE).group(1))
    assert evaluation["mean"] == pytest.approx(stated, abs=2e-4)
    assert len(evaluation["per_case"]) == len(json.loads((data / "dataset.json").read_text())["validation"])
