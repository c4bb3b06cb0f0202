# SPDX-License-Identifier: Apache-2.0
"""Labels that do not fit their image or their data set are found, all in one go."""

from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
import pytest

from tools.checks import check_dataset, check_pair
from tools.errors import (
    DatalistError,
    DatasetError,
    EmptyDatasetError,
    GeometryMismatchError,
    LabelValueError,
    MissingFileError,
    UnreadableScanError,
)

AFFINE = np.diag([1.5, 1.5, 2, 1])  # that of write_scan
VALUES = range(4)


def make_label(*values: float, dtype: type = np.uint8) -> np.ndarray:
    label = np.zeros((8, 9, 10), dtype)
    label[1, 1, : len(values)] = values
    return label


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, np.float64])
def test_a_fitting_label_of_any_type_passes_in_silence(write_scan, caplog, dtype):
    caplog.set_level(logging.WARNING)
    check_pair(write_scan("a.nii.gz"), write_scan("b.nii.gz", make_label(1, 2, 3, dtype=dtype)), VALUES)
    assert not caplog.records


def test_a_label_with_a_scaling_slope_is_read_as_scaled(write_scan):
    label = write_scan("b.nii", make_label(1, 2, 3, dtype=np.float32))
    content = bytearray(label.read_bytes())
    content[112:116] = np.float32(2).tobytes()  # scl_slope
    label.write_bytes(content)
    with pytest.raises(LabelValueError, match=r"values 4 \(1 voxels\), 6 \(1 voxels\)"):
        check_pair(write_scan("a.nii"), label, VALUES)


@pytest.mark.parametrize(
    ("values", "found", "remedy"),
    [
        ((1, 2, 9, 9, 12), "values 9 (2 voxels), 12 (1 voxels)", "correct the label"),
        ((-1, 1), "values -1 (1 voxels)", "correct the label"),
        ((1, 0.5, 0.5, 1.5), "values 0.5 (2 voxels), 1.5 (1 voxels)", "nearest neighbour"),
        ((1, np.nan), "values nan (1 voxels)", "nearest neighbour"),
        ((4, 5, 6, 7, 8, 9, 10), "and 2 other values", "correct the label"),
    ],
)
def test_values_outside_the_data_set_are_named_and_counted(write_scan, assert_readable, values, found, remedy):
    label = write_scan("b.nii.gz", make_label(*values, dtype=np.float32))
    with pytest.raises(LabelValueError) as caught:
        check_pair(write_scan("a.nii.gz"), label, VALUES)
    assert_readable(caught.value, label, found, remedy)
    assert "only 0, 1, 2, 3" in str(caught.value)


def test_a_label_of_another_shape_is_refused(write_scan, assert_readable):
    image, label = write_scan("a.nii.gz"), write_scan("b.nii.gz", np.zeros((8, 9, 11), np.uint8))
    with pytest.raises(GeometryMismatchError) as caught:
        check_pair(image, label, VALUES)
    assert_readable(caught.value, label, "shape 8×9×11", "resample")
    assert f"8×9×10 as in {image}" in str(caught.value)


