# SPDX-License-Identifier: Apache-2.0
"""Right and left: which structures change places in a mirror image, and along which axes a data set may be mirrored.

A flip makes a mirror image of the patient. If a label that says "right kidney" stays with its voxels, a network is
taught that the left one is the right one in half of what it sees. What is so is a fact of the data set and stands in
its card, key `mirrored`:

- a mapping of names: these structures change places. Flips go from right to left and exchange them;
- an empty mapping: no structure does. Flips go along all axes and labels stay. So it is with the chambers of the
  heart, whose names tell another thing than the side; the published codes flip all data so;
- nothing said: labels whose names tell no side are flipped along all axes, others not at all.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from tools.errors import ConfigValueError

_OPPOSITES = (("right", "left"), ("r", "l"), ("rt", "lt"), ("rh", "lh"))
_OTHER_SIDE = {a: b for pair in _OPPOSITES for a, b in (pair, pair[::-1])}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")  # of kidney_left, LeftKidney, Parotid L


def list_sided(labels: Sequence[str]) -> list[str]:
    """Return the names that tell a side, background aside."""
    return [name for name in labels[1:] if any(word.lower() in _OTHER_SIDE for word in _WORD.findall(name))]


def suggest_mirrored(labels: Sequence[str]) -> dict[str, str]:
    """Return the pairs of names that differ in the side alone: `{right kidney: left kidney}`."""
    words = {tuple(word.lower() for word in _WORD.findall(name)): name for name in labels[1:]}
    pairs: dict[str, str] = {}
    for own, name in words.items():
        other = words.get(tuple(_OTHER_SIDE.get(word, word) for word in own), name)
        if other != name and name not in pairs.values():
            pairs[name] = other
    return pairs


def choose_mirror_axes(labels: Sequence[str], mirrored: Mapping[str, str] | None, orientation: str) -> list[int]:
    """Return the axes of the volume along which training flips.

    Args:
        labels: names of the classes, background first.
        mirrored: structures that change places in a mirror image; None where nothing is known.
        orientation: where the axes point to, such as RAS.
    """
    if mirrored:
        return [axis for axis, letter in enumerate(orientation.upper()) if letter in "RL"]
    return [] if mirrored is None and list_sided(labels) else [0, 1, 2]


def list_mirrored_classes(labels: Sequence[str], mirrored: Mapping[str, str] | None) -> list[int]:
    """Return for each class the one that it is in a mirror image.

    Args:
        labels: names of the classes, background first.
        mirrored: structures that change places in a mirror image; None where nothing is known.

    Raises:
        ConfigValueError: if a name is not among `labels` or stands twice.
    """
    places = list(range(len(labels)))
    names = [name for pair in (mirrored or {}).items() for name in pair]
    for name in names:
        if name not in labels:
            near = difflib.get_close_matches(str(name), labels, n=1)
            remedy = f"did you mean {near[0]}" if near else "correct mirrored"
            raise ConfigValueError("mirrored", repr(name), "names among labels", remedy)
        if names.count(name) > 1:
            raise ConfigValueError("mirrored", f"{name} twice", "each name once", "correct mirrored")
    for one, other in (mirrored or {}).items():
        first, second = labels.index(one), labels.index(other)
        places[first], places[second] = second, first
    return places


def describe_mirroring(labels: Sequence[str], mirrored: Mapping[str, str] | None, axes: Sequence[int]) -> str:
    """Say along which axes training flips, and what becomes of the sides that the names of structures tell.

    Args:
        labels: names of the classes, background first.
        mirrored: structures that change places in a mirror image; None where nothing is known.
        axes: axes along which training flips.
    """
    sided = ", ".join(list_sided(labels))
    along = f"flips along {'axis' if len(axes) == 1 else 'axes'} {', '.join(map(str, axes))}" if axes else "no flips"
    if not sided:
        return along
    if axes and mirrored:
        return f"{along}: {', '.join(f'{one} and {other}' for one, other in mirrored.items())} change places"
    if axes:
        return f"{along}: {sided} keep their names in mirror images"
    pairs = suggest_mirrored(labels) if mirrored is None else {}
    hint = (
        f'; if these change places in a mirror image, flip and exchange them by --mirrored "{pairs}"' if pairs else ""
    )
    return f"{along}, as names tell sides: {sided}{hint}"
