# SPDX-License-Identifier: Apache-2.0
"""Lists and products of two, of which each commit runs a covering choice and a release all."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest


def cover(rows: Sequence[Any], columns: Sequence[Any], everywhere: Collection[Any] = ()) -> list[Any]:
    """Return all pairs; those that are not needed to have each row and each column once are marked `exhaustive`.

    Args:
        rows: the bundles, for instance.
        columns: the cards, for instance.
        everywhere: columns that are run with every row, the kinds of cards for instance.
    """
    count = max(len(rows), len(columns))
    chosen = {(number % len(rows), number % len(columns)) for number in range(count)}
    return [
        (one, other)
        if (row, column) in chosen or other in everywhere
        else pytest.param(one, other, marks=pytest.mark.exhaustive)
        for row, one in enumerate(rows)
        for column, other in enumerate(columns)
    ]


def sample(values: Iterable[Any], *kept: Any) -> list[Any]:
    """Mark all but those that are kept as `exhaustive`."""
    return [value if value in kept else pytest.param(value, marks=pytest.mark.exhaustive) for value in values]


def thin(combinations: Iterable[tuple[Any, ...]], step: int) -> list[Any]:
    """Mark all but every `step`th combination as `exhaustive`."""
    return [
        pytest.param(*values, marks=[pytest.mark.exhaustive] if number % step else [])
        for number, values in enumerate(combinations)
    ]