def shift(*offset_mm: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[:3, 3] += offset_mm
    return affine


def flip() -> np.ndarray:
    affine = AFFINE @ np.diag([-1, 1, 1, 1])
    affine[:3, 3] += AFFINE[:3, 0] * 7
    return affine


@pytest.mark.parametrize(
    ("affine", "found"),
    [
        (shift(0, 0, 1.1), "0.6 voxels (1.1 mm)"),
        (shift(0.8, 0, 0), "0.5 voxels (0.8 mm)"),
        (flip(), "7.0 voxels (10.5 mm)"),
        (AFFINE @ np.diag([1, 1, 1.1, 1]), "0.9 voxels (1.8 mm)"),
    ],
    ids=["shift along z", "shift along x", "flip", "spacing"],
)
def test_a_label_on_another_grid_is_refused(write_scan, assert_readable, affine, found):
    label = write_scan("b.nii.gz", make_label(1), affine)
    with pytest.raises(GeometryMismatchError) as caught:
        check_pair(write_scan("a.nii.gz"), label, VALUES)
    assert_readable(caught.value, label, found, "resample")


@pytest.mark.parametrize("affine", [shift(1e-3, -1e-3, 1e-3), AFFINE * (1 + 1e-4), shift(0, 0, 0.9)])
def test_rounding_and_less_than_half_a_voxel_pass(write_scan, affine):
    affine = affine.copy()
    affine[3, 3] = 1
    check_pair(write_scan("a.nii.gz"), write_scan("b.nii.gz", make_label(1), affine), VALUES)


def test_a_label_that_is_all_background_gives_a_warning(write_scan, caplog):
    check_pair(write_scan("a.nii.gz"), write_scan("b.nii.gz", make_label()), VALUES)
    assert "background only" in caplog.text


def test_a_truncated_label_is_refused(write_scan, assert_readable):
    label = write_scan("b.nii.gz", np.random.default_rng(0).integers(0, 3, (8, 9, 10)).astype(np.uint8))
    label.write_bytes(label.read_bytes()[:-60])
    with pytest.raises(UnreadableScanError) as caught:
        check_pair(write_scan("a.nii.gz"), label, VALUES)
    assert_readable(caught.value, label, "ends early", "again")


@pytest.fixture
def datalist(write_scan):
    return [
        {
            "image": str(write_scan(f"image {case}.nii.gz")),
            "label": str(write_scan(f"label {case}.nii.gz", make_label(1, 2))),
        }
        for case in range(4)
    ]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_sound_data_set_passes(datalist, num_workers):
    check_dataset(datalist, VALUES, num_workers)


def test_the_only_problem_is_raised_as_it_is(datalist, write_scan, caplog):
    write_scan("label 2.nii.gz", make_label(7))
    with pytest.raises(LabelValueError, match=r"label 2.nii.gz: found values 7"):
        check_dataset(datalist, VALUES)
    assert not caplog.records


def test_all_problems_are_reported_at_once(datalist, write_scan, assert_readable, caplog, tmp_path):
    write_scan("label 1.nii.gz", make_label(7))
    (tmp_path / "image 2.nii.gz").unlink()
    datalist[3] = {"image": datalist[3]["image"]}
    with pytest.raises(DatasetError) as caught:
        check_dataset(datalist, VALUES)
    found = "values 7 (1 voxels) (the first of 3 bad cases among 4)"
    assert_readable(caught.value, tmp_path / "label 1.nii.gz", found, "see the log for the other 2")
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 2
    assert "image 2.nii.gz: found no such file" in errors[0]
    assert "found no label" in errors[1]


def test_an_entry_without_label_is_refused(datalist, assert_readable):
    with pytest.raises(DatalistError, match="found no label, wanted an image and a label; complete or remove"):
        check_dataset([{"image": datalist[0]["image"]}], VALUES)


def test_an_empty_data_set_is_refused():
    with pytest.raises(EmptyDatasetError, match="found no case"):
        check_dataset([], VALUES)


def test_a_missing_label_is_named(datalist, tmp_path):
    (tmp_path / "label 0.nii.gz").unlink()
    with pytest.raises(MissingFileError, match=r"label 0.nii.gz: found no such file"):
        check_dataset(datalist, VALUES)


def test_defects_of_the_code_are_not_taken_for_bad_data(datalist):
    with pytest.raises(ValueError, match="not a number"):
        check_dataset(datalist, ["not a number"])


def test_values_close_to_whole_numbers_are_those_and_others_are_shown(tmp_path, assert_readable):
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32), np.eye(4))
    nib.save(image, tmp_path / "image.nii.gz")
    voxels = np.zeros((8, 8, 8), np.float32)
    voxels[2:4], voxels[5] = 1.0000001, 1.9993
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "label.nii.gz")
    assert check_pair(tmp_path / "image.nii.gz", tmp_path / "label.nii.gz", [0, 1, 2]) == {0, 1, 2}
    voxels[6] = 1.99
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "label.nii.gz")
    with pytest.raises(LabelValueError) as caught:
        check_pair(tmp_path / "image.nii.gz", tmp_path / "label.nii.gz", [0, 1, 2])
    assert_readable(caught.value, tmp_path / "label.nii.gz", "1.99000001 (64 voxels)", "nearest neighbour")


