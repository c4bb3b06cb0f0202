# SPDX-License-Identifier: Apache-2.0
"""Orders of axes, and kinds of headers that say the same."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np

ORDERS = [
    "".join(letters)
    for axes in itertools.permutations(("LR", "PA", "IS"))
    for letters in itertools.product(*axes)
]  # fmt: skip
KINDS = ["sform", "qform", "both", "template", "pixdim 1e-6", "pixdim 1e-4", "pixdim 1e-2"]


def turn(image: nib.Nifti1Image, order: str) -> nib.Nifti1Image:
    wanted = nib.orientations.axcodes2ornt(order)
    return image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted))


def write(image: nib.Nifti1Image, path: Path, kind: str) -> Path:
    """Write a file whose place stands in one of the forms, perhaps with a spacing that is a little off."""
    affine = image.affine
    fresh = nib.Nifti1Image(np.asanyarray(image.dataobj), affine)
    fresh.set_sform(affine, 0 if kind == "qform" else 1)
    fresh.set_qform(affine, 1 if kind in ("qform", "both") else 0)
    if kind.startswith("pixdim"):  # as tools that round leave it; the qform is said to be none and is another
        fresh.header["pixdim"][1:4] *= 1 + float(kind.removeprefix("pixdim "))
        fresh.header["quatern_b"], fresh.header["quatern_c"], fresh.header["quatern_d"] = 0, 0, 0
        fresh.header["pixdim"][0] = 1
    if kind == "template":  # registered: the qform is where the scanner saw the patient
        fresh.set_sform(affine, 4)
        turned = np.array(affine)
        turned[:3] = nib.eulerangles.euler2mat(0.2, 0.1, -0.3) @ affine[:3]
        fresh.set_qform(turned, 1)
    nib.save(fresh, path)
    return path
