# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from tools.release.archive import write_archive


def test_the_bytes_depend_on_the_content_alone(tmp_path: Path):
    files = {"a/b.txt": b"text", "a/c.bin": bytes(1000)}
    write_archive(tmp_path / "first.zip", files)
    write_archive(tmp_path / "second.zip", dict(reversed(files.items())))
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "first.zip") as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == files
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_checksum_stands_beside_it_as_sha256sum_reads_it(tmp_path: Path):
    write_archive(tmp_path / "x.zip", {"a": b"b"})
    digest = hashlib.sha256((tmp_path / "x.zip").read_bytes()).hexdigest()
    assert (tmp_path / "x.zip.sha256").read_text() == f"{digest}  x.zip\n"
