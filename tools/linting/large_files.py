# SPDX-License-Identifier: Apache-2.0
"""`large_files.yml`: files that are downloaded into a bundle."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

from tools.catalogue import PublicFile
from tools.linting.bundle import Bundle
from tools.linting.documents import SEPARATOR, Document
from tools.linting.findings import Finding, show, suggest
from tools.weights.layouts import LAYOUTS

NAMES = ("large_files.yml", "large_files.yaml", "large_files.json")
DIGITS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}
MONAI_KEYS = frozenset(str.split("path url hash_val hash_type name description progress quiet fuzzy"))


def check_large_files(bundle: Bundle) -> Iterator[Finding]:
    """Yield what is wrong with the list of files to be downloaded."""
    there = [name for name in NAMES if (bundle.root / name).is_file()]
    for name in there[1:]:
        yield Finding(name, "", f"a second list beside {there[0]}", "one list", "remove one of them")
    for name in there:
        document = bundle.read(name)
        yield from document.findings
        entries = document.content.get("large_files")
        if not isinstance(entries, list):
            if not document.findings:
                yield Finding(name, "", "no list large_files", "a list of files", "write large_files: and the entries")
            continue
        for position, entry in enumerate(entries):
            yield from _check_entry(entry, document, position, bundle)
        for key in ("path", "name"):
            yield from _find_doubles(entries, key, document)


def list_large_paths(bundle: Bundle) -> set[str]:
    """Return the paths of the files that are downloaded, or made of downloaded ones."""
    paths = set()
    for name in NAMES:
        entries = bundle.read(name).content.get("large_files") if (bundle.root / name).is_file() else None
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, Mapping):
                paths |= {str(entry[key]) for key in ("path", "converted") if key in entry}
    return paths


def _find_doubles(entries: list[Any], key: str, document: Document) -> Iterator[Finding]:
    seen: dict[str, int] = {}
    for position, entry in enumerate(entries):
        value = entry.get(key) if isinstance(entry, Mapping) else None
        if isinstance(value, str) and value in seen:
            where = document.locate(f"large_files{SEPARATOR}{position}{SEPARATOR}{key}")
            found = f"{value}, as in entry {seen[value] + 1}"
            yield Finding(document.name, where, found, f"another {key} in each entry", "remove or rename one")
        elif isinstance(value, str):
            seen[value] = position


def _check_entry(entry: Any, document: Document, position: int, bundle: Bundle) -> Iterator[Finding]:
    def report(key: str, found: str, wanted: str, remedy: str) -> Finding:
        place = f"large_files{SEPARATOR}{position}" + (f"{SEPARATOR}{key}" if key else "")
        return Finding(document.name, document.locate(place), found, wanted, remedy)

    if not isinstance(entry, Mapping):
        yield report("", show(entry), "a mapping with path and url", "correct the entry")
        return
    fields = {field.name for field in dataclasses.fields(PublicFile)} - {"bundle"}
    known = fields | (MONAI_KEYS if not bundle.own else {"path"})
    # `tools weights fetch` needs more than MONAI's download_large_files
    required = ["path", "url", *(["name", "licence", "layout"] if bundle.own and not bundle.exported else [])]
    for key in required:
        if not entry.get(key):
            remedy = suggest(key, [str(k) for k in entry if k not in known], "").removeprefix("write ")
            yield report("", f"no {key}", f"an entry with {key}", f"rename {remedy}" if remedy else f"add {key}")
    for key in entry:
        if bundle.own and key not in known:
            yield report(str(key), f"the key {key}", "a key that is read", suggest(str(key), known, "remove it"))
    for key in ("path", "converted"):
        if key in entry and (why := _find_fault_of_path(entry[key])):
            yield report(key, why, "a path inside the bundle", "write it relative to the bundle's folder")
    if "url" in entry and not _is_url(entry["url"]):
        yield report("url", show(entry["url"]), "an address with http or https and a host", "correct the address")
    yield from _check_hash(entry, report, bundle.root)
    if bundle.own and entry.get("layout") and entry["layout"] not in LAYOUTS:
        wanted = f"one of {', '.join(LAYOUTS)}"
        yield report("layout", show(entry["layout"]), wanted, suggest(str(entry["layout"]), LAYOUTS, "correct it"))
    for key in ("size_mb", "size_bytes"):
        if key in entry and (isinstance(entry[key], bool) or not isinstance(entry[key], int) or entry[key] <= 0):
            yield report(key, show(entry[key]), "a whole number above 0", "correct it")


def _find_fault_of_path(path: Any) -> str | None:
    if not isinstance(path, str) or not path:
        return show(path)
    if PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive or path.startswith(("~", "\\")):
        return f"the absolute path {path}"
    if ".." in PurePosixPath(path).parts or ".." in PureWindowsPath(path).parts:
        return f"{path}, which leaves the bundle"
    return f"the address {path}" if "://" in path else None


def _is_url(url: Any) -> bool:
    try:
        parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not re.search(r"\s", str(url))


def _check_hash(entry: Mapping[str, Any], report: Any, root: Path) -> Iterator[Finding]:
    kind, digest = entry.get("hash_type", "sha256"), entry.get("hash_val")
    if kind not in DIGITS:
        if kind:
            yield report("hash_type", show(kind), f"one of {', '.join(DIGITS)}", "correct it")
        return
    if not digest:
        if entry.get("hash_type"):
            yield report("hash_type", f"{kind} without hash_val", "a hash", "add hash_val, or remove hash_type")
        return
    if not isinstance(digest, str) or not re.fullmatch(rf"[0-9a-fA-F]{{{DIGITS[kind]}}}", digest):
        found = f"{show(digest)} ({len(str(digest))} characters)"
        yield report("hash_val", found, f"{DIGITS[kind]} hexadecimal digits of {kind}", "correct it or hash_type")
        return
    path = entry.get("path")
    file = root / path if isinstance(path, str) and not _find_fault_of_path(path) else None
    if file and file.is_file():
        with file.open("rb") as stream:
            actual = hashlib.file_digest(stream, kind).hexdigest()
        if actual != digest.lower():
            remedy = "download the file again, or correct the hash"
            yield report("hash_val", f"{path} with {kind} {actual}", digest, remedy)
