# SPDX-License-Identifier: Apache-2.0
"""Volumes of the classes of a label map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tools.errors import LabelValueError
from tools.scans import Scan


def measure_volumes_ml(segmentation_path: str | Path, labels: Sequence[str] | Mapping[int, str]) -> dict[str, float]:
    """Return the volume in mL, rounded to 0.001 (1 mm³), of each class but the background.

    Args:
        segmentation_path: a NIfTI label map `(H, W, D)`.
        labels: names of the values 0, 1, 2 ..., or by their values; the first is the background.

    Raises:
        MissingFileError: if there is no such file.
        UnreadableScanError: if it is no 3D NIfTI volume.
        LabelValueError: if it holds other values than those of `labels`.
    """
    names = name_values(labels)
    segmentation, classes = read_labels(segmentation_path, names)
    counts = count_voxels_per_slice(classes, len(names), axis=2).sum(axis=0)
    return dict(zip([*names.values()][1:], convert_to_ml(counts, segmentation)[1:].tolist(), strict=True))


def name_values(labels: Sequence[str] | Mapping[int, str]) -> dict[int, str]:
    """Return the names by their values, which are 0, 1, 2, ... where nothing else is said."""
    return dict(labels) if isinstance(labels, Mapping) else dict(enumerate(labels))


def read_labels(path: str | Path, names: Mapping[int, str]) -> tuple[Scan, np.ndarray]:
    """Return a label map and the number of the class of each voxel, `(H, W, D)` integers, in the order of `names`.

    Args:
        path: a NIfTI label map.
        names: of the values that it may hold.

    Raises:
        MissingFileError: if there is no such file.
        UnreadableScanError: if it is no 3D NIfTI volume.
        LabelValueError: if it holds other values.
    """
    scan = Scan(path)
    voxels = scan.read()
    low, high, largest = voxels.min(), voxels.max(), max(names)
    inside = bool(low >= 0 and high <= largest)  # NaN fails every comparison, so it is refused here too
    whole = voxels.dtype.kind in "iu" or (inside and bool((voxels == np.rint(voxels)).all()))
    if inside and whole:
        numbers = np.full(largest + 1, len(names), np.uint8 if len(names) < 256 else np.uint16)
        numbers[list(names)] = range(len(names))
        classes = numbers[voxels if voxels.dtype.kind in "iu" else voxels.astype(np.int64)]
        if classes.max() < len(names):
            return scan, classes
    known = f"0 to {largest}" if list(names) == list(range(largest + 1)) else ", ".join(map(str, names))
    raise LabelValueError(
        path,
        f"values from {low:g} to {high:g}{'' if whole else ', not all of them whole'}",
        f"whole numbers from {known}" if known.startswith("0 to") else f"only {known}",
        "give the label names that belong to this segmentation",
    )


def count_voxels_per_slice(voxels: np.ndarray, num_classes: int, axis: int) -> np.ndarray:
    """Return the number of voxels of each class in each slice across `axis`, `(slices, num_classes)`.

    One slice at a time: `numpy.bincount` widens its input to eight bytes a voxel.

    Args:
        voxels: labels `(H, W, D)` in 0 to `num_classes` - 1.
        num_classes: how many classes there are, with background.
        axis: the axis that the slices are stacked along.
    """
    slices = np.moveaxis(voxels, axis, 0)
    return np.stack([np.bincount(plane.ravel(), minlength=num_classes) for plane in slices])


def convert_to_ml(counts: np.ndarray, scan: Scan) -> np.ndarray:
    """Return the volumes in mL of numbers of voxels of `scan`, rounded to 0.001."""
    voxel_mm3 = abs(np.linalg.det(scan.affine_mm[:3, :3]))
    return np.round(counts * voxel_mm3 / 1e3, 3)
