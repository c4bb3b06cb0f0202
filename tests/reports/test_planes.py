# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from tools.reports.colours import pick_colour
from tools.reports.planes import Case, read_case, trace_outlines

SHAPE = (20, 18, 16)


def read(tmp_path: Path, voxels: np.ndarray, labels: np.ndarray, units: str = "mm", num_classes: int = 4) -> Case:
    paths = tmp_path / "scan.nii", tmp_path / "scan_seg.nii"
    for path, array in zip(paths, (voxels, labels), strict=True):
        image = nib.Nifti1Image(array, np.diag([-2, 1, 3, 1]))
        image.header.set_xyzt_units(units)
        nib.save(image, path)
    return read_case(*paths, {value: str(value) for value in range(num_classes)})


def make_noise(low: float = 1, high: float = 100) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, SHAPE).astype(np.float32)


def test_a_slice_of_several_classes_wins_over_one_of_a_large_class(tmp_path: Path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:18, 2:16, 3] = 1  # 224 voxels of one class
    labels[4:14, 4:12, 9] = 1
    labels[15:17, 4:6, 9] = 2
    labels[15:17, 8:10, 9] = 3
    assert read(tmp_path, make_noise(), labels).slices[2] == 9


def test_a_class_is_shown_at_its_largest_cross_section(tmp_path: Path):
    labels = np.zeros(SHAPE, np.uint8)
    for k, radius in ((4, 2), (5, 4), (6, 6), (7, 3)):
        labels[10 - radius : 10 + radius, 9 - radius : 9 + radius, k] = 1
    assert read(tmp_path, make_noise(), labels).slices[2] == 6


def test_slices_count_in_ras_order_and_positions_are_in_mm_of_the_scanner(tmp_path: Path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[4, 5, 6] = 1
    case = read(tmp_path, make_noise(), labels)
    assert case.slices == (20 - 1 - 4, 5, 6)
    np.testing.assert_allclose(case.position_mm, [-8, 5, 18])
    np.testing.assert_allclose(read(tmp_path, make_noise(), labels, units="meter").position_mm, [-8e3, 5e3, 18e3])


def test_the_middle_of_the_volume_is_shown_without_labels(tmp_path: Path):
    case = read(tmp_path, make_noise(), np.zeros(SHAPE, np.uint8))
    assert case.slices == (10, 9, 8)
    assert not case.counts[1:].any()


def test_empty_borders_are_cut_but_never_a_label(tmp_path: Path):
    voxels, labels = np.zeros((50, 50, 50), np.float32), np.zeros((50, 50, 50), np.uint8)
    voxels[20:30, 20:30, 20:30] = np.random.default_rng(0).uniform(50, 100, (10, 10, 10))
    labels[40, 25, 25] = 1
    case = read(tmp_path, voxels, labels)
    assert case.grey.shape == case.voxels.shape == (21 + 4, 10 + 4, 10 + 4)  # 4 % = 2 voxels on each side
    assert case.counts[1] == 1
    np.testing.assert_allclose(case.position_mm, [-80, 25, 75])


def test_the_window_of_a_ct_shows_soft_tissue(tmp_path: Path):
    voxels = make_noise(-120, 80)
    voxels[:8] = -1000
    voxels[8] = 3000
    low, high = read(tmp_path, voxels, np.zeros(SHAPE, np.uint8)).window
    assert -200 <= low < -100
    assert 80 < high <= 500


def test_the_window_of_a_scan_in_other_units_ignores_padding_and_outliers(tmp_path: Path):
    voxels = make_noise(300, 500)
    voxels[:14] = 0
    voxels[15, 0, 0] = 1e6
    low, high = read(tmp_path, voxels, np.zeros(SHAPE, np.uint8)).window
    assert low == pytest.approx(300, abs=5)
    assert high == pytest.approx(500, abs=5)


def test_outlines_follow_the_inner_edges_of_the_voxels():
    labels = np.zeros((4, 4), np.uint8)
    labels[1:3, 1:3] = 1
    alpha = trace_outlines(labels, (40, 40))[..., 3]
    expected = np.zeros((40, 40))
    expected[10:30, 10:30] = 1
    expected[12:28, 12:28] = 0
    np.testing.assert_array_equal(alpha, expected)


def test_neighbouring_classes_keep_a_line_each():
    labels = np.repeat([[0, 1, 2, 0]], 4, axis=0).astype(np.uint8)
    row = trace_outlines(labels, (40, 40))[20]
    np.testing.assert_array_equal(np.flatnonzero(row[:, 3]), [10, 11, 18, 19, 20, 21, 28, 29])
    for columns, value in (([10, 11, 18, 19], 1), ([20, 21, 28, 29], 2)):
        np.testing.assert_allclose(row[columns, :3], [to_rgb(pick_colour(value))] * 4, atol=1e-6)


def test_no_line_is_drawn_where_the_scan_ends():
    assert not trace_outlines(np.ones((5, 5), np.uint8), (50, 50)).any()


def test_a_single_voxel_of_a_large_scan_leaves_a_dot():
    labels = np.zeros((512, 512), np.uint8)
    labels[100, 200] = 3
    alpha = trace_outlines(labels, (520, 520))[..., 3]
    assert alpha.sum() == pytest.approx((520 / 512) ** 2, rel=0.1)
    assert alpha.max() >= 0.5
