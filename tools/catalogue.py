# SPDX-License-Identifier: Apache-2.0
"""The public weights that bundles name in `large_files.yml`: what they are and where they come from."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from tools.bundles import BUNDLES
from tools.errors import ConfigValueError
from tools.tables import format_table

if TYPE_CHECKING:
    from torch import nn

FILE_NAME = "large_files.yml"


@dataclasses.dataclass(frozen=True)
class PublicFile:
    """One entry of `large_files.yml`; MONAI's `download_large_files` reads the same file.

    Args:
        bundle: folder of the bundle.
        name: for `--name`.
        path: of the file, in the bundle.
        url: where it is.
        licence: of the weights, as far as their owner says.
        layout: key of `tools.weights.LAYOUTS`.
        hash_val: digest of the file, None where the owner publishes none.
        hash_type: `sha256` or `md5`.
        size_bytes: exact size, None where it is not known.
        size_mb: about how large it is.
        network: `_target_` and arguments of the network that the weights must fit; None: only read.
        converted: of whole models: the file, in the bundle, that has them under the names of this MONAI.
        inflation: arguments of `Inflation`, for 2D weights.
        patch_merging: the form that a Swin transformer was trained with, see `tools.networks.patch_merging`.
    """

    bundle: Path
    name: str
    path: str
    url: str
    licence: str
    layout: str
    hash_val: str | None = None
    hash_type: str = "sha256"
    size_bytes: int | None = None
    size_mb: int | None = None
    network: Mapping[str, Any] | None = None
    converted: str | None = None
    inflation: Mapping[str, str] = dataclasses.field(default_factory=dict)
    patch_merging: str | None = None

    @property
    def target(self) -> Path:
        """Where the file belongs."""
        return self.bundle / self.path

    @property
    def source(self) -> Path:
        """The file with the entry."""
        return self.bundle / FILE_NAME

    def build_network(self) -> nn.Module | None:
        """Return the network that the weights must fit, None if the entry names none."""
        from monai.bundle import ConfigComponent  # takes seconds, and a list of the files needs no network

        # a component by itself: expressions in the file are not evaluated
        return ConfigComponent(config=dict(self.network)).instantiate() if self.network else None


def read_catalogue(bundle: str) -> list[PublicFile]:
    """Return the public files of a bundle, its default first.

    Raises:
        ConfigValueError: if there is no such bundle, or an entry of its file is wrong.
    """
    known = sorted(path.parent.name for path in BUNDLES.glob(f"*/{FILE_NAME}"))
    if bundle not in known:
        raise ConfigValueError("bundle", repr(bundle), f"one of {', '.join(known)}", "correct the name")
    source = BUNDLES / bundle / FILE_NAME
    return list(_read_entries(source, source.stat().st_mtime_ns))


@functools.cache  # 0.05 s for all four, and each loading of weights asks whether they are public ones
def _read_entries(source: Path, _changed_ns: int) -> tuple[PublicFile, ...]:
    content = yaml.safe_load(source.read_text(encoding="utf-8"))
    entries = content.get("large_files") if isinstance(content, Mapping) else None
    if not isinstance(entries, list):
        raise ConfigValueError(source, "no list large_files", "a list of files", "correct the file")
    return tuple(_read_entry(entry, source, position) for position, entry in enumerate(entries))


def read_catalogues() -> list[PublicFile]:
    """Return the public files of all bundles; none where there is no repository, as beside an exported bundle."""
    return [file for path in sorted(BUNDLES.glob(f"*/{FILE_NAME}")) for file in read_catalogue(path.parent.name)]


def choose_files(bundle: str, name: str | None) -> list[PublicFile]:
    """Return the file of that name, all of them for `all`, the bundle's default for None.

    Raises:
        ConfigValueError: if there is none of that name.
    """
    files = read_catalogue(bundle)
    if name == "all":
        return files
    chosen = files[:1] if name is None else [file for file in files if file.name == name]
    if not chosen:
        near = difflib.get_close_matches(str(name), [file.name for file in files], n=1)
        hint = f"give --name {near[0]}" if near else "correct the name"
        known = ", ".join(file.name for file in files)
        raise ConfigValueError("--name", repr(name), f"all or one of {known}", hint)
    return chosen


def list_files() -> str:
    """Return a table of the public files of all bundles."""
    rows = []
    for file in read_catalogues():
        size = f"{file.size_mb} MB" if file.size_mb else "not known"
        rows.append((file.bundle.name, file.name, size, "yes" if file.target.is_file() else "no", file.licence))
    return format_table(["bundle", "name", "size", "here", "licence"], rows)


def _check_types(entry: Mapping[str, Any], place: str) -> None:
    """Raise `ConfigValueError` if a value of an entry is of another type than its key wants."""
    texts = ("name", "path", "url", "licence", "layout", "hash_val", "hash_type", "converted")
    for name, kind, wanted in (
        *((name, str, "a text") for name in texts),
        *((name, int, "a whole number") for name in ("size_bytes", "size_mb")),
        ("network", Mapping, "a mapping with _target_"),
    ):
        value = entry.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ConfigValueError(place, f"{name} {value!r}", wanted, "correct the entry")
    if "_target_" not in entry.get("network", {"_target_": None}):
        raise ConfigValueError(place, "a network without _target_", "the name of its class", "complete the entry")


def _read_entry(entry: Any, source: Path, position: int) -> PublicFile:
    place = f"{source}, entry {position + 1}"
    fields = {field.name: field for field in dataclasses.fields(PublicFile) if field.name != "bundle"}
    if not isinstance(entry, Mapping):
        raise ConfigValueError(place, repr(entry), "a mapping", "correct the entry")
    for name in entry:
        if name not in fields:
            raise ConfigValueError(place, f"the key {name}", f"keys among {', '.join(fields)}", "correct the key")
    for name, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and not entry.get(name):
            raise ConfigValueError(place, f"no {name}", f"an entry with {name}", "complete the entry")
    _check_types(entry, place)
    for name in ("path", "converted"):
        path = PurePosixPath(entry.get(name) or ".")
        if path.is_absolute() or ".." in path.parts:
            raise ConfigValueError(place, f"{name} {path}", "a path inside the bundle", "correct the path")
    return PublicFile(bundle=source.parent, **entry)
