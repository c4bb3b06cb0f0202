# SPDX-License-Identifier: Apache-2.0
"""Scans that cannot be used are left out with their reasons."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from tools.checks import select_readable
from tools.errors import EmptyDatasetError


def test_bad_scans_are_skipped_and_each_reason_is_logged_once(write_scan, tmp_path, caplog):
    good = [write_scan("a.nii.gz"), write_scan("d.nii")]
    cut = write_scan("b.nii.gz")
    cut.write_bytes(cut.read_bytes()[:-200])
    series = write_scan("c.nii", np.zeros((4, 4, 4, 3), np.float32))
    files = [good[0], cut, series, tmp_path / "missing.nii", good[1]]
    with caplog.at_level(logging.WARNING):
        readable = select_readable([{"image": str(path)} for path in files])
    assert readable == [{"image": str(path)} for path in good]
    (record,) = caplog.records
    text = record.getMessage()
    assert text.startswith("3 of 5 scans cannot be used and are skipped:")
    for path, words in ((cut, "ends early"), (series, "3 volumes"), (tmp_path / "missing.nii", "no such file")):
        (line,) = (line for line in text.splitlines() if str(path) in line)
        assert words in line


def test_scans_that_teach_nothing_are_skipped_and_those_with_holes_are_not(write_scan, caplog):
    voxels = np.random.default_rng(0).random((8, 9, 10)).astype(np.float32)
    voxels[0] = np.nan
    holes = write_scan("holes.nii", voxels)
    nothing = write_scan("nothing.nii", np.full((8, 9, 10), np.nan, np.float32))
    constant = write_scan("constant.nii", np.full((8, 9, 10), 7, np.int16))
    patch = write_scan("patch.nii", np.where(np.isnan(voxels), voxels, 5).astype(np.float32))  # NaN around one value
    files = [{"image": str(path)} for path in (holes, nothing, constant, patch)]
    with caplog.at_level(logging.WARNING):
        assert select_readable(files) == [{"image": str(holes)}]
    first, *reasons = caplog.records[-1].getMessage().splitlines()
    assert first == "3 of 4 scans cannot be used and are skipped:"
    expected = (nothing, "720 NaN"), (constant, "the same value 7 in every"), (patch, "the same value 5 in every")
    for reason, (path, words) in zip(reasons, expected, strict=True):
        assert reason.startswith(f"  {path}: found {words}")


def test_one_damaged_file_among_hundreds_is_found(write_scan, tmp_path, caplog):
    content = write_scan("scan.nii", np.arange(8, dtype=np.int16).reshape(2, 2, 2)).read_bytes()
    files = [tmp_path / f"scan_{number:03}.nii" for number in range(300)]
    for file in files:
        file.write_bytes(content if file.stem != "scan_211" else content[:-1])
    with caplog.at_level(logging.WARNING):
        readable = select_readable([{"image": str(file)} for file in files])
    assert [entry["image"] for entry in readable] == [str(file) for file in files if file.stem != "scan_211"]
    assert "1 of 300 scans cannot be used" in caplog.text
    assert "scan_211.nii: found that the file ends early" in caplog.text


def test_sound_scans_pass_in_silence(write_scan, caplog):
    with caplog.at_level(logging.WARNING):
        assert select_readable([{"image": str(write_scan())}], num_workers=0) == [{"image": str(write_scan())}]
    assert not caplog.records


def test_no_readable_scan_is_an_error_with_a_reason(write_scan):
    empty = write_scan("empty.nii")
    empty.write_bytes(b"")
    with pytest.raises(EmptyDatasetError, match=r"no usable scan among 1 \(.*empty\.nii: found an empty file"):
        select_readable([{"image": str(empty)}])
