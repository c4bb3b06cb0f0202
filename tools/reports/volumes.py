# SPDX-License-Identifier: Apache-2.0
"""Volumes of the classes of a label map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from tools.errors import LabelValueError
from tools.scans.grids import find_affine_mm
from tools.scans.nifti import read_header, read_voxels


def measure_volumes_ml(segmentation_path: str | Path, labels: Sequence[str]) -> dict[str, float]:
    """Return the volume in mL, rounded to 0.001 (1 mm³), of each class but the background.

    Args:
        segmentation_path: a NIfTI label map `(H, W, D)`.
        labels: names of the values 0, 1, 2 ...; the first is the background.

    Raises:
        MissingFileError: if there is no such file.
        UnreadableScanError: if it is no 3D NIfTI volume.
        LabelValueError: if it holds other values than those of `labels`.
    """
    image, voxels = read_labels(segmentation_path, len(labels))
    counts = count_voxels_per_slice(voxels, len(labels), axis=2).sum(axis=0)
    return dict(zip(labels[1:], convert_to_ml(counts, image)[1:].tolist(), strict=True))


def read_labels(path: str | Path, num_classes: int) -> tuple[nib.Nifti1Image, np.ndarray]:
    """Return a label map and its voxels `(H, W, D)` of an integer type, all in 0 to `num_classes` - 1.

    Raises:
        MissingFileError: if there is no such file.
        UnreadableScanError: if it is no 3D NIfTI volume.
        LabelValueError: if it holds other values.
    """
    image = read_header(path)
    voxels = read_voxels(path, image).reshape(image.shape[:3])
    low, high = voxels.min(), voxels.max()
    # NaN fails every comparison, so it is refused here too
    whole = voxels.dtype.kind in "iu" or bool((low >= 0 and high < num_classes) and (voxels == np.rint(voxels)).all())
    if not (whole and low >= 0 and high < num_classes):
        raise LabelValueError(
            path,
            f"values from {low:g} to {high:g}{'' if whole else ', not all of them whole'}",
            f"whole numbers from 0 to {num_classes - 1}",
            "give the label names that belong to this segmentation",
        )
    return image, voxels if voxels.dtype.kind in "iu" else voxels.astype(np.uint16)


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


def convert_to_ml(counts: np.ndarray, image: nib.Nifti1Image) -> np.ndarray:
    """Return the volumes in mL of numbers of voxels of `image`, rounded to 0.001."""
    voxel_mm3 = abs(np.linalg.det(find_affine_mm(image)[:3, :3]))
    return np.round(counts * voxel_mm3 / 1e3, 3)
