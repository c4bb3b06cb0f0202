# SPDX-License-Identifier: Apache-2.0
"""Values in label files and the classes that they stand for."""

from __future__ import annotations

from collections.abc import Mapping


def list_label_values(label_map: Mapping[int, int]) -> list[int]:
    """Return for each class the value that stands for it in label files, of several the first one.

    Args:
        label_map: class of each value, as on the card of a data set.
    """
    values: dict[int, int] = {}
    for value, number in label_map.items():
        values.setdefault(int(number), int(value))
    return [values[number] for number in sorted(values)]
