# SPDX-License-Identifier: Apache-2.0
"""Folders and dataset.json files of every common style become lists of image and label, with a fixed split."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tools.datasets import name_case, read_datalist, take_share
from tools.errors import ConfigValueError, DatalistError, EmptyDatasetError, MissingFileError


@pytest.fixture
def make_files(tmp_path):
    def make(*names: str) -> Path:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return make


@pytest.fixture
def make_decathlon(make_files):
    def make(cases: list[str], **sections: list[str]) -> Path:
        folder = make_files(*(f"{kind}Tr/{case}.nii.gz" for case in cases for kind in ("images", "labels")))
        content = {
            section: [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]
            for section, names in {"training": cases, **sections}.items()
        }
        (folder / "dataset.json").write_text(json.dumps({**content, "test": ["./imagesTs/x.nii.gz"]}))
        return folder

    return make


def list_cases(*arguments, **options) -> list[str]:
    return [name_case(pair["image"]) for pair in read_datalist(*arguments, **options)]


CASES = [f"hippocampus_{number:03}" for number in (17, 11, 3, 204, 100)]


def test_paths_are_absolute_and_nothing_but_image_and_label_is_returned(make_decathlon):
    folder = make_decathlon(["a", "b"], validation=["c"])
    content = json.loads((folder / "dataset.json").read_text())
    for entry in content["training"]:
        entry.update(image_id="7", label_path="x", fold=0)
    (folder / "dataset.json").write_text(json.dumps(content))
    assert read_datalist(folder, "training") == [
        {"image": str(folder / f"imagesTr/{case}.nii.gz"), "label": str(folder / f"labelsTr/{case}.nii.gz")}
        for case in "ab"
    ]


def test_a_relative_folder_and_the_file_itself_are_accepted(make_decathlon, monkeypatch):
    folder = make_decathlon(CASES)
    monkeypatch.chdir(folder)
    (folder / "dataset.json").rename(folder / "fold_0.JSON")
    assert read_datalist("fold_0.JSON", "training") == read_datalist(str(folder / "fold_0.JSON"), "training")
    assert Path(read_datalist("fold_0.JSON", "training")[0]["image"]).is_absolute()


def test_the_sections_of_the_file_win_over_validation_cases(make_decathlon, make_files):
    folder = make_decathlon(CASES[:3], validation=CASES[3:])
    make_files(*(f"{kind}Tr/{case}.nii.gz" for case in CASES[3:] for kind in ("images", "labels")))
    assert list_cases(folder, "training", ["011"]) == CASES[:3]
    assert list_cases(folder, "validation", ["011"]) == CASES[3:]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["hippocampus_011", "hippocampus_204"], ["hippocampus_011", "hippocampus_204"]),
        (["011", "204", "999"], ["hippocampus_011", "hippocampus_204"]),
        (["ippocampus_100", "003"], ["hippocampus_003", "hippocampus_100"]),
    ],
)
def test_validation_cases_match_whole_names_and_whole_numbers(make_decathlon, entries, expected):
    folder = make_decathlon(CASES)
    assert sorted(list_cases(folder, "validation", entries)) == expected
    rest = [case for case in CASES if case not in expected]
    assert list_cases(folder, "training", entries) == rest  # in the order of the file


def test_validation_cases_that_are_not_there_give_a_warning(make_decathlon, caplog):
    read_datalist(make_decathlon(CASES), "validation", ["011", "998", "999"])
    assert "lacks 2 validation cases, 998 first" in caplog.text


@pytest.mark.parametrize(
    ("entry", "meant"),
    [
        ("hippocampus_11", "hippocampus_011"),
        ("11", "hippocampus_011"),
        ("Hippocampus_011", "hippocampus_011"),
        ("hipocampus_011", "hippocampus_011"),
        ("0011", "hippocampus_011"),
    ],
)
def test_a_name_that_a_case_is_meant_by_is_refused_with_that_case(make_decathlon, entry, meant):
    for entries in ([entry], ["hippocampus_204", entry]):
        for section in ("training", "validation"):
            with pytest.raises(ConfigValueError, match=rf"found '{entry}', which .* lacks, .*; write {meant}\."):
                read_datalist(make_decathlon(CASES), section, entries)


def test_names_of_another_data_set_are_refused(make_decathlon):
    with pytest.raises(ConfigValueError, match=r"'a', 'b', 'c' ..., none of which .* has, .*--validation_cases \[\]"):
        read_datalist(make_decathlon(CASES), "training", ["a", "b", "c", "d"])


def test_a_fold_is_held_back_and_folds_that_are_not_used_are_told(make_decathlon, caplog):
    folder = make_decathlon(CASES)
    content = json.loads((folder / "dataset.json").read_text())
    for number, entry in enumerate(content["training"]):
        entry["fold"] = number % 2
    (folder / "dataset.json").write_text(json.dumps(content))
    expected = [[case for number, case in enumerate(CASES) if number % 2 == fold] for fold in (0, 1)]
    for fold in (0, 1):
        for names in ([], ["hippocampus_011"]):  # the fold was asked for, and goes before a list
            read = {section: read_datalist(folder, section, names, fold) for section in ("training", "validation")}
            found = {section: [name_case(pair["image"]) for pair in pairs] for section, pairs in read.items()}
            assert found == {"validation": expected[fold], "training": expected[1 - fold]}
    assert not caplog.text
    for fold in (2, True, "0"):
        with pytest.raises(
            ConfigValueError, match=r"fold: found .*, wanted one of the folds of .*: 0, 1; correct --fold"
        ):
            read_datalist(folder, "training", (), fold)
    read_datalist(folder, "training")
    assert "has the folds 0, 1, which are not used; --fold NUMBER validates one of them" in caplog.text
    with pytest.raises(ConfigValueError, match="has no folds"):
        read_datalist(make_decathlon(CASES), "training", (), 0)


@pytest.mark.parametrize("validation_cases", [(), []])
def test_without_a_split_every_fifth_case_by_name_is_for_validation(make_decathlon, caplog, validation_cases):
    caplog.set_level(logging.INFO)
    cases = [f"case_{number}" for number in (11, 2, 10, 1, 9, 3, 8, 4, 7, 5, 6)]
    folder = make_decathlon(cases)
    assert list_cases(folder, "validation", validation_cases) == ["case_11", "case_1", "case_6"]
    assert list_cases(folder, "training", validation_cases) == [c for c in cases if c[5:] not in ("11", "1", "6")]
    assert "every fifth case, 3 of 11" in caplog.text


@pytest.mark.parametrize("entry", [29, "", None])
def test_a_validation_case_that_is_no_text_is_refused(make_decathlon, entry):
    with pytest.raises(ConfigValueError, match=r"validation_cases: found .*put the name in quotes"):
        read_datalist(make_decathlon(CASES), "training", [entry])


def test_folders_of_btcv_are_paired(make_files):
    for images, labels in (("imagesTr", "labelsTr"), ("raw/img", "raw/label")):
        folder = make_files(*(f"{images}/img{n}.nii.gz" for n in ("0034", "0035", "0036", "0135"))) / images
        make_files(*(f"{labels}/label{n}.nii.gz" for n in ("0034", "0035", "0036", "0135")))
        pairs = read_datalist(folder.parent, "validation", ["0035", "img0036"])
        assert [[Path(path).name for path in pair.values()] for pair in pairs] == [
            ["img0035.nii.gz", "label0035.nii.gz"],
            ["img0036.nii.gz", "label0036.nii.gz"],
        ]


def test_folders_of_nnunet_are_paired_although_there_is_a_json_file(make_files):
    folder = make_files(*(f"imagesTr/la_{n:03}_0000.nii.gz" for n in range(6)))
    make_files(*(f"labelsTr/la_{n:03}.nii.gz" for n in range(6)))
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MRI"}, "numTraining": 6}))
    pairs = read_datalist(folder, "validation", ["la_003"])
    assert [[Path(path).name for path in pair.values()] for pair in pairs] == [["la_003_0000.nii.gz", "la_003.nii.gz"]]
    assert len(read_datalist(folder, "training", ["la_003"])) == 5


def test_suffixes_of_any_case_hidden_files_and_unicode_forms_do_not_matter(make_files):
    folder = make_files("imagesTr/a.NII.GZ", "imagesTr/b.nii", "imagesTr/u\u0308.nii.gz", "imagesTr/._a.nii.gz")
    make_files("labelsTr/a.nii.gz", "labelsTr/b.Nii", "labelsTr/ü.nii.gz", "labelsTr/.DS_Store", "labelsTr/notes.txt")
    assert len(read_datalist(folder, "training", ["b"])) == 2
    assert list_cases(folder, "validation", ["ü"]) == ["u\u0308"]


def test_labels_without_image_give_a_warning(make_files, caplog):
    folder = make_files("imagesTr/a.nii.gz", "imagesTr/b.nii.gz", *(f"labelsTr/{n}.nii.gz" for n in "abcd"))
    read_datalist(folder, "training", ["b"])
    assert "2 labels have no image" in caplog.text


def test_a_case_in_both_sections_gives_a_warning(make_decathlon, caplog):
    read_datalist(make_decathlon(CASES, validation=CASES[:1]), "training")
    assert "1 images are for training and for validation" in caplog.text


def test_a_json_file_with_a_byte_order_mark_is_read(make_decathlon):
    file = make_decathlon(CASES) / "dataset.json"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert len(read_datalist(file, "training", ["011"])) == 4


def test_a_missing_data_set_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"--dataset_dir: found nothing, .*; give --dataset_dir FOLDER"):
        read_datalist(None, "training")
    with pytest.raises(MissingFileError, match=r"nowhere: found no such folder, .*; correct --dataset_dir"):
        read_datalist(tmp_path / "nowhere", "training")
    with pytest.raises(MissingFileError, match="2024: found no such folder"):
        read_datalist(2024, "training")  # what fire makes of `--dataset_dir 2024`


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("list.txt", "", "a file that is no .json"),
        ("dataset.json", "{", "no valid JSON"),
        ("dataset.json", "[]", "a JSON list"),
        ("dataset.json", '{"training": {}}', "'training' that is no list"),
        ("dataset.json", '{"training": [{"image": "a.nii"}]}', "no label path"),
        ("dataset.json", '{"training": [{"image": "a.nii", "label": ""}]}', "no label path"),
        ("dataset.json", '{"training": [{"image": ["a.nii", "b.nii"], "label": "c.nii"}]}', "no image path"),
        ("dataset.json", '{"training": [], "validation": ["a.nii"]}', "no image path"),
    ],
)
def test_a_list_that_cannot_be_understood_is_refused(tmp_path, name, content, found):
    (tmp_path / name).write_text(content)
    with pytest.raises(DatalistError) as caught:
        read_datalist(tmp_path / name, "training")
    assert caught.value.subject.startswith(str(tmp_path / name))
    assert found in caught.value.found
    assert caught.value.remedy


def test_missing_files_are_counted_and_the_first_is_named(make_decathlon):
    folder = make_decathlon(CASES)
    (folder / "labelsTr" / f"{CASES[2]}.nii.gz").unlink()
    (folder / "imagesTr" / f"{CASES[3]}.nii.gz").unlink()
    (folder / "imagesTr" / f"{CASES[3]}.nii.gz").symlink_to("dangling")
    first = folder / "labelsTr" / f"{CASES[2]}.nii.gz"
    with pytest.raises(MissingFileError, match=rf"^{first}: found no such file \(2 of 8 files of .*dataset.json are"):
        read_datalist(folder, "training", ["011"])
    assert list_cases(folder, "validation", ["011"]) == ["hippocampus_011"]


def test_images_without_label_are_counted_and_the_first_is_named(make_files):
    folder = make_files("imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "imagesTr/c.nii.gz", "labelsTr/a.nii.gz")
    with pytest.raises(DatalistError, match=r"b.nii.gz: found no label in labelsTr, as for 2 of 3 images"):
        read_datalist(folder, "training")


@pytest.mark.parametrize("twin", ["a.nii", "a_0000.nii.gz"])
def test_two_images_of_one_case_are_refused(make_files, twin):
    folder = make_files("imagesTr/a.nii.gz", f"imagesTr/{twin}", "labelsTr/a.nii.gz")
    with pytest.raises(DatalistError, match="wanted one file per case; remove one"):
        read_datalist(folder, "training")


def test_a_folder_without_data_set_is_refused(make_files):
    folder = make_files("imagesTr/a.nii.gz")
    with pytest.raises(EmptyDatasetError, match="no folders imagesTr and labelsTr"):
        read_datalist(folder, "training")


def test_an_empty_section_is_refused_only_when_it_is_asked_for(make_decathlon):
    folder = make_decathlon(CASES, validation=[])
    assert list_cases(folder, "training") == CASES
    with pytest.raises(EmptyDatasetError, match=r"found no validation case \(5 training, 0 validation\)"):
        read_datalist(folder, "validation")
    with pytest.raises(EmptyDatasetError, match="found no training case"):
        read_datalist(make_decathlon([]), "training")


def test_another_section_is_refused(make_decathlon):
    with pytest.raises(ConfigValueError, match="section: found 'test', wanted training or validation"):
        read_datalist(make_decathlon(CASES), "test")


@pytest.mark.parametrize(("share", "count"), [(1.0, 10), (0.5, 5), (0.25, 2), (0.01, 1)])
def test_a_share_of_the_training_list_is_its_first_cases(share, count):
    pairs = [{"image": f"image_{number}", "label": f"label_{number}"} for number in range(10)]
    assert take_share(pairs, share) == pairs[:count]


@pytest.mark.parametrize("share", [0, -0.5, 1.5, 16])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ConfigValueError, match=f"training_share: found {share}, wanted a number above 0, at most 1"):
        take_share([{"image": "a", "label": "b"}], share)


@pytest.mark.parametrize(("share", "count"), [(0.34, 3), (0.36, 4), (0.99, 10), (0.01, 1), (1.0, 10)])
def test_a_share_is_rounded_to_the_nearest_number_of_cases_and_is_never_none(share, count):
    pairs = [{"image": str(number)} for number in range(10)]
    assert take_share(pairs, share) == pairs[:count]


@pytest.mark.parametrize("spell", [lambda path: path.replace("/", "\\"), lambda path: path], ids=["windows", "nnU-Net"])
def test_a_list_means_the_files_that_are_there(make_decathlon, spell, request):
    folder = make_decathlon(CASES)
    content = json.loads((folder / "dataset.json").read_text())
    for entry in content["training"]:
        if "nnU-Net" in request.node.name:  # the file of nnU-Net v1 lists cases, without the number of the channel
            image = folder / entry["image"]
            image.rename(image.with_name(image.name.replace(".nii.gz", "_0000.nii.gz")))
        entry.update({key: spell(path) for key, path in entry.items()})
    (folder / "dataset.json").write_text(json.dumps(content))
    pairs = read_datalist(folder, "training")
    assert all(Path(path).is_file() for pair in pairs for path in pair.values())
    found = {name_case(pair["image"]).removesuffix("_0000") for pair in pairs}
    assert found < set(CASES)
