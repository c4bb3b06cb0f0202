# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from tools.tables import format_table, write_volume_table


def test_numbers_are_aligned_right_and_nan_reads_as_a_dash():
    table = format_table(["case", "Dice"], [["a", 0.5], ["longer", math.nan]])
    assert table.splitlines() == ["case      Dice", "------  ------", "a       0.5000", "longer       -"]


def test_a_row_with_too_few_cells_is_refused():
    with pytest.raises(ValueError, match="columns"):
        format_table(["a", "b"], [[1]])


def test_volumes_have_a_row_per_scan_and_a_column_per_label(tmp_path):
    write_volume_table({"x": {"liver": 1.5, "left kidney": 2.0}, "y": {"liver": 3.0}}, tmp_path / "volumes.csv")
    with (tmp_path / "volumes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"scan": "x", "liver_ml": "1.500", "left_kidney_ml": "2.000"},
        {"scan": "y", "liver_ml": "3.000", "left_kidney_ml": ""},
    ]


def test_decimals_follow_the_column_and_missing_values_are_dashes():
    assert format_table(
        ["scan", "Dice", "mL", "n"],
        [["case 1", 0.91234, 1500.0, 3], ["b", np.float32(0.5), math.nan, 12], ["mean", 1.0, None, 15]],
    ).splitlines() == [
        "scan      Dice        mL   n",
        "------  ------  --------  --",
        "case 1  0.9123  1500.000   3",
        "b       0.5000         -  12",
        "mean    1.0000         -  15",
    ]


def test_numbers_that_the_caller_has_formatted_stand_right_too():
    table = format_table(["class", "Dice"], [["a", "0.5"], ["b", "-"]])
    assert table.splitlines()[2:] == ["a       0.5", "b         -"]


def test_small_numbers_keep_their_digits():
    assert "1.25e-05" in format_table(["learning rate"], [[1.25e-5], [0.01], [0.0]])


def test_text_and_numbers_in_one_column_stand_left():
    assert format_table(["note", "x"], [["fine", 1], [2, 3]]).splitlines()[2:] == ["fine  1", "2     3"]


def test_a_table_without_rows_is_its_header():
    assert format_table(["a", "bc"], []) == "a  bc\n-  --"


def test_a_failed_write_leaves_the_old_table(tmp_path: Path):
    path = tmp_path / "volumes.csv"
    write_volume_table({"a": {"spleen": 1.0}}, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="format"):
        write_volume_table({"a": {"spleen": "much"}}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_no_scans_give_a_table_of_the_header_alone(tmp_path: Path):
    write_volume_table({}, tmp_path / "volumes.csv")
    assert (tmp_path / "volumes.csv").read_text(encoding="utf-8") == "scan\n"


@pytest.mark.parametrize(
    ("value", "text"), [(2e-5, "2.00e-05"), (-2e-5, "-2.00e-05"), (0.0, "0.0000"), (-0.5, "-0.5000")]
)
def test_small_fractions_keep_their_digits_on_both_sides_of_zero(value, text):
    assert format_table(["change"], [[value]]).splitlines()[-1].strip() == text
