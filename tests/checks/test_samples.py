# SPDX-License-Identifier: Apache-2.0
"""What a network will see of a data set is looked at before it is trained: structures that vanish are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.data import CacheDataset, Dataset
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, MapLabelValued, RandFlipd, Spacingd

from tools.checks.samples import describe_prepared, read_prepared, spread
from tools.datasets import DiskDataset

LABELS = ["background", "ball", "dot"]
LABEL_MAP = {0: 0, 7: 1, 9: 2}


def write_case(folder: Path, number: int, dot: bool = True, ball: bool = True, air: bool = False) -> dict[str, str]:
    """Write a bright ball of 8 voxels and a dot of two, 1 mm, all values of the image different."""
    distance = np.linalg.norm(np.moveaxis(np.indices((20, 20, 20)), 0, -1) - [10, 10, 10], axis=-1)
    label = np.where((distance < 4) & ball, 7, 0).astype(np.int16)
    image = np.where(distance < 4, 100, 0) + np.random.default_rng(number).uniform(-1, 0, distance.shape)
    if air:
        image[distance < 4] = -500
    if dot:
        label[3, 3, 3:5] = 9
    paths = {key: str(folder / f"{key}_{number}.nii.gz") for key in ("image", "label")}
    nib.save(nib.Nifti1Image(image.astype(np.float32), np.eye(4)), paths["image"])
    nib.save(nib.Nifti1Image(label, np.eye(4)), paths["label"])
    return paths


def make_dataset(cases: list[dict[str, str]], spacing_mm: float, kind: str = "memory", **options: Any) -> Dataset:
    keys = ["image", "label"]
    steps = [
        LoadImaged(keys),
        EnsureChannelFirstd(keys),
        MapLabelValued("label", orig_labels=[0, 7, 9], target_labels=[0, 1, 2]),
        Spacingd(keys, pixdim=[spacing_mm] * 3, mode=["bilinear", "nearest"]),
        RandFlipd(keys, prob=0.5),
    ]
    if kind == "memory":
        return CacheDataset(cases, Compose(steps), progress=False, **options)
    return DiskDataset(cases, Compose(steps), **options) if kind == "disk" else Dataset(cases, Compose(steps))


def look(cases: list[dict[str, str]], spacing_mm: float = 1.0) -> list[str]:
    return describe_prepared(read_prepared(make_dataset(cases, spacing_mm), len(LABELS)), LABELS, LABEL_MAP)


def test_sound_cases_are_passed_over(tmp_path):
    assert look([write_case(tmp_path, number) for number in range(3)]) == []


def test_a_structure_that_vanishes_at_the_spacing_of_the_network_is_told(tmp_path):
    (told,) = look([write_case(tmp_path, number) for number in range(3)], spacing_mm=4.0)
    assert told.startswith(
        "dot is in 3 label files, and the network sees none of it: those smaller than a voxel vanish"
    )


def test_one_that_no_file_has_is_not_said_to_vanish(tmp_path):
    assert look([write_case(tmp_path, number, dot=False) for number in range(2)], spacing_mm=4.0) == []


def test_cases_of_which_nothing_is_left_are_named(tmp_path):
    cases = [
        write_case(tmp_path, 0),
        write_case(tmp_path, 1, ball=False),
        write_case(tmp_path, 2, ball=False, dot=False),
    ]
    told = look(cases, spacing_mm=4.0)
    assert any(text.startswith("1 of 3 cases have structures of which the network sees none") for text in told)
    assert any(f"the first of them {cases[1]['label']}" in text for text in told)


def test_structures_that_lie_in_air_are_told(tmp_path):
    cases = [write_case(tmp_path, 0), write_case(tmp_path, 1, air=True)]
    (told,) = look(cases)
    assert told.startswith("the structures of 1 of 2 cases lie mostly where the image has its lowest value, as in air")
    assert cases[1]["label"] in told


@pytest.mark.parametrize(("kind", "looked_at"), [("memory", 10), ("disk", 8), ("none", 8)])
def test_all_cases_in_memory_are_looked_at_and_a_few_of_others(tmp_path, kind, looked_at):
    cases = [write_case(tmp_path, number) for number in range(10)]
    options = {"cache_dir": tmp_path / "cache"} if kind == "disk" else {}
    prepared = read_prepared(make_dataset(cases, 1.0, kind, **options), len(LABELS))
    assert (len(prepared.names), prepared.total) == (looked_at, 10)
    label = np.asanyarray(nib.load(cases[0]["label"]).dataobj)
    assert prepared.counts[0].tolist() == [int((label == value).sum()) for value in (0, 7, 9)]


def test_the_look_ends_when_its_time_is_up(tmp_path):
    cases = [write_case(tmp_path, number) for number in range(4)]
    assert len(read_prepared(make_dataset(cases, 1.0), len(LABELS), limit_s=0.0).names) == 1


def test_places_are_spread_over_a_list():
    assert spread(10, 3) == [0, 4, 9]
    assert spread(2, 8) == [0, 1]
    assert spread(0, 8) == []
