# SPDX-License-Identifier: Apache-2.0
"""YAML and JSON files read as plain data, with the line of every key and the keys that stand twice."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ReferenceResolver

from tools.linting.findings import Finding

SEPARATOR = ReferenceResolver.sep
LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # that in C is ten times as fast


@dataclasses.dataclass
class Document:
    """A file of a bundle.

    Args:
        name: of the file, in the bundle.
        content: what it holds, None if it could not be read.
        lines: of its ids; of a JSON file empty.
        findings: what is wrong with its form.
    """

    name: str
    content: Any = None
    lines: dict[str, int] = dataclasses.field(default_factory=dict)
    findings: list[Finding] = dataclasses.field(default_factory=list)

    @property
    def broken(self) -> bool:
        """Whether nothing could be read."""
        return bool(self.findings) and not self.content

    def locate(self, place: str) -> str:
        """Return `line 12, key a#b` for an id, with the line of its nearest parent that has one."""
        parent = place
        while parent and parent not in self.lines:
            parent = parent.rpartition(SEPARATOR)[0]
        key = place.replace(SEPARATOR, "#")
        return f"line {self.lines[parent]}, key {key}" if parent else f"key {key}" if key else ""


def read_document(path: Path, name: str) -> Document:
    """Read a YAML or JSON file; nothing of it is executed.

    Args:
        path: the file.
        name: how it is called in findings.
    """
    document = Document(name)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            document.content = json.loads(text, object_pairs_hook=lambda pairs: _join_pairs(pairs, document))
        else:
            _read_yaml(text, document)
    except UnicodeDecodeError:
        document.findings.append(Finding(name, "", "bytes that are no text", "UTF-8 text", "save the file as UTF-8"))
    except OSError as error:
        document.findings.append(
            Finding(name, "", f"a file that cannot be read ({error.strerror})", "a text file", "replace the file")
        )
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix.lower() == ".json" else "YAML"
        found = f"text that cannot be parsed ({_describe(error)})"
        document.findings.append(Finding(name, "", found, f"valid {kind}", "correct the syntax"))
    return document


def read_mapping(path: Path, name: str) -> Document:
    """Read a file that must hold a mapping; its content is one in any case."""
    document = read_document(path, name)
    if not isinstance(document.content, dict):
        if not document.findings:
            found = "nothing" if document.content is None else f"a {type(document.content).__name__}"
            document.findings.append(Finding(name, "", found, "a mapping of keys to values", "correct the file"))
        document.content = {}
    return document


def _join_pairs(pairs: Sequence[tuple[str, Any]], document: Document) -> dict[str, Any]:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            document.findings.append(_report_double(document, f"key {key}"))
        seen.add(key)
    return dict(pairs)


def _read_yaml(text: str, document: Document) -> None:
    loader = LOADER(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return
        _walk(node, "", document, loader, frozenset())
        document.content = loader.construct_document(node)
    finally:
        loader.dispose()


def _walk(node: yaml.Node, place: str, document: Document, loader: Any, above: frozenset[int]) -> None:
    if id(node) in above:
        raise ValueError("an anchor that contains itself")
    inside = above | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        children = [(str(index), child) for index, child in enumerate(node.value)]
    elif isinstance(node, yaml.MappingNode):
        children = []
        seen: dict[Hashable, int] = {}
        for key_node, child in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = loader.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if isinstance(key, Hashable) and key in seen:
                sub_id = f"{place}{SEPARATOR}{key}".removeprefix(SEPARATOR).replace(SEPARATOR, "#")
                document.findings.append(_report_double(document, f"line {line}, key {sub_id}", seen[key]))
            elif isinstance(key, Hashable):
                seen[key] = line
            children.append((str(key), child))
            sub_id = ReferenceResolver.normalize_id(f"{place}{SEPARATOR}{key}".removeprefix(SEPARATOR))
            document.lines[sub_id] = line
    else:
        return
    for key, child in children:
        sub_id = ReferenceResolver.normalize_id(f"{place}{SEPARATOR}{key}".removeprefix(SEPARATOR))
        document.lines.setdefault(sub_id, child.start_mark.line + 1)
        _walk(child, sub_id, document, loader, inside)


def _report_double(document: Document, where: str, first_line: int | None = None) -> Finding:
    found = "a duplicate key" + (f", first in line {first_line}" if first_line else "")
    return Finding(document.name, where, found, "each key once", "remove one of them: the last one counts in silence")


def _describe(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).partition("\n")[0] or type(error).__name__
