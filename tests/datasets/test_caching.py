# SPDX-License-Identifier: Apache-2.0
"""Prepared volumes on disk are those of the files and of the preparation of today."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import monai
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, LoadImaged, RandFlipd, ScaleIntensityRanged

from tools.datasets import DiskDataset


def test_a_cache_that_is_not_complete_gives_batches_of_the_same_voxels(write_phantom, tmp_path):
    scans = [{"image": str(write_phantom(f"scan_{seed}.nii.gz", seed=seed))} for seed in range(3)]
    load = Compose([LoadImaged(keys="image", image_only=True, ensure_channel_first=True)])
    expected = torch.stack([load(scan)["image"].as_tensor() for scan in scans])
    dataset = DiskDataset(scans, load, cache_dir=tmp_path / "cache")
    assert torch.equal(torch.as_tensor(dataset[1]["image"]), expected[1])
    for order in ([0, 1], [1, 2], [2, 1, 0]):  # one that is new before one of the disk; after one; all of the disk
        (batch,) = DataLoader(torch.utils.data.Subset(dataset, order), batch_size=3)
        assert torch.equal(torch.as_tensor(batch["image"]), expected[order])


class Counted(LoadImaged):
    """A reader that counts."""

    loaded = 0

    def __call__(self, data: Any, reader: Any = None) -> Any:
        Counted.loaded += 1
        return super().__call__(data, reader)


@pytest.fixture
def scan(write_phantom, tmp_path: Path) -> Path:
    Counted.loaded = 0
    return Path(write_phantom("scan.nii.gz", seed=0))


def read_once_more(scan: Path, folder: Path, a_max: float = 1000.0) -> torch.Tensor:
    """Read a scan as another run does, through the cache."""
    load = Counted(keys="image", image_only=True, ensure_channel_first=True)
    scale = ScaleIntensityRanged(keys="image", a_min=-1000.0, a_max=a_max, b_min=0.0, b_max=1.0)
    flip = RandFlipd(keys="image", prob=0.5)
    return torch.as_tensor(DiskDataset([{"image": str(scan)}], Compose([load, scale, flip]), folder)[0]["image"])


def test_what_has_not_changed_is_not_prepared_again(scan, tmp_path):
    for _ in range(3):
        read_once_more(scan, tmp_path / "cache")
    assert Counted.loaded == 1


def test_a_file_that_was_replaced_under_its_name_is_prepared_again(scan, write_phantom, tmp_path):
    before = read_once_more(scan, tmp_path / "cache")
    write_phantom("scan.nii.gz", seed=1)
    after = read_once_more(scan, tmp_path / "cache")
    assert Counted.loaded == 2
    assert (before - after).abs().max() > 0.01


def test_one_that_was_touched_is_prepared_again(scan, tmp_path):
    read_once_more(scan, tmp_path / "cache")
    os.utime(scan, ns=(0, scan.stat().st_mtime_ns + 1))
    read_once_more(scan, tmp_path / "cache")
    assert Counted.loaded == 2


def test_another_setting_of_a_transform_and_another_monai_prepare_again(scan, tmp_path, monkeypatch):
    before = read_once_more(scan, tmp_path / "cache")
    after = read_once_more(scan, tmp_path / "cache", a_max=500.0)
    assert (before - after).abs().max() > 0.01
    monkeypatch.setattr(monai, "__version__", "9.9")
    read_once_more(scan, tmp_path / "cache")
    assert Counted.loaded == 3
