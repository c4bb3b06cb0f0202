# SPDX-License-Identifier: Apache-2.0
"""Config files merged as `monai.bundle run` merges them, with the file that each key comes from."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver

from tools.linting.documents import SEPARATOR, Document, read_mapping
from tools.linting.findings import Finding, Severity, show, suggest

MACRO, MERGE = "%", "+"
MAX_ITEMS = 200_000  # aliases of YAML can make a small file explode


@dataclasses.dataclass
class MergedConfig:
    """Config files that are used together.

    Args:
        kind: `inference`, `train`, `evaluate`, `pretrain`: what a run with them does.
        documents: the files in the order in which they are merged.
        content: the result, with macros and relative ids resolved.
        origins: the file that set an id.
        findings: what cannot be merged.
    """

    kind: str
    documents: Sequence[Document]
    content: dict[str, Any] = dataclasses.field(default_factory=dict)
    origins: dict[str, Document] = dataclasses.field(default_factory=dict)
    findings: list[Finding] = dataclasses.field(default_factory=list)
    items: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def title(self) -> str:
        """The files, for a sentence."""
        return " + ".join(document.name for document in self.documents)

    def get(self, place: str, default: Any = None) -> Any:
        """Return the value of an id, written with # or ::."""
        return self.items.get(ReferenceResolver.normalize_id(place), default)

    def __contains__(self, place: str) -> bool:
        """Tell whether the id exists."""
        return ReferenceResolver.normalize_id(place) in self.items

    def find_origin(self, place: str) -> Document:
        """Return the file that an id comes from."""
        parent = place
        while parent and parent not in self.origins:
            parent = parent.rpartition(SEPARATOR)[0]
        return self.origins[parent] if parent else self.documents[0]

    def report(self, place: str, found: str, wanted: str, remedy: str, severity: Severity = "error") -> Finding:
        """Return a finding about an id, told with the file and line that it comes from."""
        place = ReferenceResolver.normalize_id(place)
        document = self.find_origin(place)
        return Finding(document.name, document.locate(place), found, wanted, remedy, severity)


def merge(kind: str, documents: Sequence[Document], root: Path) -> MergedConfig:
    """Merge files as MONAI's `load_config_files` does and resolve macros and relative ids; nothing is evaluated.

    Args:
        kind: what a run with them does.
        documents: the files, in order.
        root: folder of the bundle, where macros look for files.
    """
    config = MergedConfig(kind, documents)
    parser = ConfigParser(config={}, globals=False)
    for document in documents:
        for key, value in copy.deepcopy(document.content).items():
            _set(parser, str(key), value, document, config)
    config.content = parser.get()
    _resolve(config.content, "", config, root, set())
    for place, value in iterate_items(config.content):
        config.items[place] = value
        if len(config.items) > MAX_ITEMS:
            config.findings.append(
                config.report("", f"more than {MAX_ITEMS} values", "a config of a usual size", "remove aliases")
            )
            break
    return config


