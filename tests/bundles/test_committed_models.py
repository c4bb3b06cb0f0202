# SPDX-License-Identifier: Apache-2.0
"""Committed models: three files that belong together, small, loadable, and as good as their cards say."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow

from tools.bundles import BUNDLES, CARDS, REPOSITORY
from tools.files import compute_sha256
from tools.weights import load

MODELS = sorted(BUNDLES.glob("*/models/*.yaml"))
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
DATA_SETS = {"msd04_hippocampus": SHARED_DATA / "msd-hippocampus", "openkbp_hn": SHARED_DATA / "openkbp-hn-ct"}
SIZE_LIMIT_MB = {"inflated_vit_seg": 50, "swin_unetr_ssl": 35}  # 22 M and 15.7 M parameters; of the others 25


def name_model(overlay: Path) -> str:
    return f"{overlay.parents[1].name}/{overlay.stem}"


@pytest.mark.parametrize("overlay", MODELS, ids=name_model)
def test_weights_are_small_and_those_of_the_card(overlay: Path):
    weights, card = overlay.with_suffix(".safetensors"), overlay.with_suffix(".md").read_text()
    assert weights.stat().st_size <= SIZE_LIMIT_MB.get(overlay.parents[1].name, 25) * 1e6
    assert compute_sha256(weights) in card


@pytest.mark.parametrize("overlay", MODELS, ids=name_model)
def test_overlay_alone_makes_inference_and_evaluation_use_the_weights(overlay: Path):
    root = overlay.parents[1]
    for files in (["inference"], ["train", "evaluate"]):
        paths = [str(root / "configs" / f"{name}.yaml") for name in files] + [str(overlay)]
        parser = ConfigParser(ConfigParser.load_config_files(paths) | {"bundle_root": str(root)})
        load(parser.get_parsed_content("network_def"), parser.get_parsed_content("checkpoint"), complete=True)


@pytest.mark.parametrize("overlay", MODELS, ids=name_model)
def test_overlay_agrees_with_the_card_of_its_data_set(overlay: Path):
    model, card = (yaml.safe_load(path.read_text()) for path in (overlay, CARDS / overlay.name))
    for key in ("labels", "label_map", "orientation", "validation_cases"):
        assert model[key] == card[key]


@pytest.mark.shared_data
@pytest.mark.parametrize("overlay", MODELS, ids=name_model)
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
