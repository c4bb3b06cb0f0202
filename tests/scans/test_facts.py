# SPDX-License-Identifier: Apache-2.0
"""A scan at a glance: its extent by the patient's axes, its modality by its intensities, and what is odd."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from tools.demonstration import EMBEDDED
from tools.scans import read_facts


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "PSR", "IAL"])
def test_extent_is_that_to_the_right_front_and_head_whatever_the_order_of_the_axes(orientation, tmp_path):
    image = nib.Nifti1Image(np.zeros((20, 30, 40), np.int16), np.diag([2.0, 1.0, 0.5, 1.0]))
    wanted = nib.orientations.axcodes2ornt(orientation)
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted))
    nib.save(turned, tmp_path / "scan.nii.gz")
    facts = read_facts(tmp_path / "scan.nii.gz")
    assert facts.orientation == orientation
    assert facts.extent_mm == (40.0, 30.0, 20.0)
    assert sorted(facts.spacing_mm) == [0.5, 1.0, 2.0]


def test_the_embedded_scans_are_what_their_cards_say():
    for card, modality in (("msd04_hippocampus", "MR"), ("openkbp_hn", "CT")):
        for path in (EMBEDDED / card / "imagesTr").glob("*.nii.gz"):
            facts = read_facts(path)
            assert facts.modality == modality
            voxels = np.asanyarray(nib.load(path).dataobj)
            assert facts.percentiles[0] <= np.percentile(voxels, 1)
            assert facts.percentiles[2] == pytest.approx(np.median(voxels), abs=0.02 * float(np.ptp(voxels)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda image: image.header.set_xyzt_units("meter"), "its unit is m, not mm"),
        (lambda image: (image.set_qform(None, 0), image.set_sform(None, 0)), "nothing of its orientation"),
    ],
)
def test_what_is_odd_about_a_header_is_told(change, told, tmp_path):
    image = nib.Nifti1Image(np.arange(1000, dtype=np.int16).reshape(10, 10, 10), np.eye(4) * [1, 1, 1, 1])
    change(image)
    nib.save(image, tmp_path / "scan.nii.gz")
    assert any(told in oddity for oddity in read_facts(tmp_path / "scan.nii.gz").oddities)


@pytest.mark.parametrize(
    ("affine", "voxels", "told"),
    [
        ([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], 1.0, "oblique"),
        ([[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], 1.0, "not perpendicular"),
        (np.diag([1, 1, 8, 1]), 1.0, "8.0 times as long as wide"),
        (np.eye(4), 0.0, "the same value"),
        (np.eye(4), np.nan, "no number"),
    ],
)
def test_what_is_odd_about_a_grid_or_its_voxels_is_told(affine, voxels, told, tmp_path):
    data = np.random.default_rng(0).normal(0, 1, (10, 11, 12)).astype(np.float32) * voxels
    data[0, 0, 0] = 0
    image = nib.Nifti1Image(data, np.array(affine, float))
    nib.save(image, tmp_path / "scan.nii.gz")
    assert any(told in oddity for oddity in read_facts(tmp_path / "scan.nii.gz").oddities)


def test_a_border_without_data_does_not_make_an_mr_a_ct(tmp_path):
    data = np.random.default_rng(0).normal(100, 10, (10, 11, 12)).astype(np.float32)
    data[0] = -3.4e38
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "scan.nii.gz")
    facts = read_facts(tmp_path / "scan.nii.gz")
    assert facts.modality == "MR"
    assert facts.percentiles[0] > 0
    assert "some voxels are no number" in facts.oddities


def test_a_plain_scan_has_nothing_odd(tmp_path):
    data = np.random.default_rng(0).normal(100, 10, (10, 11, 12)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "scan.nii.gz")
    assert read_facts(tmp_path / "scan.nii.gz").oddities == ()
