# SPDX-License-Identifier: Apache-2.0
"""The grid of a scan in mm, and the one rule that says whether two grids are the same."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np

from tools.errors import GeometryMismatchError
from tools.scans.units import get_unit_mm

_LARGEST_SHIFT = 0.5  # voxels; rounding in files passes


def find_affine_mm(image: nib.Nifti1Image) -> np.ndarray:
    """Return where voxels lie, in mm: the sform if its code is above 0, else the qform, else the spacing alone."""
    affine = np.array(image.affine)
    affine[:3] *= get_unit_mm(image)
    return affine


def check_same_grid(
    image: nib.Nifti1Image, other: nib.Nifti1Image, image_path: str | Path, other_path: str | Path
) -> None:
    """Raise unless two volumes have the same voxels: as many, and no corner of the volume off by more than half a one.

    Args:
        image: whose grid it is.
        other: what should lie on it, a label or a segmentation.
        image_path: for the message.
        other_path: likewise.

    Raises:
        GeometryMismatchError: if shapes or places differ.
    """
    if image.shape[:3] != other.shape[:3]:
        raise GeometryMismatchError(
            other_path,
            f"shape {'×'.join(map(str, other.shape[:3]))}",
            f"{'×'.join(map(str, image.shape[:3]))} as in {image_path}",
            "resample the label to the image or pair it with the right one",
        )
    affine = find_affine_mm(image)
    corners = np.array([*itertools.product(*((0, size - 1) for size in image.shape[:3]), (1,))]).T
    shift_mm = (find_affine_mm(other) - affine)[:3] @ corners
    shift_voxels = np.abs(np.linalg.solve(affine[:3, :3], shift_mm))
    if shift_voxels.max() > _LARGEST_SHIFT:
        raise GeometryMismatchError(
            other_path,
            f"a grid up to {shift_voxels.max():.1f} voxels ({np.linalg.norm(shift_mm, axis=0).max():.1f} mm) off",
            f"the affine of {image_path} within half a voxel",
            "copy the image's affine if the voxels do fit, else resample the label",
        )
