# SPDX-License-Identifier: Apache-2.0
"""Kinds of values in requests: each takes what it knows and raises `RequestError` for anything else.

MONAI Label puts ids, tags and suffixes into paths as they come, writes settings into configs, where a text that begins
with `$` is code, and hands all keys of a request's `params` to transforms, which take some of them for files.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tools.errors import RequestError

Kind = Callable[[str, Any], Any]

NAME_BYTES = 200  # with a suffix behind it less than the 255 that file systems allow
FORBIDDEN = re.compile(r"[/\\\x00-\x1f\x7f]")
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
WEIGHTS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}\.pt")
DEVICE = re.compile(r"cpu|cuda(:[0-9]{1,2})?")
GPUS = re.compile(r"all|[0-9]{1,2}(,[0-9]{1,2})*|")
SESSION = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# never an expression or a reference of a config, a path or an address
WORDS = re.compile(r"([A-Za-z0-9][A-Za-z0-9 _.-]{0,63})?")
TEXT_BYTES = 1_000
NOTE_BYTES, NOTE_DEPTH = 64 << 10, 8
POINTS = 10_000
REMEDY = "correct it"


def name(subject: str, value: Any) -> str:
    """Take the name of one file without its suffix, in any script."""
    if (
        not isinstance(value, str)
        or not value.strip()
        or value.startswith(".")
        or FORBIDDEN.search(value)
        or count_bytes(value) > NAME_BYTES
    ):
        wanted = f"a name of at most {NAME_BYTES} bytes without / and \\ that does not begin with a dot"
        raise RequestError(subject, shorten(value), wanted, REMEDY)
    return value


def tag(subject: str, value: Any) -> str:
    """Take the tag of a label: `final`, `original`, `version_1`."""
    return match(TAG, "at most 64 letters, digits, _ and -")(subject, value)


def flag(subject: str, value: Any) -> bool:
    """Take true or false."""
    if not isinstance(value, bool):
        raise RequestError(subject, shorten(value), "true or false", REMEDY)
    return value


def number(lowest: float, highest: float, whole: bool = False) -> Kind:
    """Take a number from `lowest` to `highest`."""

    def take(subject: str, value: Any) -> float:
        kinds = int if whole else (int, float)
        # `not a <= b` for NaN
        if isinstance(value, bool) or not isinstance(value, kinds) or not lowest <= value <= highest:
            wanted = f"a {'whole ' if whole else ''}number from {lowest:g} to {highest:g}"
            raise RequestError(subject, shorten(value), wanted, REMEDY)
        return value

    return take


def match(pattern: re.Pattern[str], wanted: str) -> Kind:
    """Take a text that is wholly as `pattern` says."""

    def take(subject: str, value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise RequestError(subject, shorten(value), wanted, REMEDY)
        return value

    return take


def choice(*offered: Any) -> Kind:
    """Take one of some values."""

    def take(subject: str, value: Any) -> Any:
        if not any(type(value) is type(one) and value == one for one in offered):
            raise RequestError(subject, shorten(value), " or ".join(map(repr, offered)), REMEDY)
        return value

    return take


def optional(kind: Kind) -> Kind:
    """Take nothing, or what `kind` takes."""
    return lambda subject, value: value if value is None else kind(subject, value)


def one_or_more(kind: Kind) -> Kind:
    """Take what `kind` takes or a list of it, as 3D Slicer and scripts send what `/info/` offers."""

    def take(subject: str, value: Any) -> Any:
        if not isinstance(value, list):
            return kind(subject, value)
        if not 0 < len(value) <= 100:
            raise RequestError(subject, f"{len(value)} entries", "1 to 100", REMEDY)
        return [kind(subject, entry) for entry in value]

    return take


def text(subject: str, value: Any) -> str:
    """Take a short text that is only kept and shown."""
    if not isinstance(value, str) or count_bytes(value) > TEXT_BYTES:
        raise RequestError(subject, shorten(value), f"a text of at most {TEXT_BYTES} bytes", REMEDY)
    return value


def points(subject: str, value: Any) -> list[Any]:
    """Take the coordinates of clicks or of a box, in voxels."""
    if not isinstance(value, list) or len(value) > POINTS:
        raise RequestError(subject, shorten(value), f"a list of at most {POINTS} points", REMEDY)
    for entry in value:
        for coordinate in entry if isinstance(entry, list) and len(entry) <= 4 else [entry]:
            number(-1e6, 1e6)(subject, coordinate)
    return value


def note(reserved: Collection[str] = ()) -> Kind:
    """Take an object of plain values that is only kept beside a scan or label and shown.

    Args:
        reserved: keys that the server writes itself.
    """

    def take(subject: str, value: Any) -> Mapping[str, Any]:
        content = read_object(subject, value, NOTE_BYTES)
        if taken := content.keys() & set(reserved):
            raise RequestError(subject, f"the key {min(taken)}", "keys of your own", "leave it out")
        if _measure_depth(content) > NOTE_DEPTH:
            raise RequestError(subject, "values inside of values", f"at most {NOTE_DEPTH} levels", "make it simpler")
        return content

    return take


def setting(default: Any) -> Kind:
    """Take what may stand in place of a setting's default: the same kind of value, never an expression."""
    if isinstance(default, bool):
        return flag
    if isinstance(default, (int, float)):
        return number(-1e6, 1e6)
    if isinstance(default, Sequence) and not isinstance(default, str):
        return one_or_more(choice(*default))

    def take(subject: str, value: Any) -> Any:
        if value == default and type(value) is type(default):
            return value
        if not isinstance(default, str):  # a mapping or nothing: what may stand there is not known
            raise RequestError(subject, shorten(value), f"{default!r}, which cannot be changed", "leave it out")
        return match(WORDS, "at most 64 letters, digits, spaces, _ . and -")(subject, value)

    return take


