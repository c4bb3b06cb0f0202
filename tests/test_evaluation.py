# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import nibabel as nib
import numpy as np
import pytest

from tools.errors import GeometryMismatchError, LabelValueError, MissingFileError
from tools.evaluation import measure_dice

RAS, LPI = np.diag([1.5, 1.5, 2, 1]), np.diag([-1.5, -1.5, -2, 1])
LABELS = ["background", "liver", "spleen", "aorta"]


@pytest.fixture
def write_labels(tmp_path):
    def write(name, voxels, affine=RAS):
        nib.save(nib.Nifti1Image(voxels.astype(np.uint8), affine), tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def label():
    voxels = np.zeros((8, 8, 8))
    voxels[:4, :4] = 1  # 128 voxels
    voxels[4:, 4:, :2] = 2  # 32 voxels
    return voxels


def test_dice_is_that_of_the_definition(write_labels, label):
    segmentation = np.roll(label, 1, axis=0)  # liver and spleen keep three quarters
    dice = measure_dice(write_labels("a.nii.gz", segmentation), write_labels("b.nii.gz", label), LABELS)
    assert dice["liver"] == pytest.approx(2 * 96 / (128 + 128))
    overlap = ((segmentation == 2) & (label == 2)).sum()
    assert dice["spleen"] == pytest.approx(2 * overlap / ((segmentation == 2).sum() + 32))


def test_values_of_the_reference_become_classes_by_the_map(write_labels, label):
    reference = write_labels("b.nii.gz", np.choose(label.astype(int), [0, 7, 2, 5]))  # liver is 7, 5 is background
    segmentation = write_labels("a.nii.gz", np.choose(np.roll(label, 1, axis=0).astype(int), [0, 7, 2, 0]))
    dice = measure_dice(segmentation, reference, LABELS[:3], {0: 0, 7: 1, 2: 2, 5: 0})
    numbers = np.where(label == 3, 0, label)
    expected = measure_dice(
        write_labels("c.nii.gz", np.roll(numbers, 1, axis=0)), write_labels("d.nii.gz", numbers), LABELS[:3]
    )
    assert dice == expected
    assert dice["liver"] == pytest.approx(0.75)
    with pytest.raises(LabelValueError, match="7"):
        measure_dice(write_labels("c.nii.gz", np.where(label == 2, 2, 0)), reference, LABELS[:3], {0: 0, 2: 2})


def test_a_segmentation_with_values_of_another_table_is_refused(write_labels, label):
    reference = write_labels("b.nii.gz", np.choose(label.astype(int), [0, 7, 2, 0]))
    with pytest.raises(LabelValueError, match=r"a\.nii\.gz: found the value 1, wanted only 0, 7, 2"):
        measure_dice(write_labels("a.nii.gz", np.where(label < 3, label, 0)), reference, LABELS[:3], {0: 0, 7: 1, 2: 2})


def test_the_same_file_has_dice_1_and_background_is_left_out(write_labels, label):
    path = write_labels("a.nii.gz", label)
    dice = measure_dice(path, path, LABELS)
    assert list(dice) == LABELS[1:]
    assert (dice["liver"], dice["spleen"]) == (1, 1)


def test_a_class_that_only_the_segmentation_has_is_nan_and_one_it_lacks_is_0(write_labels, label):
    segmentation = np.where(label == 2, 3, label)
    dice = measure_dice(write_labels("a.nii.gz", segmentation), write_labels("b.nii.gz", label), LABELS)
    assert math.isnan(dice["aorta"])
    assert dice["spleen"] == 0


def test_a_trailing_axis_of_length_1_is_no_difference(write_labels, label):
    segmentation = write_labels("a.nii.gz", label[..., None])
    assert measure_dice(segmentation, write_labels("b.nii.gz", label), LABELS)["liver"] == 1


@pytest.mark.parametrize(("crop", "affine"), [(7, RAS), (8, LPI)])
def test_another_grid_is_refused(write_labels, label, crop, affine):
    segmentation, reference = write_labels("a.nii.gz", label[:crop], affine), write_labels("b.nii.gz", label)
    with pytest.raises(GeometryMismatchError):
        measure_dice(segmentation, reference, LABELS)


def test_a_reference_with_unknown_values_is_refused(write_labels, label):
    path = write_labels("a.nii.gz", label)
    with pytest.raises(LabelValueError, match="2"):
        measure_dice(path, path, LABELS[:2])


def test_a_missing_file_is_named(write_labels, label, tmp_path):
    with pytest.raises(MissingFileError, match=r"none\.nii\.gz"):
        measure_dice(write_labels("a.nii.gz", label), tmp_path / "none.nii.gz", LABELS)
