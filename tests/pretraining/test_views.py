# SPDX-License-Identifier: Apache-2.0
"""Views are stacked, and validation always sees the same crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, PersistentDataset
from monai.transforms import (
    Compose,
    CopyItemsd,
    OneOf,
    RandCoarseDropoutd,
    RandCoarseShuffled,
    RandSpatialCropSamplesd,
    ScaleIntensityd,
)
from monai.utils import set_determinism

from tools.pretraining import RepeatableDataset, stack_views


def test_views_are_stacked_behind_each_other_with_the_clean_crop_for_each():
    batch = {key: MetaTensor(torch.rand(2, 1, 3, 4, 5)) for key in ("image", "view_1", "view_2")}
    views, target = stack_views(batch, "cpu")
    assert type(views) is type(target) is torch.Tensor
    assert torch.equal(views[:2], batch["view_1"].as_tensor())
    assert torch.equal(views[2:], batch["view_2"].as_tensor())
    assert torch.equal(target[:2], batch["image"].as_tensor())
    assert torch.equal(target[2:], batch["image"].as_tensor())
    assert stack_views(batch, dtype=torch.float64)[0].dtype == torch.float64


def make_transform() -> Compose:
    return Compose(
        [
            ScaleIntensityd("image"),
            RandSpatialCropSamplesd("image", (8, 8, 8), num_samples=2, random_size=False),
            CopyItemsd("image", 2, ["view_1", "view_2"]),
            OneOf([RandCoarseDropoutd("view_1", 2, 3, prob=1.0), RandCoarseDropoutd("view_1", 2, 5, False, prob=1.0)]),
            RandCoarseShuffled("view_2", 3, 3, prob=0.8),
        ]
    )


DATA = [{"image": torch.rand(1, 12, 12, 12, generator=torch.Generator().manual_seed(case))} for case in range(3)]


def collect(dataset: RepeatableDataset, num_workers: int = 0) -> dict[str, torch.Tensor]:
    batches = list(DataLoader(dataset, batch_size=2, num_workers=num_workers))
    return {key: torch.cat([batch[key] for batch in batches]) for key in ("image", "view_1", "view_2")}


def is_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.costs(processes=1)
@pytest.mark.parametrize("cache_rate", [0.0, 0.5, 1.0])
def test_items_are_the_same_in_every_pass_and_with_any_number_of_workers(cache_rate):
    dataset = RepeatableDataset(CacheDataset(DATA, make_transform(), cache_rate=cache_rate, progress=False))
    first = collect(dataset)
    set_determinism(seed=123)
    assert is_equal(collect(dataset), first)
    set_determinism(seed=None)
    if cache_rate == 1:
        assert is_equal(collect(dataset, num_workers=1), first)
    alone = dataset[-1]  # the order of reading plays no role
    assert torch.equal(alone[1]["view_1"], first["view_1"][5])


def test_items_are_the_same_when_kept_on_disk(tmp_path):
    direct = RepeatableDataset(Dataset(DATA, make_transform()))
    kept = RepeatableDataset(PersistentDataset(DATA, make_transform(), tmp_path))
    expected = collect(direct)
    assert is_equal(collect(kept), expected)  # prepared
    assert len(list(tmp_path.glob("*.pt"))) == len(DATA)
    assert is_equal(collect(kept), expected)  # read


def test_items_differ_from_each_other_and_with_the_seed():
    first, second = (RepeatableDataset(Dataset(DATA[:1] * 2, make_transform()), seed=s) for s in (0, 1))
    assert not torch.equal(first[0][0]["image"], first[1][0]["image"])
    assert not torch.equal(first[0][0]["image"], second[0][0]["image"])


def test_reading_disturbs_no_generator_of_the_training():
    transform = make_transform().set_random_state(seed=5)
    untouched = make_transform().set_random_state(seed=5)
    dataset = RepeatableDataset(CacheDataset(DATA, transform, progress=False))
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    for item in dataset:
        assert len(item) == 2
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(transform(DATA[0])[0]["view_1"], untouched(DATA[0])[0]["view_1"])
