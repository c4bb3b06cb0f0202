# SPDX-License-Identifier: Apache-2.0
"""Scans that cannot be read are left out with their reasons."""

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
    assert text.startswith("3 of 5 scans cannot be read and are skipped:")
    for path, words in ((cut, "ends early"), (series, "3 volumes"), (tmp_path / "missing.nii", "no such file")):
        (line,) = (line for line in text.splitlines() if str(path) in line)
        assert words in line


def test_sound_scans_pass_in_silence(write_scan, caplog):
    with caplog.at_level(logging.WARNING):
        assert select_readable([{"image": str(write_scan())}], num_workers=0) == [{"image": str(write_scan())}]
    assert not caplog.records


def test_no_readable_scan_is_an_error_with_a_reason(write_scan):
    empty = write_scan("empty.nii")
    empty.write_bytes(b"")
    with pytest.raises(EmptyDatasetError, match=r"no readable scan among 1 \(.*empty\.nii: found an empty file"):
        select_readable([{"image": str(empty)}])
