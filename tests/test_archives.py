# SPDX-License-Identifier: Apache-2.0
"""A zip file writes into its folder and nowhere else."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from tools.archives import name_bundle, unpack
from tools.errors import BundleError


def write_zip(path: Path, *names: str | zipfile.ZipInfo) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return path


def test_zip_is_unpacked_without_its_top_folder(tmp_path: Path):
    path = write_zip(tmp_path / "toy_v1.zip", "toy/LICENSE", "toy/configs/metadata.json", "toy/eval/")
    assert name_bundle(path) == "toy"
    unpack(path, tmp_path / "out")
    files = sorted(file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*"))
    assert files == ["LICENSE", "configs", "configs/metadata.json", "eval"]
    assert (tmp_path / "out" / "LICENSE").read_bytes() == b"content"


@pytest.mark.parametrize("name", ["toy/../../escaped", "toy/..", "toy\\..\\escaped", "toy/C:escaped"])
def test_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str):
    path = write_zip(tmp_path / "toy.zip", "toy/LICENSE", name)
    with pytest.raises(BundleError, match=r"toy.zip: found the name '.*', wanted names inside of its folder"):
        unpack(path, tmp_path / "a" / "b")
    assert not list(tmp_path.rglob("escaped"))


def test_absolute_name_is_refused(tmp_path: Path):
    path = write_zip(tmp_path / "toy.zip", f"{tmp_path}/escaped")
    with pytest.raises(BundleError, match="wanted names inside of its folder"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "escaped").exists()


def test_folder_above_is_no_name_of_a_bundle(tmp_path: Path):
    with pytest.raises(BundleError, match="wanted names inside of its folder"):
        name_bundle(write_zip(tmp_path / "toy.zip", "../LICENSE"))


def test_link_is_refused(tmp_path: Path):
    link = zipfile.ZipInfo("toy/configs")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(BundleError, match="found the link 'toy/configs', wanted files"):
        unpack(write_zip(tmp_path / "toy.zip", link), tmp_path / "out")


@pytest.mark.parametrize("names", [(), ("LICENSE",), ("toy/LICENSE", "other/LICENSE"), ("toy/LICENSE", "LICENSE")])
def test_zip_without_one_top_folder_is_refused(tmp_path: Path, names: tuple[str, ...]):
    with pytest.raises(BundleError, match="wanted one folder, named as the bundle"):
        name_bundle(write_zip(tmp_path / "toy.zip", *names))


def test_what_is_no_zip_is_refused(tmp_path: Path):
    (tmp_path / "toy.zip").write_text("<html>not found</html>")
    with pytest.raises(BundleError, match="found no zip file that can be read"):
        name_bundle(tmp_path / "toy.zip")


def test_damaged_zip_is_refused(tmp_path: Path):
    path = write_zip(tmp_path / "toy.zip", "toy/LICENSE")
    path.write_bytes(path.read_bytes().replace(b"content", b"comtent"))
    with pytest.raises(BundleError, match="found damaged data"):
        unpack(path, tmp_path / "out")
