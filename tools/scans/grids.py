# SPDX-License-Identifier: Apache-2.0
"""The one rule that says whether two scans lie on the same grid."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from tools.errors import GeometryMismatchError

if TYPE_CHECKING:
    from tools.scans.scan import Scan

_LARGEST_SHIFT = 0.5  # voxels; rounding in files passes


def check_same_grid(scan: Scan, other: Scan) -> None:
    """Raise unless two volumes have the same voxels: as many, and no corner of the volume off by more than half a one.

    Args:
        scan: whose grid it is.
        other: what should lie on it, a label or a segmentation.

    Raises:
        GeometryMismatchError: if shapes or places differ.
    """
    if scan.shape != other.shape:
        raise GeometryMismatchError(
            other.path,
            f"shape {'×'.join(map(str, other.shape))}",
            f"{'×'.join(map(str, scan.shape))} as in {scan.path}",
            "resample the label to the image or pair it with the right one",
        )
    corners = np.array([*itertools.product(*((0, size - 1) for size in scan.shape), (1,))]).T
    shift_mm = (other.affine_mm - scan.affine_mm)[:3] @ corners
    shift_voxels = np.abs(np.linalg.solve(scan.affine_mm[:3, :3], shift_mm))
    if shift_voxels.max() > _LARGEST_SHIFT:
        raise GeometryMismatchError(
            other.path,
            f"a grid up to {shift_voxels.max():.1f} voxels ({np.linalg.norm(shift_mm, axis=0).max():.1f} mm) off",
            f"the affine of {scan.path} within half a voxel",
            "copy the image's affine if the voxels do fit, else resample the label",
        )