def read_object(subject: str, value: Any, limit: int = NOTE_BYTES) -> dict[str, Any]:
    """Return the object in a JSON text of at most `limit` bytes, or `value` if it is one already."""
    content = value if isinstance(value, dict) else _read_json(subject, value, limit)
    if not isinstance(content, dict) or math.isinf(count_bytes(json.dumps(content, ensure_ascii=False))):
        raise RequestError(subject, shorten(content), "a JSON object of Unicode text", REMEDY)
    return content


def read_settings(subject: str, value: Any, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """Return the object in a JSON text, or `value`, with all keys and values taken by their kinds."""
    content = read_object(subject, value, NOTE_BYTES * 16)  # clicks
    return {key: find_kind(subject, key, kinds)(f"{subject}, {key}", entry) for key, entry in content.items()}


def write_object(content: Mapping[str, Any]) -> str:
    """Return the JSON text of an object: each key once, as it was checked."""
    return json.dumps(content, allow_nan=False)


def find_kind(subject: str, key: str, kinds: Mapping[str, Kind]) -> Kind:
    """Return the kind of a key.

    Raises:
        RequestError: if there is none: what is not known is not let in.
    """
    if key not in kinds:
        known = ", ".join(sorted(kinds)) or "none"
        raise RequestError(subject, f"the key {shorten(key)}", f"some of {known}", "leave it out")
    return kinds[key]


def count_bytes(value: str) -> float:
    """Return the length of a text in UTF-8, infinity for half a character: files and answers can hold none."""
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        return math.inf


def shorten(value: Any) -> str:
    """Return a value as a message shows it."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:76]}..."


def _read_json(subject: str, value: Any, limit: int) -> Any:
    if not isinstance(value, str) or count_bytes(value) > limit:
        raise RequestError(subject, shorten(value), f"JSON of at most {limit:,} bytes", REMEDY)
    try:
        return json.loads(value, parse_constant=_refuse_constant, parse_float=_read_float)
    except (ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise RequestError(subject, f"no JSON ({reason})", "a JSON object", REMEDY) from error


def _refuse_constant(constant: str) -> Any:
    # Python writes and reads it, but FastAPI cannot answer with it: the list of studies would be an error from then on
    raise ValueError(f"{constant} is no number in JSON")


def _read_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):  # 1e999
        raise ValueError(f"{digits[:20]} is too large")
    return value


def _measure_depth(content: Any, depth: int = 0) -> int:
    if depth > NOTE_DEPTH or not isinstance(content, (dict, list)):
        return depth
    entries = content.values() if isinstance(content, dict) else content
    return max((_measure_depth(entry, depth + 1) for entry in entries), default=depth)
