# SPDX-License-Identifier: Apache-2.0
"""A scan is given to a model that was made for such scans, to the best of them, or to none."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tools.bundles import BUNDLES
from tools.commands.choice import choose_model, describe_need, fits
from tools.demonstration import EMBEDDED
from tools.models import find_model, list_models
from tools.scans import ScanFacts, read_facts

HIPPOCAMPUS = next((EMBEDDED / "msd04_hippocampus" / "imagesTr").glob("*.nii.gz"))
HEAD = next((EMBEDDED / "openkbp_hn" / "imagesTr").glob("*.nii.gz"))


def make_facts(**changes: object) -> ScanFacts:
    values = {
        "path": Path("scan.nii.gz"),
        "shape": (35, 50, 36),
        "spacing_mm": (1.0, 1.0, 1.0),
        "orientation": "RAS",
        "extent_mm": (35.0, 50.0, 36.0),
        "dtype": "int16",
        "percentiles": (0.0, 1.0, 50.0, 99.0, 100.0),
        "modality": "MR",
        "oddities": (),
    }
    return ScanFacts(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"modality": "CT"}, "is for MR, and the intensities look like CT"),
        ({"extent_mm": (180.0, 220.0, 180.0)}, "this one has 180 x 220 x 180"),
        ({"extent_mm": (35.0, 50.0, 5.0)}, "this one has 35 x 50 x 5"),
        ({"shape": (35, 50, 36, 2)}, "takes 1 volumes in a file, and there are 2"),
    ],
)
def test_a_model_fits_scans_like_those_that_it_has_seen(changes, reason):
    found = fits(find_model("unetr_btcv"), make_facts(**changes))
    assert found is None if reason is None else reason in found


def test_of_the_models_that_fit_the_one_with_the_highest_dice_is_taken_and_the_others_are_named():
    models = list_models()
    for path in (HIPPOCAMPUS, HEAD):
        facts = read_facts(path)
        fitting = [model for model in models if fits(model, facts) is None]
        chosen, why = choose_model(models, facts)
        assert chosen.dice == max(model.dice for model in fitting)
        assert all(model.name in why for model in fitting)
        assert describe_need(chosen) in why


def test_models_for_different_structures_are_listed_and_none_is_taken(tmp_path: Path):
    (tmp_path / "best.pt").touch()
    overlay = {"bundle_root": str(BUNDLES / "unetr_btcv"), "labels": ["background", "amygdala"]}
    overlay["card"] = {"modality": "MR", "extent_mm": [[31, 40, 24], [43, 59, 47]]}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(overlay))
    chosen, why = choose_model([find_model("unetr_btcv"), find_model(str(tmp_path))], make_facts())
    assert chosen is None
    assert "unetr_btcv/msd04_hippocampus fits" in why
    assert "amygdala" in why
