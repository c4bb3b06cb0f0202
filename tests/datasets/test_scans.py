# SPDX-License-Identifier: Apache-2.0
"""Scans for inference are found whatever they are called, each once, each with a result name of its own."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tools.datasets import list_scans, name_case, name_results
from tools.errors import DatalistError, EmptyDatasetError, MissingFileError

ODD_NAMES = ["with space", "ü", "u\u0308", 'it\'s "quoted"', "$HOME", "-x", "@x", "%x", "~x", "ct.1.2", "n" * 200]


@pytest.fixture
def make_files(tmp_path):
    def make(*names: str) -> list[str]:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return [str(tmp_path / name) for name in names]

    return make


def list_names(*arguments, **options) -> list[str]:
    return [Path(scan["image"]).name for scan in list_scans(*arguments, **options)]


@pytest.mark.parametrize(
    ("path", "case"),
    [("a/b.nii.gz", "b"), ("b.NII.GZ", "b"), ("b.Nii", "b"), ("ct.1.2.nii.gz", "ct.1.2"), ("b.nrrd", "b"), ("b", "b")]
    + [(f"{name}.nii.gz", name) for name in ODD_NAMES],
)
def test_the_case_name_is_the_file_name_without_suffixes(path, case):
    assert name_case(path) == name_case(Path(path)) == case


def test_a_folder_is_listed_in_natural_order_without_hidden_files_and_sub_folders(make_files, tmp_path):
    make_files("scan10.nii.gz", "scan2.NII", "scan1.nii.gz", "._scan1.nii.gz", "notes.txt", "sub/scan0.nii.gz")
    assert list_names(tmp_path) == ["scan1.nii.gz", "scan2.NII", "scan10.nii.gz"]
    assert all(list(scan) == ["image"] and Path(scan["image"]).is_absolute() for scan in list_scans(tmp_path))


def test_the_order_does_not_depend_on_the_file_system(make_files, tmp_path, monkeypatch):
    names = ["1.nii", "01.nii", "a1b2.nii", "a1b10.nii", "a.nii", "²3.nii", "x١.nii", "A1.nii"]
    paths = [Path(path) for path in make_files(*names)]
    orders = set()
    for seed in range(5):
        shuffled = random.Random(seed).sample(paths, len(paths))
        monkeypatch.setattr(Path, "iterdir", lambda _, shuffled=shuffled: iter(shuffled))
        orders.add(tuple(list_names(tmp_path)))
    assert len(orders) == 1


def test_one_bad_entry_of_a_folder_does_not_hide_the_others(make_files, tmp_path):
    make_files("a.nii.gz", "folder.nii.gz/x.txt")
    (tmp_path / "dangling.nii.gz").symlink_to("gone")
    assert list_names(tmp_path) == ["a.nii.gz", "dangling.nii.gz", "folder.nii.gz"]


def test_no_name_is_special(make_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = make_files(*(f"{name}.nii.gz" for name in ODD_NAMES))
    assert {scan["image"] for scan in list_scans(tmp_path)} == set(paths)
    assert [scan["image"] for scan in list_scans(datalist=[Path(path).name for path in paths])] == paths


def test_one_scan_is_enough(make_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (path,) = make_files("a.nii.gz")
    for given in ({"dataset_dir": path}, {"datalist": path}, {"datalist": "a.nii.gz"}, {"datalist": {"image": path}}):
        assert list_scans(**given) == [{"image": path}]


def test_the_datalist_wins_and_keeps_its_order_and_only_the_image(make_files, tmp_path):
    paths = make_files("b.nii.gz", "a.nii.gz", "c.nii.gz")
    datalist = [{"image": paths[0], "image_id": "7", "label": "x"}, paths[1], Path(paths[2])]
    assert list_scans(tmp_path / "nowhere", datalist) == [{"image": path} for path in paths]


def test_the_home_folder_is_understood(make_files, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (path,) = make_files("data/a.nii.gz")
    assert list_scans("~/data") == [{"image": path}]


def test_repetitions_are_dropped_with_a_warning(make_files, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    a, b = make_files("a.nii.gz", "b.nii.gz")
    assert list_scans(datalist=[a, b, "a.nii.gz", f"../{tmp_path.name}/b.nii.gz"]) == [{"image": a}, {"image": b}]
    assert f"{a} is listed more than once" in caplog.text
    assert f"{b} is listed more than once" in caplog.text


def test_links_with_names_of_their_own_are_scans_of_their_own(make_files, tmp_path):
    make_files("store/0af3")
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / name).symlink_to("store/0af3")
    assert list_names(tmp_path) == ["a.nii.gz", "b.nii.gz"]


def test_nothing_given_names_both_options():
    with pytest.raises(MissingFileError, match="--dataset_dir FOLDER or --datalist"):
        list_scans()


def test_missing_files_are_counted_and_the_first_is_named(make_files, tmp_path):
    (path,) = make_files("a.nii.gz")
    missing = [str(tmp_path / "b.nii.gz"), str(tmp_path / "c.nii.gz"), "x" * 300]
    with pytest.raises(MissingFileError, match=r"b.nii.gz: found no such file \(3 of 4 files of --datalist"):
        list_scans(datalist=[path, *missing])
    with pytest.raises(MissingFileError, match="nowhere: found no such file or folder"):
        list_scans(tmp_path / "nowhere")


@pytest.mark.parametrize("entry", [{"path": "a"}, {"image": ["a", "b"]}, {"image": ""}, "", None, 7])
def test_an_entry_without_image_is_refused(make_files, entry):
    (path,) = make_files("a.nii.gz")
    with pytest.raises(DatalistError, match=r"--datalist, entry 1: found .*; correct the entry"):
        list_scans(datalist=[path, entry])


def test_a_list_that_lost_its_quotes_is_shown_with_them():
    with pytest.raises(DatalistError, match=r"a list with quoted paths; write --datalist \"\['first.nii.gz',"):
        list_scans(datalist="[a.nii.gz, b.nii.gz]" + " " * 300)


def test_an_empty_list_or_folder_is_refused(make_files, tmp_path):
    with pytest.raises(EmptyDatasetError, match="an empty list"):
        list_scans(datalist=[])
    with pytest.raises(EmptyDatasetError, match=r"no .nii or .nii.gz file among 0 entries, .*; convert"):
        list_scans(tmp_path)
    make_files("slice1.dcm", "slice2.dcm")
    with pytest.raises(EmptyDatasetError, match="among 2 entries"):
        list_scans(tmp_path)


def test_sub_folders_with_scans_are_suggested(make_files, tmp_path):
    make_files("imagesTs/a.nii.gz", "imagesTr/a.nii.gz", "docs/a.txt", "dataset.json")
    with pytest.raises(EmptyDatasetError, match=r"sub-folders with scans: imagesTr, imagesTs\."):
        list_scans(tmp_path)


def test_a_file_of_another_kind_is_refused(make_files):
    (path,) = make_files("dataset.json")
    with pytest.raises(DatalistError, match="found a file that is no NIfTI scan"):
        list_scans(path)


def make_scans(*paths: str) -> list[dict[str, str]]:
    return [{"image": path} for path in paths]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ((), []),
        (("/d/a.nii.gz", "/d/b.nii", "/d/c.NII.GZ"), ["a", "b", "c"]),
        (("/d/a/ct.nii.gz", "/d/b/ct.nii.gz"), ["a_ct", "b_ct"]),
        (("/d/a/ct.nii.gz", "/d/b/ct.nii", "/d/b/mr.nii"), ["a_ct", "b_ct", "mr"]),
        (("/1/x/ct.nii", "/2/x/ct.nii", "/2/y/ct.nii"), ["1_x_ct", "2_x_ct", "y_ct"]),
        (("/d/a/ct.nii", "/d/b/ct.nii", "/e/a_ct.nii"), ["d_a_ct", "b_ct", "e_a_ct"]),
        (("/ct.nii", "/a/ct.nii"), ["ct", "a_ct"]),
        (("/d/a/CT.nii", "/d/b/ct.nii"), ["a_CT", "b_ct"]),
        (("/d/a/ü.nii", "/d/b/u\u0308.nii"), ["a_ü", "b_u\u0308"]),
    ],
)
def test_results_get_short_names_that_differ(paths, names):
    assert name_results(make_scans(*paths)) == names


@pytest.mark.parametrize("paths", [("/d/x.nii", "/d/x.nii.gz"), ("/d/x.nii", "/e/x.nii", "/e/x.nii.gz")])
def test_scans_of_one_folder_that_share_a_name_are_refused(paths):
    with pytest.raises(DatalistError, match=r"with the same result name .*x, .*; rename one of them"):
        name_results(make_scans(*paths))


def test_folders_that_spell_the_same_name_are_refused():
    with pytest.raises(DatalistError, match="with the same result name x_a_ct"):
        name_results(make_scans("/x_a/ct.nii", "/x/a/ct.nii", "/y/a/ct.nii"))