def test_the_remedy_for_a_value_to_ignore_says_that_there_is_none(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), tmp_path / "image.nii.gz")
    voxels = np.zeros((8, 8, 8), np.uint8)
    voxels[0, 0, 0] = 255
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "label.nii.gz")
    with pytest.raises(LabelValueError, match=r"values 255 \(1 voxels\).*label_map; none is left out of loss and Dice"):
        check_pair(tmp_path / "image.nii.gz", tmp_path / "label.nii.gz", [0, 1, 2])


def test_a_class_that_no_case_has_is_told_by_its_name(tmp_path, caplog):
    datalist = []
    for number in range(3):
        voxels = np.zeros((8, 8, 8), np.int16)
        voxels[number] = (0, 205, 421)[number]
        for kind in ("image", "label"):
            content = voxels if kind == "label" else voxels + 1
            nib.save(nib.Nifti1Image(content, np.eye(4)), tmp_path / f"{kind}{number}.nii.gz")
        datalist.append({kind: str(tmp_path / f"{kind}{number}.nii.gz") for kind in ("image", "label")})
    label_map, labels = {0: 0, 205: 1, 420: 2, 421: 2, 500: 3}, ["background", "a", "b", "lesion"]
    check_dataset(datalist, label_map, labels=labels)
    told = [record.getMessage() for record in caplog.records if "is in none" in record.getMessage()]
    assert told == ["lesion is in none of 3 cases: nothing can be learned or measured of it"]


@pytest.mark.parametrize("name", ["image", "label"])
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: data[:-8] + b"\1\2\3\4" + data[-4:], "damaged data"),
        (lambda data: data[:-8], "ends early"),
        (lambda data: data + b"garbage", "damaged data"),
    ],
    ids=["checksum", "trailer", "behind"],
)
def test_a_damaged_file_of_a_pair_is_refused_before_training(name, damage, told, write_scan, assert_readable):
    paths = {"image": write_scan("a.nii.gz"), "label": write_scan("b.nii.gz", make_label(1))}
    paths[name].write_bytes(damage(paths[name].read_bytes()))
    with pytest.raises(UnreadableScanError) as caught:
        check_pair(paths["image"], paths["label"], VALUES)
    assert_readable(caught.value, paths[name], told, "again")


@pytest.mark.parametrize(
    ("training", "validation", "told"),
    [
        ([(1, 2, 3)], [(1, 2, 3)], []),
        ([(1, 2)], [(1, 2, 3)], ["lesion is in none of 1 cases for training, only in those for validation: it cannot"]),
        (
            [(1, 2, 3)],
            [(1, 2), (1,)],
            ["lesion is in none of 2 cases for validation: it is learned, and its Dice is not"],
        ),
        ([(1, 2)], [(1, 2)], ["lesion is in none of 2 cases: nothing can be learned or measured of it"]),
        ([(1, 2)], [], ["lesion is in none of 1 cases: nothing can be learned or measured of it"]),
    ],
)
def test_classes_that_only_training_or_validation_has_are_told(write_scan, caplog, training, validation, told):
    cases = [
        [{"image": write_scan(f"i{part}{n}.nii.gz"), "label": write_scan(f"l{part}{n}.nii.gz", make_label(*values))}
         for n, values in enumerate(listed)]
        for part, listed in enumerate((training, validation))
    ]  # fmt: skip
    check_dataset(cases[0], VALUES, labels=["background", "a", "b", "lesion"], validation=cases[1])
    found = [record.getMessage() for record in caplog.records]
    assert len(found) == len(told)
    assert all(one.startswith(other) for one, other in zip(found, told, strict=True))


def test_an_image_that_is_its_own_label_is_refused(write_scan):
    voxels = make_label(1, 2, 3)
    with pytest.raises(LabelValueError, match="the same voxels as the image"):
        check_pair(write_scan("a.nii.gz", voxels), write_scan("b.nii.gz", voxels.astype(np.int16)), VALUES)
    empty = np.zeros_like(voxels)  # air, labelled so
    check_pair(write_scan("a.nii.gz", empty), write_scan("b.nii.gz", empty), VALUES)
