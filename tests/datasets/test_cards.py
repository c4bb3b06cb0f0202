# SPDX-License-Identifier: Apache-2.0
"""Cards say where a data set comes from, keep to the intensities of its modality and do not split patients."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from tools.bundles import CARDS, REPOSITORY

SHARED_DATA = REPOSITORY.parent / "shared" / "data"
FILES = sorted(CARDS.glob("*.yaml"))
KEYS = {
    *("card", "labels", "label_map", "validation_cases", "orientation", "pixdim", "roi_size"),
    *("intensity", "foreground_crop", "sample_above"),
}


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_card_is_complete_and_names_its_source(path: Path):
    card = read(path)
    assert set(card) >= KEYS
    assert set(card["card"]) - {"extent_mm"} == {"name", "title", "modality", "licence", "source", "citation"}
    assert card["card"]["name"] == path.stem
    assert card["labels"][0] == "background"
    assert len(set(card["labels"])) == len(card["labels"])


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "folder"), [("msd04_hippocampus", "msd-hippocampus"), ("openkbp_hn", "openkbp-hn-ct")]
)
def test_the_extent_of_a_card_is_that_of_its_scans(name: str, folder: str):
    """To the right, front and head; read by nibabel."""
    scans = sorted((SHARED_DATA / folder / "imagesTr").glob("*.nii.gz"))
    if not scans:
        pytest.skip(f"needs {folder} beside the checkout (shared/data)")
    extents = []
    for path in scans:
        image = nib.as_closest_canonical(nib.load(path))
        extents.append(np.array(image.header.get_zooms()[:3]) * image.shape[:3])
    found = np.array([np.min(extents, axis=0), np.max(extents, axis=0)])
    np.testing.assert_allclose(found, read(CARDS / f"{name}.yaml")["card"]["extent_mm"], atol=0.5)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_only_ct_has_a_window(path: Path):
    card = read(path)
    windows = [step for step in card["intensity"] if step["_target_"] == "ScaleIntensityRanged"]
    assert bool(windows) == {"CT": True, "MR": False}[card["card"]["modality"]]
    assert all(-1024 <= window["a_min"] <= 0 < window["a_max"] <= 1700 for window in windows)  # HU


@pytest.mark.parametrize(("name", "num_channels"), [("msd01_brain", 4), ("msd05_prostate", 2)])
def test_channels_of_other_units_are_scaled_by_themselves(name: str, num_channels: int):
    card = read(CARDS / f"{name}.yaml")
    assert card["in_channels"] == num_channels
    assert [step["channel_wise"] for step in card["intensity"]] == [True]


def test_both_frames_of_a_patient_of_acdc_are_on_the_same_side():
    cases = read(CARDS / "acdc.yaml")["validation_cases"]
    frames = Counter(case.partition("_")[0] for case in cases)
    assert len(set(cases)) == len(cases) == 40
    assert set(frames.values()) == {2}
