# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import math
import os
import random
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tools.files import compute_sha256, write_atomically, write_json

REPOSITORY = Path(__file__).resolve().parents[1]


def test_a_file_appears_whole_and_alone(tmp_path):
    path = tmp_path / "new" / "folder" / "result.txt"
    with write_atomically(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")

    def fail() -> None:
        with write_atomically(path) as temporary:
            temporary.write_text("ne")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_raises_before_it_wrote_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="early"), write_atomically(tmp_path / "result.txt"):
        raise ValueError("early")
    assert not list(tmp_path.iterdir())


def test_a_block_that_writes_nothing_is_an_error_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), write_atomically(path):
        pass
    assert path.read_text() == "old"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    previous = os.umask(umask)
    try:
        write_json(tmp_path / "result.json", {})
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "result.json").stat().st_mode) == mode


def test_the_suffix_stays_so_that_nibabel_knows_the_format(tmp_path):
    path = tmp_path / "map.nii.gz"
    with write_atomically(path) as temporary:
        assert temporary.name.endswith(".nii.gz")
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".")  # no list of scans takes it
        nib.save(nib.Nifti1Image(np.ones((2, 3, 4), np.uint8), np.eye(4)), temporary)
    assert path.read_bytes()[:2] == b"\x1f\x8b"
    assert nib.load(path).shape == (2, 3, 4)


def test_concurrent_writers_never_mix(tmp_path):
    path = tmp_path / "shared.txt"
    path.write_text("a" * 50_000)

    def write(letter: str) -> None:
        for _ in range(10):
            random.seed(0)  # as every process of a seeded run does
            with write_atomically(path) as temporary:
                temporary.write_text(letter * 50_000)

    def read(_: int) -> set[tuple[int, int]]:
        texts = [path.read_text() for _ in range(30)]
        return {(len(text), len(set(text))) for text in texts}

    with ThreadPoolExecutor(6) as pool:
        writers = [pool.submit(write, letter) for letter in "bcde"]
        seen = set.union(*pool.map(read, range(2)))
        for writer in writers:
            writer.result()
    assert seen == {(50_000, 1)}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.costs(processes=1)
def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.pt"
    path.write_bytes(b"old" * 1000)
    code = f"""
import sys, time
from tools.files import write_atomically
with write_atomically({str(path)!r}) as temporary, temporary.open("wb") as file:
    file.write(b"new" * 500)
    file.flush()
    print("half", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "half\n"
    finally:
        process.kill()
        process.communicate()
    assert path.read_bytes() == b"old" * 1000


def test_the_content_is_on_the_disk_before_the_file_gets_its_name(tmp_path, monkeypatch):
    path, seen = tmp_path / "last.pt", []
    synchronize = os.fsync

    def watch(descriptor: int) -> None:
        synchronize(descriptor)
        seen.append((path.exists(), os.fstat(descriptor).st_size))

    monkeypatch.setattr(os, "fsync", watch)
    with write_atomically(path) as temporary:
        temporary.write_bytes(b"new" * 500)
    assert seen == [(False, 1500)]
    assert path.read_bytes() == b"new" * 500


def test_json_is_readable_by_people_and_by_strict_parsers(tmp_path):
    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is no JSON")

    path = tmp_path / "run.json"
    write_json(path, {"name": "Zwölffingerdarm", "dice": [0.5, math.nan], "worst": {"hd95": math.inf}, "shape": (1, 2)})
    text = path.read_text(encoding="utf-8")
    assert "Zwölffingerdarm" in text
    assert text.endswith("}\n")
    assert json.loads(text, parse_constant=refuse) == {
        "name": "Zwölffingerdarm",
        "dice": [0.5, None],
        "worst": {"hd95": None},
        "shape": [1, 2],
    }


def test_what_json_cannot_hold_leaves_the_old_report(tmp_path):
    write_json(tmp_path / "run.json", {"scans": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "run.json", {"scans": {1, 2}})
    assert json.loads((tmp_path / "run.json").read_text()) == {"scans": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_the_hash_is_that_of_sha256sum(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-4, example of NIST
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert compute_sha256(tmp_path / "abc") == expected
