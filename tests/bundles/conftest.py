# SPDX-License-Identifier: Apache-2.0
"""A small labelled data set, as bundles are trained with."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


def write_case(folder: Path, name: str, seed: int, shape: tuple[int, int, int] = (22, 20, 12)) -> None:
    generator = np.random.default_rng(seed)
    centre = np.array(shape) / 2 + generator.uniform(-2, 2, 3)
    distance = np.linalg.norm((np.indices(shape).T - centre).T * np.array([1, 1, 2])[:, None, None, None], axis=0)
    label = (distance < 7).astype(np.uint8) + (distance < 4).astype(np.uint8)
    image = (label * 60 - 40 + generator.normal(0, 10, shape)).astype(np.int16)  # HU
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = [10, -20, 30]
    nib.save(nib.Nifti1Image(image, affine), folder / "imagesTr" / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(label, affine), folder / "labelsTr" / f"{name}.nii.gz")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Four cases for training and two for validation: a ball in a shell, 22 x 20 x 12 voxels."""
    folder = tmp_path / "data"
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    names = [f"case_{number}" for number in range(6)]
    for number, name in enumerate(names):
        write_case(folder, name, number)
    pairs = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in names]
    (folder / "dataset.json").write_text(json.dumps({"training": pairs[:4], "validation": pairs[4:]}))
    return folder
