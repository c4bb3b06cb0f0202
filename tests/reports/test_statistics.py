# SPDX-License-Identifier: Apache-2.0
"""Numbers of structures: counted and averaged as numpy does, and marked where the border cuts them off."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from tools.reports import measure_statistics

SHAPE = (12, 10, 8)


def measure(labels: np.ndarray, tmp_path, names=None, unit: str = "mm", channels: tuple[int, ...] = ()):
    affine = np.diag([0.5, 2.0, 1.5, 1.0])
    voxels = np.random.default_rng(0).integers(-500, 500, (*SHAPE, *channels)).astype(np.int16)
    for name, content in (("scan", voxels), ("seg", labels.astype(np.uint8))):
        image = nib.Nifti1Image(content, affine)
        image.header.set_xyzt_units(unit)
        nib.save(image, tmp_path / f"{name}.nii.gz")
    names = names or {0: "background", 1: "a", 2: "b"}
    found = measure_statistics(tmp_path / "scan.nii.gz", tmp_path / "seg.nii.gz", names)
    return found, voxels


def test_volume_and_mean_are_those_of_the_voxels(tmp_path):
    labels = np.zeros(SHAPE)
    labels[2:5, 3:6, 2:4] = 1
    found, voxels = measure(labels, tmp_path)
    assert found["a"] == {
        "volume_mm3": pytest.approx(18 * 1.5),
        "mean_intensity": pytest.approx(voxels[2:5, 3:6, 2:4].mean(), abs=1e-3),
        "touches_border": False,
    }
    assert found["b"] == {"volume_mm3": 0.0, "mean_intensity": None, "touches_border": False}


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("end", [0, -1])
def test_a_structure_at_any_of_the_six_borders_is_marked(axis, end, tmp_path):
    labels = np.zeros(SHAPE)
    position = [4, 4, 4]
    position[axis] = end
    labels[tuple(position)] = 2
    found, _ = measure(labels, tmp_path)
    assert (found["a"]["touches_border"], found["b"]["touches_border"]) == (False, True)


def test_units_are_applied_and_of_several_volumes_the_first_is_measured(tmp_path):
    labels = np.zeros(SHAPE)
    labels[4, 4, 4] = 1
    found, voxels = measure(labels, tmp_path, unit="micron", channels=(3,))
    assert found["a"]["mean_intensity"] == voxels[4, 4, 4, 0]
    assert found["a"]["volume_mm3"] == 0.0  # 1.5e-9


def test_only_the_structures_that_are_named_are_measured(tmp_path):
    labels = np.zeros(SHAPE)
    labels[4, 4, 4] = 2
    assert list(measure(labels, tmp_path, names={0: "background", 2: "b"})[0]) == ["b"]
