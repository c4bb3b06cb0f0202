# SPDX-License-Identifier: Apache-2.0
"""What a network will see of a data set: which structures are left, and where they lie."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, Dataset, MetaTensor, PersistentDataset
from monai.transforms import Compose, RandomizableTrait, Transform

from tools.scans import Scan

_PREPARED = 8  # cases that are prepared for the check where none are in memory
_LIMIT_S = 60.0  # 2 % of a run of an hour, with the crops; the cases that it reaches are counted
_MOSTLY = 0.5
_VANISHED = "those smaller than a voxel vanish when labels are resampled; give a finer --pixdim"


@dataclass(frozen=True)
class PreparedCases:
    """Cases as they are before the first random transform.

    Attributes:
        names: of their label files.
        counts: voxels of each class, `(cases, K)`.
        in_air: share of the structures' voxels at which the image has its lowest value, NaN without structures.
        total: cases of the data set.
    """

    names: list[str]
    counts: np.ndarray
    in_air: np.ndarray
    total: int


def read_prepared(dataset: Dataset, num_classes: int, limit_s: float = _LIMIT_S) -> PreparedCases:
    """Count what is left of the structures in the cases that are in memory, or else in a few that are prepared.

    Args:
        dataset: of MONAI, entries with `image` and `label`.
        num_classes: with the background.
        limit_s: no further case is looked at after that.
    """
    start, names, counts, in_air = time.monotonic(), [], [], []
    for index, item in _iterate(dataset):
        image, label = (_strip(item[key]) for key in ("image", "label"))
        counts.append(torch.bincount(label.flatten().int(), minlength=num_classes)[:num_classes].numpy())
        structure = (label > 0).expand(1, *label.shape[1:])[0]
        inside = image[0][structure]
        in_air.append(float((inside <= image[0].min()).float().mean()) if inside.numel() else np.nan)
        names.append(str(dataset.data[index]["label"]))
        if time.monotonic() - start > limit_s:
            break
    return PreparedCases(names, np.reshape(counts, (-1, num_classes)), np.array(in_air), len(dataset))


def describe_prepared(cases: PreparedCases, labels: Sequence[str], label_map: Mapping[int, int]) -> list[str]:
    """Return what is wrong with prepared cases, as sentences for people.

    Args:
        cases: what was counted.
        labels: names of the classes, background first.
        label_map: class of each value in the label files, to tell structures that vanish from those that never were.
    """
    told, count = [], len(cases.names)
    looked_at = f"{count} cases" if count == cases.total else f"{count} of {cases.total} cases, those looked at"
    for number in (int(place) for place in np.flatnonzero(cases.counts[:, 1:].sum(axis=0) == 0) + 1):
        if holding := [name for name in cases.names if _holds(name, label_map, [number])]:
            found = f"{labels[number]} is in {len(holding)} label files, and the network sees none of it"
            told.append(f"{found}: {_VANISHED}")
    numbers = range(1, len(labels))
    without = [name for name, row in zip(cases.names, cases.counts, strict=True) if not row[1:].any()]
    if empty := [name for name in without if _holds(name, label_map, numbers)]:  # others are told by `check_pair`
        found = f"{len(empty)} of {looked_at} have structures of which the network sees none"
        told.append(f"{found}, the first of them {empty[0]}: {_VANISHED}")
    hidden = [name for name, share in zip(cases.names, cases.in_air, strict=True) if share > _MOSTLY]
    if hidden:
        cause = "as in air; look whether label and image belong together, and at the window of `intensity`"
        place = f"the structures of {len(hidden)} of {looked_at} lie mostly where the image has its lowest value"
        told.append(f"{place}, {cause}; the first of them {hidden[0]}")
    return told


def _holds(name: str, label_map: Mapping[int, int], numbers: Collection[int]) -> bool:
    """Tell whether a label file has voxels of some classes."""
    values = [value for value, number in label_map.items() if number in numbers]
    return bool(np.isin(np.rint(Scan(name).read()), values).any())


def _iterate(dataset: Dataset) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if isinstance(dataset, CacheDataset) and len(dataset._cache):
        yield from ((index, item) for index, item in enumerate(dataset._cache) if item is not None)
        return
    for index in spread(len(dataset), _PREPARED):
        entry = dataset.data[index]
        if isinstance(dataset, PersistentDataset):
            yield index, dataset._cachecheck(entry)
        else:
            transform: Compose = dataset.transform
            yield index, transform(dict(entry), end=transform.get_index_of_first(_is_random))


def _is_random(transform: Any) -> bool:
    return isinstance(transform, RandomizableTrait) or not isinstance(transform, Transform)


def spread(count: int, most: int) -> list[int]:
    """Return at most so many places of a list, evenly over it."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(most, count))}) if count else []


def _strip(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else torch.as_tensor(tensor)
