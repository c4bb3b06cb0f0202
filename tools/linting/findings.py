# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a bundle, told one sentence each."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable
from typing import Any, Literal

Severity = Literal["error", "warning"]
MAX_LENGTH = 120  # characters of a value in a sentence


@dataclasses.dataclass(frozen=True)
class Finding:
    """A fault of a bundle.

    Args:
        path: of the file, in the bundle.
        where: line and key in it; empty if the file itself is meant.
        found: what is there.
        wanted: what is needed instead.
        remedy: what the author of the bundle can do about it, as an imperative.
        severity: `error` if the bundle is wrong, `warning` if it may be meant or could not be checked.
    """

    path: str
    where: str
    found: str
    wanted: str
    remedy: str
    severity: Severity = "error"

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.path, self.where) if part)
        return f"{self.severity}: {place}: found {self.found}, wanted {self.wanted}; {self.remedy}."


def show(value: Any) -> str:
    """Return a value as a config file would have it, cut if it is long."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 4]} ..."


def suggest(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return the remedy for a wrong name: the nearest of the known ones, if there is one."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"write {near[0]}" if near else otherwise
