# SPDX-License-Identifier: Apache-2.0
"""Scans without labels come from folders and data sets of every style, never from what is held back for validation."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools.datasets import list_unlabelled, name_case, read_datalist, split_unlabelled
from tools.errors import ConfigValueError, DatalistError, EmptyDatasetError, MissingFileError


@pytest.fixture
def make_files(tmp_path: Path) -> Callable[..., Path]:
    def make(folder: str, *names: str) -> Path:
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).touch()
        return tmp_path / folder

    return make


@pytest.fixture
def make_decathlon(make_files) -> Callable[..., Path]:
    """Make a data set of images and labels `c01` to `c10`, whose `dataset.json` has the given sections."""

    def make(labels: bool = True, **sections: Any) -> Path:
        kinds = ("images", "labels") if labels else ("images",)
        folder = make_files("set", *(f"{kind}Tr/c{number:02}.nii.gz" for kind in kinds for number in range(1, 11)))
        content = {
            section: [{kind[:-1]: f"{kind}Tr/{case}.nii.gz" for kind in kinds} for case in cases]
            for section, cases in sections.items()
        }
        (folder / "dataset.json").write_text(json.dumps(content))
        return folder

    return make


ALL = [f"c{number:02}" for number in range(1, 11)]


def list_names(*arguments: Any) -> list[str]:
    return [name_case(scan["image"]) for scan in list_unlabelled(*arguments)]


def test_a_folder_gives_its_scans_in_natural_order(make_files):
    folder = make_files("scans", "s10.nii.gz", "s2.nii", "s1.NII.GZ", "note.txt")
    scans = list_unlabelled(folder)
    assert scans == [{"image": str(folder / name)} for name in ("s1.NII.GZ", "s2.nii", "s10.nii.gz")]


def test_several_folders_follow_each_other_and_repeat_no_file(make_files):
    first, second = make_files("a", "s2.nii", "s1.nii"), make_files("b", "s1.nii")
    (second / "link.nii").symlink_to(first / "s1.nii")
    scans = list_unlabelled([first, str(second), f"{first}/../a"])
    assert scans == [{"image": str(path)} for path in (first / "s1.nii", first / "s2.nii", second / "s1.nii")]


def test_a_data_set_gives_the_images_of_its_training_list(make_decathlon):
    folder = make_decathlon(training=ALL[2:], validation=ALL[:2])
    assert list_names(folder) == ALL[2:]
    assert list_names(folder / "dataset.json") == ALL[2:]
    assert all(set(scan) == {"image"} for scan in list_unlabelled(folder))


@pytest.mark.parametrize("held_back", [[], ["c03", "c07"], ["04"], ["elsewhere"]])
@pytest.mark.parametrize("listed", [True, False], ids=["dataset.json", "folders"])
def test_without_a_validation_list_it_is_the_training_list_of_segmentation(make_decathlon, held_back, listed):
    folder = make_decathlon(training=ALL)
    if not listed:
        (folder / "dataset.json").unlink()
    # names of another data set: of several sources, each lacks those of the others
    names = [] if held_back == ["elsewhere"] else held_back
    expected = [name_case(pair["image"]) for pair in read_datalist(folder, "training", names)]
    assert len(expected) < len(ALL)
    assert list_names(folder, held_back) == expected


def test_labels_need_not_be_there(make_decathlon):
    folder = make_decathlon(training=ALL[2:], validation=ALL[:2])
    for path in (folder / "labelsTr").iterdir():
        path.unlink()
    assert list_names(folder) == ALL[2:]


def test_a_list_of_images_alone_is_used_whole(make_decathlon):
    folder = make_decathlon(labels=False, training=ALL)
    assert list_names(folder) == ALL
    (folder / "dataset.json").write_text(json.dumps({"training": [f"imagesTr/{case}.nii.gz" for case in ALL]}))
    assert list_names(folder) == ALL
    (folder / "dataset.json").unlink()
    assert list_names(folder) == ALL


@pytest.mark.parametrize("validation", [{"validation": ALL[:2]}, {}], ids=["listed", "chosen"])
def test_a_list_of_unlabelled_images_follows_the_training_list(make_decathlon, validation):
    folder = make_decathlon(training=ALL[2:6] if validation else ALL[:6], **validation)
    content = json.loads((folder / "dataset.json").read_text())
    unlabelled = [f"imagesTr/{case}.nii.gz" for case in ALL[6:]]
    (folder / "dataset.json").write_text(json.dumps({**content, "unlabelled": unlabelled}))
    assert list_names(folder, ["c01", "c02", "c10"]) == ALL[2:9]
    assert [name_case(pair["image"]) for pair in read_datalist(folder, "training", ["c01", "c02"])] == ALL[2:6]
    (folder / "dataset.json").write_text(json.dumps({"unlabelled": unlabelled}))
    assert list_names(folder) == ALL[6:]


def test_held_back_cases_are_left_out_of_every_kind_of_source(make_decathlon, caplog):
    folder = make_decathlon(training=ALL[2:], validation=ALL[:2])
    with caplog.at_level(logging.INFO):
        assert list_names(folder, ["c05"]) == [case for case in ALL[2:] if case != "c05"]
    assert "3 scans are held back" in caplog.text
    assert list_names(folder / "imagesTr", ["c05"]) == [case for case in ALL if case != "c05"]


def test_the_validation_cases_of_one_source_are_left_out_of_the_others(make_decathlon, make_files):
    folder = make_decathlon(training=[*ALL[1:]], validation=ALL[:2])  # c02 is in both lists
    other = make_files("other", "new.nii")
    (other / "copy_of_c01.nii.gz").symlink_to(folder / "imagesTr" / "c01.nii.gz")
    assert list_names([other, folder / "imagesTr", folder]) == ["new", *ALL[2:]]


def test_a_description_without_lists_is_no_list(make_decathlon):
    folder = make_decathlon()
    assert list_names(folder, ["c01"]) == ALL[1:]


@pytest.mark.parametrize(
    ("prepare", "error", "words"),
    [
        (lambda folder: None, MissingFileError, "--dataset_dir"),
        (lambda folder: folder / "nowhere", MissingFileError, "no such folder"),
        (lambda folder: [folder / "labelsTr", folder / "nowhere"], MissingFileError, "nowhere"),
        (lambda folder: [], EmptyDatasetError, "no scan for pre-training"),
        (lambda folder: folder.parent, EmptyDatasetError, "no .nii"),
        (lambda folder: folder / "broken", DatalistError, "no valid JSON"),
    ],
    ids=["nothing", "missing", "one missing", "no source", "no scan", "broken list"],
)
def test_what_cannot_be_used_is_told(make_decathlon, make_files, prepare, error, words):
    folder = make_decathlon(training=ALL)
    (make_files("set/broken", "dataset.json") / "dataset.json").write_text("{")
    with pytest.raises(error, match=words):
        list_unlabelled(prepare(folder))


def test_a_source_that_is_held_back_whole_is_told(make_decathlon):
    folder = make_decathlon(training=ALL[:2])
    with pytest.raises(EmptyDatasetError, match="2 are held back"):
        list_unlabelled(folder, ALL)


def test_every_tenth_scan_is_for_validation():
    scans = [{"image": f"{number}"} for number in range(25)]
    validation, training = (split_unlabelled(scans, section) for section in ("validation", "training"))
    assert [scan["image"] for scan in validation] == ["0", "10", "20"]
    assert sorted(int(scan["image"]) for scan in validation + training) == list(range(25))
    assert split_unlabelled(scans[:2], "training") == scans[1:2]


def test_one_scan_is_too_few_and_there_are_two_sections():
    with pytest.raises(EmptyDatasetError, match="found 1 readable scans, wanted at least 2"):
        split_unlabelled([{"image": "a"}], "validation")
    with pytest.raises(ConfigValueError, match="'test'"):
        split_unlabelled([{"image": "a"}, {"image": "b"}], "test")
