# SPDX-License-Identifier: Apache-2.0
"""Tables: aligned text for logs, CSV for spreadsheets."""

from __future__ import annotations

import csv
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from tools.files import write_atomically

_TOLERANT: Any = {"encoding": "utf-8", "errors": "backslashreplace"}  # a file name need not be UTF-8
_NUMBER = re.compile(r"-|[-+]?(\d+\.?\d*(e[-+]?\d+)?|inf)")
_SMALLEST_FIXED = 5e-4  # below it, four decimals leave no digit of a learning rate


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows under a header as plain text; numbers are aligned right, text left.

    Fractions get four decimals in a column where none exceeds 1 (Dice, loss), three in any other (mL, seconds), and an
    exponent where they would read 0.000. NaN and None read `-`.

    Args:
        header: column names.
        rows: as many cells each as there are columns.

    Raises:
        ValueError: if a row has more or fewer cells than the header.
    """
    columns = []
    for name, cells in zip(header, _transpose(rows, len(header)), strict=True):
        decimals = 4 if all(abs(cell) <= 1 for cell in cells if _is_fraction(cell)) else 3
        texts = [_format_cell(cell, decimals) for cell in cells]
        width = max(map(len, [name, *texts]))
        align = str.rjust if texts and all(_NUMBER.fullmatch(text) for text in texts) else str.ljust
        columns.append([align(name, width), "-" * width, *(align(text, width) for text in texts)])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def format_markdown(header: Sequence[str], rows: Sequence[Sequence[object]], num_texts: int = 1) -> str:
    """Return rows under a header as a table of Markdown.

    Args:
        header: column names.
        rows: as many cells each as there are columns.
        num_texts: how many of the first columns are aligned left; the others hold numbers.
    """
    rule = ["---"] * num_texts + ["---:"] * (len(header) - num_texts)
    lines = [[str(cell).replace("|", "\\|") for cell in line] for line in (header, rule, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_volume_table(rows: Mapping[str, Mapping[str, float]], path: str | Path) -> None:
    """Write a CSV file with a row per scan and a column `<label>_ml` per label, atomically.

    Args:
        rows: volumes in mL by label by scan; a label that only some scans have is left empty in the others.
        path: the file.

    Raises:
        OSError: if the folder cannot be written.
    """
    labels = list(dict.fromkeys(label for volumes in rows.values() for label in volumes))
    with write_atomically(path) as temporary, temporary.open("w", newline="", **_TOLERANT) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["scan", *(f"{'_'.join(label.split())}_ml" for label in labels)])
        for scan, volumes in rows.items():
            writer.writerow([scan, *(f"{volumes[label]:.3f}" if label in volumes else "" for label in labels)])


def _transpose(rows: Sequence[Sequence[object]], width: int) -> list[list[object]]:
    for row in rows:
        if len(row) != width:
            raise ValueError(f"a row of {len(row)} cells under {width} columns: {row}")
    return [[row[position] for row in rows] for position in range(width)]


def _is_fraction(cell: object) -> TypeGuard[float]:
    return isinstance(cell, numbers.Real) and not isinstance(cell, numbers.Integral) and math.isfinite(cell)


def _format_cell(cell: object, decimals: int) -> str:
    if cell is None or (isinstance(cell, numbers.Real) and math.isnan(cell)):
        return "-"
    if not _is_fraction(cell):
        return str(cell)
    return f"{cell:.2e}" if 0 < abs(cell) < _SMALLEST_FIXED else f"{cell:.{decimals}f}"
