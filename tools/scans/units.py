# SPDX-License-Identifier: Apache-2.0
"""Units of the grid."""

from __future__ import annotations

import nibabel as nib

# spatial codes 1 (metre) and 3 (micron) of NIfTI's xyzt_units; files that leave the unit unknown (0) mean mm too
_UNIT_MM = {1: 1e3, 3: 1e-3}


def get_unit_mm(image: nib.Nifti1Image) -> float:
    """Return the length in mm of the unit of the affine, which the NIfTI header states as `xyzt_units`."""
    return _UNIT_MM.get(int(image.header["xyzt_units"]) & 0b111, 1.0)  # the higher bits are the unit of time
