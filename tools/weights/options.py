# SPDX-License-Identifier: Apache-2.0
"""Options of the loaders as users type them: what does not exist or cannot be meant is told in one sentence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from tools.errors import ConfigValueError
from tools.weights.inflation import Inflation


def check_names(names: Collection[object], known: Collection[str], subject: str) -> None:
    """Refuse options that do not exist.

    Args:
        names: of the options that are given.
        known: those that exist.
        subject: where they are given, for the message.

    Raises:
        ConfigValueError: naming the first that does not, and the nearest that does.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            remedy = f"write {near[0]}" if near else "remove it"
            raise ConfigValueError(subject, f"the option {name}", f"options among {', '.join(known)}", remedy)


def read_inflation(options: object, subject: str = "inflation") -> Inflation:
    """Return how a 2D network is inflated.

    Args:
        options: arguments of `Inflation` by their names, or None for its defaults.
        subject: where they are given, for messages.

    Raises:
        ConfigValueError: if they are no mapping, or a name or a value is unknown.
    """
    if options is None:
        return Inflation()
    known = [field.name for field in fields(Inflation)]
    if not isinstance(options, Mapping):
        raise ConfigValueError(subject, repr(options), f"a mapping of {' and '.join(known)}", "correct it")
    check_names(options.keys(), known, subject)
    return Inflation(**options)


def check_pattern(name: str, pattern: object) -> None:
    """Refuse a pattern that is no regular expression.

    Raises:
        ConfigValueError: if it is none.
    """
    if pattern is None:
        return
    wanted, remedy = "a regular expression for names of tensors", r"write for instance (stem|fusion)\..*"
    if not isinstance(pattern, str):
        raise ConfigValueError(name, repr(pattern), wanted, remedy)
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigValueError(name, f"{pattern!r} ({error})", wanted, remedy) from error


def check_source_grid(grid: object) -> None:
    """Refuse a grid that is not three positive numbers.

    Raises:
        ConfigValueError: if it is not.
    """
    if grid is None:
        return
    sizes = list(grid) if isinstance(grid, Sequence) and not isinstance(grid, str) else []
    if len(sizes) != 3 or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        remedy = "give source_grid: [x, y, z], the size of its training crops divided by 16"
        raise ConfigValueError("source_grid", repr(grid), "patches along X, Y and Z, three positive numbers", remedy)


def check_source_heads(heads: object) -> None:
    """Refuse a number of attention heads that is none.

    Raises:
        ConfigValueError: if it is none.
    """
    if heads is not None and (isinstance(heads, bool) or not isinstance(heads, int) or heads < 1):
        raise ConfigValueError(
            "source_heads", repr(heads), "attention heads of the file's network", "give a number above 0"
        )


def read_path(name: str, path: object) -> Path:
    """Return a path that a user gave.

    Raises:
        ConfigValueError: if it is no text.
    """
    if not isinstance(path, (str, Path)) or not str(path):
        raise ConfigValueError(name, repr(path), "the path of a file", f"give {name} a path")
    return Path(path).expanduser()
