# SPDX-License-Identifier: Apache-2.0
"""Committed models: three files that belong together, small and loadable."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml
from monai.bundle import ConfigParser

from tools.bundles import BUNDLES, CARDS
from tools.files import compute_sha256
from tools.weights import load

MODELS = sorted(BUNDLES.glob("*/models/*.yaml"))
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


@pytest.mark.parametrize("overlay", MODELS, ids=name_model)
def test_the_recipe_still_describes_the_training_that_made_the_weights(overlay: Path):
    """Defaults of train.yaml may change; what the card says of the run is in the recipe."""
    root, page = overlay.parents[1], overlay.with_suffix(".md").read_text()
    files = [root / "configs" / "train.yaml", CARDS / overlay.name, root / "configs" / "recipes" / overlay.name]
    parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in files]))
    cases, steps = map(int, re.search(r"training \| (\d+) cases, (\d+) steps", page).groups())
    epochs = int(re.search(r"weights \| epoch \d+ of (\d+)", page)[1])
    assert parser["epochs"] == epochs
    assert math.ceil(cases / parser["batch_size"]) * epochs == steps
    loss = parser.get_parsed_content("loss")
    # all were trained with cross-entropy and a Dice that counts the background, its denominator squared in volumes
    assert loss.dice.include_background
    assert loss.dice.squared_pred == ("roi_size" in yaml.safe_load((root / "configs" / "train.yaml").read_text()))
    assert (loss.dice.smooth_nr, loss.dice.smooth_dr) == (1e-5, 1e-5)
    names = [step["_target_"] for step in parser["augmentation"]]
    assert not [name for name in names if "Rotate90" in name or "Turn" in name], "none was trained with quarter turns"
