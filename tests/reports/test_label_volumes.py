# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tools.errors import LabelValueError, MissingFileError, UnreadableScanError
from tools.reports import measure_volumes_ml
from tools.reports.volumes import count_voxels_per_slice

LABELS = ["background", "liver", "spleen", "kidney"]


def rotate(angle: float, axis: int) -> np.ndarray:
    first, second = {0, 1, 2} - {axis}
    rotation = np.eye(3)
    rotation[[first, second], [first, second]] = np.cos(angle)
    rotation[first, second], rotation[second, first] = -np.sin(angle), np.sin(angle)
    return rotation


def write(path: Path, voxels: np.ndarray, zooms: tuple[float, float, float] = (1, 1, 1), units: str = "mm") -> Path:
    affine = np.eye(4)
    affine[:3, :3] = rotate(0.6, 0) @ rotate(-0.3, 2) @ np.diag([-zooms[0], *zooms[1:]])  # oblique, left-handed
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units(units, "sec")
    nib.save(image, path)
    return path


def make_labels(dtype: type = np.uint8) -> np.ndarray:
    labels = np.zeros((12, 10, 8), dtype)
    labels[2:6, 1:6, 1:6] = 1  # 100 voxels
    labels[8:10, 2:7, 2:4] = 2  # 20 voxels
    return labels


@pytest.mark.parametrize(
    ("units", "scale"), [("mm", 1), ("unknown", 1), ("meter", 1e-3), ("micron", 1e3)], ids=["mm", "?", "m", "um"]
)
def test_volumes_follow_the_oblique_grid_and_its_unit(units: str, scale: float, tmp_path: Path):
    zooms = (2 * scale, 2.5 * scale, 4 * scale)
    volumes_ml = measure_volumes_ml(write(tmp_path / "seg.nii.gz", make_labels(), zooms, units), LABELS)
    assert volumes_ml == {"liver": pytest.approx(2.0), "spleen": pytest.approx(0.4), "kidney": 0}


def test_volumes_are_rounded_to_a_cubic_millimetre(tmp_path: Path):
    assert measure_volumes_ml(write(tmp_path / "seg.nii", make_labels(), (0.7, 0.7, 0.7)), LABELS) == {
        "liver": 0.034,
        "spleen": 0.007,
        "kidney": 0.0,
    }


def test_whole_numbers_stored_as_floats_are_labels(tmp_path: Path):
    paths = [write(tmp_path / f"{dtype.__name__}.nii", make_labels(dtype)) for dtype in (np.uint8, np.float32)]
    assert measure_volumes_ml(paths[0], LABELS) == measure_volumes_ml(paths[1], LABELS)


@pytest.mark.parametrize("value", [4, -1, 0.5, np.nan])
def test_values_that_are_no_label_are_refused(value: float, tmp_path: Path):
    labels = make_labels(np.float32)
    labels[0, 0, 0] = value
    with pytest.raises(LabelValueError, match="whole numbers from 0 to 3"):
        measure_volumes_ml(write(tmp_path / "seg.nii", labels), LABELS)


def test_a_segmentation_that_is_not_3d_is_refused(tmp_path: Path):
    with pytest.raises(UnreadableScanError, match="3D volume"):
        measure_volumes_ml(write(tmp_path / "seg.nii", np.zeros((4, 4, 4, 2), np.uint8)), LABELS)
    with pytest.raises(MissingFileError):
        measure_volumes_ml(tmp_path / "none.nii", LABELS)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_counted_along_each_axis(axis: int):
    labels = np.random.default_rng(0).integers(0, 3, (5, 6, 7)).astype(np.uint8)
    counts = count_voxels_per_slice(labels, 4, axis)
    others = tuple({0, 1, 2} - {axis})
    np.testing.assert_array_equal(counts, np.stack([(labels == value).sum(axis=others) for value in range(4)], axis=1))
