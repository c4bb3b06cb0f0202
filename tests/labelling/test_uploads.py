# SPDX-License-Identifier: Apache-2.0
"""An upload is a scan that can be read, of a bounded size, in one file."""

from __future__ import annotations

import gzip
import io
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from tools.demonstration import EMBEDDED
from tools.errors import RequestError, UnreadableScanError
from tools.labelling import uploads
from tools.labelling.uploads import check_filename, check_upload

SCANS = sorted((EMBEDDED / "msd04_hippocampus" / "imagesTr").glob("*.nii.gz"))


def upload(content: bytes, filename: str = "/home/me/x.nii.gz") -> SimpleNamespace:
    file = io.BytesIO(content)
    file.seek(len(content))  # where whoever wrote it left it
    return SimpleNamespace(filename=filename, file=file)


def make_nrrd(*fields: str, voxels: bytes = bytes(24), sizes: str = "sizes: 2 3 4") -> bytes:
    lines = ["NRRD0004", "# comment", "type: uint8", "dimension: 3", sizes, *fields]
    return "\n".join(lines).encode() + b"\n\n" + voxels


@pytest.mark.parametrize("path", SCANS, ids=lambda path: path.name)
def test_scans_are_taken_packed_or_not(path: Path):
    packed = path.read_bytes()
    for content, filename in ((packed, "a.nii.gz"), (gzip.decompress(packed), "a.nii")):
        given = upload(content, filename)
        check_upload("file", given)
        assert given.file.read() == content  # it stands at its beginning


@pytest.mark.parametrize(
    "content",
    [
        make_nrrd("encoding: raw"),
        make_nrrd("encoding: raw", "Segment0_Name:=Größe"),
        make_nrrd("encoding: gzip", voxels=gzip.compress(bytes(24))),
        make_nrrd("encoding: gz", voxels=gzip.compress(bytes(24))).replace(b"\n\n", b"\n\r\n", 1),
        make_nrrd("encoding: raw", sizes="sizes: 2 2 3 4", voxels=bytes(48)),
    ],
)
def test_nrrd_that_holds_its_voxels_is_taken(content: bytes):
    check_upload("label", upload(content, "x.seg.nrrd"))


@pytest.mark.parametrize(
    "fields",
    [
        ["encoding: raw", "data file: /etc/hostname"],
        ["encoding: raw", "data file: LIST"],
        ["encoding: raw", "DataFile: other.raw"],
        ["encoding: raw", "data file:=/etc/hostname"],  # pynrrd takes it for the field
        ["encoding: raw", "d\xffata file: /etc/hostname"],  # pynrrd leaves the byte out
        ["encoding: raw", "# x\rdata file: /etc/hostname"],  # some readers end a line there
        ["encoding: raw", "byte skip: -1"],
        ["encoding: raw", "line skip: 3"],
        ["encoding: raw", "content: \0"],
    ],
)
def test_nrrd_that_leads_elsewhere_is_refused(fields: list[str]):
    with pytest.raises(RequestError, match=r"x.nrrd: found a header with .*, wanted voxels right behind the header"):
        check_upload("file", upload(make_nrrd(*fields).replace("ÿ".encode(), b"\xff"), "x.nrrd"))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"NRRD", "no NRRD header"),
        (b"<html>\n\n", "no NRRD header"),
        (make_nrrd("encoding: raw").replace(b"\n\n", b"\n"), "no NRRD header"),
        (make_nrrd("encoding: raw", voxels=bytes(23)), "23 bytes of voxels, wanted 24"),
        (make_nrrd("encoding: raw", voxels=bytes(25)), "25 bytes of voxels, wanted 24"),
        (make_nrrd("encoding: gzip", voxels=gzip.compress(bytes(24))[:-9]), "bytes of voxels, wanted 24"),
        (make_nrrd("encoding: gzip", voxels=b"x" * 24), "damaged data"),
        (make_nrrd("encoding: ascii"), "encoding 'ascii'"),
        (make_nrrd("encoding: raw", "encoding: gzip"), "the field 'encoding' twice"),
        (make_nrrd("encoding: raw", "Encoding: raw"), "the field 'encoding' twice"),
        (make_nrrd("encoding: bzip2"), "encoding 'bzip2'"),
        (make_nrrd("encoding: raw", sizes="sizes: 2 3"), "sizes '2 3'"),
        (make_nrrd("encoding: raw", sizes="sizes: 2 -3 4"), "the sizes '2 -3 4'"),
        (make_nrrd("encoding: raw").replace(b"uint8", b"block"), "type 'block'"),
    ],
)
def test_damaged_nrrd_is_told(content: bytes, found: str):
    with pytest.raises(UnreadableScanError, match=rf"x.nrrd: found .*{found}"):
        check_upload("file", upload(content, "x.nrrd"))


@pytest.mark.parametrize(
    ("content", "filename", "found"),
    [
        (SCANS[0].read_bytes()[:5000], "x.nii.gz", "x.nii.gz: found that the file ends early"),
        (gzip.decompress(SCANS[0].read_bytes())[:5000], "x.nii", "x.nii: found that the file ends early"),
        (b"", "x.nii.gz", "x.nii.gz: found an empty file"),
        (b"<html>", "x.nii.gz", "x.nii.gz: found no gzip data under a .gz name"),
        (gzip.compress(b"<html>" * 200), "x.nii.gz", "x.nii.gz: found no NIfTI header"),
        (SCANS[0].read_bytes(), "x.nii", "x.nii: found gzip data"),
    ],
)
def test_what_is_no_scan_is_told_under_its_name(content: bytes, filename: str, found: str):
    with pytest.raises(UnreadableScanError, match=found):
        check_upload("file", upload(content, f"/home/me/{filename}"))


def test_what_unpacks_to_more_than_is_allowed_is_refused_before_it_is_in_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(uploads, "SCAN_BYTES", 16 << 20)
    header = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes()
    bombs = [(gzip.compress(header + bytes(20 << 20)), "x.nii.gz")]
    bombs += [(make_nrrd("encoding: gzip", voxels=gzip.compress(bytes(20 << 20))), "x.nrrd")]
    for content, filename in bombs:
        assert len(content) < 100_000
        given = upload(content, filename)
        tracemalloc.start()
        with pytest.raises(
            RequestError, match=rf"{filename}: found more bytes when unpacked, wanted at most 16,777,216"
        ):
            check_upload("file", given)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()
    with pytest.raises(RequestError, match="found 18,000,000 bytes of voxels, wanted at most 16,777,216"):
        check_upload("file", upload(make_nrrd("encoding: raw", sizes="sizes: 300 300 200"), "x.nrrd"))


@pytest.mark.parametrize(
    "filename", ["x.nii.gz", "/home/me/x.nii", "../../x.nrrd", "a b (1).seg.nrrd", "Größe.v1.nii.gz"]
)
def test_path_on_the_machine_of_a_viewer_does_not_count(filename: str):
    assert check_filename("file", filename) == filename.rpartition("/")[2]


@pytest.mark.parametrize(
    "filename",
    [
        "x.sh",
        "x",
        "",
        None,
        ".nii.gz",
        "..nii.gz",
        "x.nii.gz/..",
        "x.NII.GZ",
        "a\\b.nii.gz",
        "a\0.nii.gz",
        "\ud800.nii.gz",
        f"{'x' * 200}.nii",
        "x.tar",
        "x.zip",
        "label.bin",
    ],
)
def test_other_names_are_refused(filename: str | None):
    with pytest.raises(RequestError, match=r"file: found the name .*, wanted a file that ends in .nii.gz, .nii, .nrrd"):
        check_filename("file", filename)
