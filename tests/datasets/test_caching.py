# SPDX-License-Identifier: Apache-2.0
"""Volumes on disk and volumes prepared just now go into one batch."""

from __future__ import annotations

import torch
from monai.data import DataLoader
from monai.transforms import Compose, LoadImaged

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