def iterate_items(config: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the ids of a config and their values, the whole config first."""
    yield place, config
    if isinstance(config, (dict, list)):
        for _, sub_place, value in ReferenceResolver.iter_subconfigs(place, config):
            # MONAI replaces # in references only, so that a key with # inside cannot be referred to
            yield from iterate_items(value, sub_place)


def _set(parser: ConfigParser, key: str, value: Any, document: Document, config: MergedConfig) -> None:
    place = ReferenceResolver.normalize_id(key.removeprefix(MERGE))
    parent = place.rpartition(SEPARATOR)[0]
    above = parser.get(parent) if parent else parser.get()
    whole = Finding(document.name, document.locate(ReferenceResolver.normalize_id(key)), "", "", "")
    if not isinstance(above, (dict, list)):
        known = sorted(known for known, _ in iterate_items(parser.get()) if known)
        remedy = suggest(parent, known, "correct the key, or give its files in another order").replace(SEPARATOR, "#")
        wanted = f"a key of {' + '.join(d.name for d in config.documents[: config.documents.index(document)])}"
        found = f"the key {parent.replace(SEPARATOR, '#')}, which nothing before it has"
        config.findings.append(
            dataclasses.replace(whole, found=found, wanted=wanted if len(wanted) > 9 else "a nested key", remedy=remedy)
        )
        return
    if isinstance(above, list):
        last = place.rpartition(SEPARATOR)[2]
        if not last.isdecimal() or int(last) >= len(above):
            found, wanted = f"position {last}", f"a position in the list of {len(above)}"
            config.findings.append(dataclasses.replace(whole, found=found, wanted=wanted, remedy="correct the key"))
            return
    if key.startswith(MERGE):
        old = parser.get(place)
        if isinstance(old, dict) and isinstance(value, dict):
            old.update(value)
            for name in value:
                config.origins[f"{place}{SEPARATOR}{name}"] = document
            return
        if isinstance(old, list) and isinstance(value, list):
            for offset in range(len(value)):
                config.origins[f"{place}{SEPARATOR}{len(old) + offset}"] = document
            old.extend(value)
            return
        if old is not None:
            found, wanted = f"{type(value).__name__} to be added to {type(old).__name__}", "two lists or two mappings"
            remedy = "write the key without +"
            config.findings.append(dataclasses.replace(whole, found=found, wanted=wanted, remedy=remedy))
            return
        found, wanted = f"the key {key}, but no {place} to add to", "an existing key after +"
        remedy = suggest(place, parser.get(), "write the key without +")
        config.findings.append(
            dataclasses.replace(whole, found=found, wanted=wanted, remedy=remedy, severity="warning")
        )
    parser[place] = value
    for old_place in [p for p in config.origins if p == place or p.startswith(place + SEPARATOR)]:
        del config.origins[old_place]
    config.origins[place] = document


def _resolve(node: Any, place: str, config: MergedConfig, root: Path, above: set[int]) -> None:
    if id(node) in above:
        return
    for key, sub_place, value in list(ReferenceResolver.iter_subconfigs(place, node)):
        if isinstance(value, (dict, list)):
            _resolve(value, sub_place, config, root, above | {id(node)})
        elif isinstance(value, str):
            try:
                text = ConfigParser.resolve_relative_ids(sub_place, value) if value[:1] in ("@", "$", MACRO) else value
            except ValueError:
                found = f"{show(value)}, which goes above the top"
                config.findings.append(
                    config.report(sub_place, found, "a relative id inside the config", "remove a # of it")
                )
                continue
            node[key] = _expand_macro(text, sub_place, config, root) if text.startswith(MACRO) else text


def _expand_macro(text: str, place: str, config: MergedConfig, root: Path) -> Any:
    """Return what a macro stands for, None after a finding."""
    file, target = ConfigParser.split_path_id(text[len(MACRO) :])
    spelled = text.replace(SEPARATOR, "#")
    if not file:
        source: Any = config.content
    else:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts:
            config.findings.append(
                config.report(place, f"the macro {spelled}", "a file inside the bundle", "write a path relative to it")
            )
            return None
        name = next((str(p) for p in (path, "configs" / path) if (root / p).is_file()), None)
        if name is None:
            config.findings.append(
                config.report(
                    place, f"the macro {spelled}, but no file {file}", "a file of the bundle", "correct the path"
                )
            )
            return None
        document = read_mapping(root / name, name)
        config.findings.extend(document.findings)
        source = document.content
    value = ConfigParser(config={"root": source}, globals=False).get(f"root::{target}" if target else "root", None)
    if value is None and target not in ("", None):
        known = [known for known, _ in iterate_items(source)]
        remedy = suggest(target, known, "define it, or remove the macro").replace(SEPARATOR, "#")
        config.findings.append(
            config.report(place, f"the macro {spelled}, which stands for nothing", "a key that exists", remedy)
        )
    return copy.deepcopy(value)
