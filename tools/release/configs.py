# SPDX-License-Identifier: Apache-2.0
"""Config files with their overlays written into them, comments kept, and the same as JSON.

The overlay's own lines replace those of the config, so that the result reads as if a person had written it. That it
means the same as what MONAI makes of the two files is checked each time.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

SEPARATORS = re.compile(r"::|#")
# lines of the repository's configs about files that an exported bundle does not have
ABOUT_OVERLAYS = re.compile(r"^#.*(tools/datasets|models/|recipes/|augmentation/)")


@dataclass(frozen=True)
class Entry:
    """A key of a block mapping with the lines it takes.

    Attributes:
        node: the YAML node of its value.
        first: number of its first line, from 0.
        last: number of the line behind its last one.
        indent: spaces in front of the key.
    """

    node: yaml.Node
    first: int
    last: int
    indent: int


def merge_files(base: Path, overlays: Sequence[Path], changes: Mapping[str, Any], omit: Sequence[str] = ()) -> str:
    """Return the text of a config into which overlays are written, then single values.

    What an overlay says of keys that the config has no use for, because they are for another config or bundle, is left
    out.

    Args:
        base: the config.
        overlays: YAML files of flat keys (`a` or `a#b`), later ones win.
        changes: more keys and values.
        omit: top-level keys to leave out.

    Raises:
        RuntimeError: if the text does not mean what MONAI makes of the files; an error of this module.
    """
    text = base.read_text(encoding="utf-8")
    parser = ConfigParser(yaml.safe_load(text))
    for overlay in overlays:
        lines = overlay.read_text(encoding="utf-8")
        values = yaml.safe_load(lines)
        entries = _list_entries(lines)
        for key, value in values.items():
            name = SEPARATORS.split(key)[0]
            if name not in omit and (name in parser or f"@{name}" in text):
                block = "".join(lines.splitlines(keepends=True)[entries[key].first : entries[key].last])
                text = _write(text, key, _make_portable(value), None if value != _make_portable(value) else block)
                parser[key] = _make_portable(value)
    for key, value in changes.items():
        text = _write(text, key, value, None)
        parser[key] = value
    text = _drop_comments(text)
    if yaml.safe_load(text) != json.loads(json.dumps(parser.get())):
        raise RuntimeError(f"{base.name}: the merged text does not mean what MONAI makes of its files")
    return text


def render_json(text: str, source: str) -> str:
    """Return a YAML config as JSON, with a key that says where it comes from."""
    note = f"made of {source}, which has the comments; keep the two equal: MONAI Label and monai.bundle.load read this"
    return json.dumps({"_desc_": note, **yaml.safe_load(text)}, indent=4, allow_nan=False) + "\n"


def _make_portable(value: Any) -> Any:
    """Spell what JSON lacks, mappings from numbers and infinity, as expressions of MONAI."""
    if isinstance(value, Mapping):
        if any(not isinstance(key, str) for key in value):
            return f"$dict({[[key, entry] for key, entry in value.items()]})"
        return {key: _make_portable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_make_portable(entry) for entry in value]
    return f"$float('{value}')" if isinstance(value, float) and not math.isfinite(value) else value


def _write(text: str, key: str, value: Any, block: str | None) -> str:
    """Return a config with one key set, by the lines `block` of an overlay if there are such."""
    path = SEPARATORS.split(key)
    entries = _list_entries(text)
    lines = text.splitlines(keepends=True)
    parent: Entry | None = None
    for name in path[:-1]:
        entry = entries.get(name)
        if entry is None or not isinstance(entry.node, yaml.MappingNode) or entry.node.flow_style:
            return _rewrite(text, path, value)
        parent, entries = entry, _list_children(entry, lines)
    indent = 0 if parent is None else min(entry.indent for entry in entries.values())
    old = entries.get(path[-1])
    if block is None:
        block = f"{path[-1]}: {_flow(value)}{_find_comment(lines, old)}\n"
    else:
        block = re.sub(r"^[^\s:]+(?:::[^\s:]+)*:", f"{path[-1]}:", block, count=1)
    written = [f"{' ' * indent}{line}" if line.strip() else line for line in block.splitlines(keepends=True)]
    if old is not None:
        lines[old.first : old.last] = written
    elif parent is not None:
        lines[parent.last : parent.last] = written
    else:
        lines += written
    return "".join(lines)


def _rewrite(text: str, path: Sequence[str], value: Any) -> str:
    """Set a key in a mapping that is written in one line, by writing that line anew."""
    config = yaml.safe_load(text)
    inner = config[path[0]]
    for name in path[1:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return _write(text, path[0], config[path[0]], None)


def _list_entries(text: str) -> dict[str, Entry]:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(node, yaml.MappingNode)
    return _describe_entries(node, text.splitlines(keepends=True))


def _list_children(entry: Entry, lines: Sequence[str]) -> dict[str, Entry]:
    assert isinstance(entry.node, yaml.MappingNode)
    return _describe_entries(entry.node, lines)


def _describe_entries(node: yaml.MappingNode, lines: Sequence[str]) -> dict[str, Entry]:
    entries = {}
    for key, value in node.value:
        # a block ends where the next key begins, behind the comments and blank lines that belong to that
        is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        last = value.end_mark.line + (not is_block and value.end_mark.column > 0)
        while not lines[last - 1].strip() or lines[last - 1].lstrip().startswith("#"):
            last -= 1
        entries[key.value] = Entry(value, key.start_mark.line, last, key.start_mark.column)
    return entries


def _find_comment(lines: Sequence[str], entry: Entry | None) -> str:
    """Return the comment behind a value of one line; it tells the unit or meaning, which stay."""
    if entry is None or entry.last - entry.first != 1:
        return ""
    rest = lines[entry.first][entry.node.end_mark.column :].rstrip()
    return rest if rest.lstrip().startswith("#") else ""


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()


def _drop_comments(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not ABOUT_OVERLAYS.match(line))
