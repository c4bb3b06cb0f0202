# SPDX-License-Identifier: Apache-2.0
"""A bundle as it lies in its folder: its config files, and the sets of them that are run together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tools.bundles import BUNDLES, CARDS
from tools.linting.configs import MergedConfig, merge
from tools.linting.documents import Document, read_mapping
from tools.linting.findings import Finding
from tools.linting.modules import ModuleFinder

SUFFIXES = (".yaml", ".yml", ".json")
METADATA = "configs/metadata.json"
# files of configs/ that are used together: what a run with them does, and their names without suffix
SETS = (
    ("inference", ("inference",)),
    ("train", ("train",)),
    ("evaluate", ("train", "evaluate")),
    ("train", ("train", "multi_gpu_train")),
    ("train", ("train", "omni")),
    ("train", ("train", "omni", "multi_gpu_train", "multi_gpu_omni")),
    ("evaluate", ("train", "evaluate", "multi_gpu_evaluate")),
    ("pretrain", ("pretrain",)),
    ("pretrain", ("pretrain", "multi_gpu_pretrain")),
)


class Bundle:
    """The files of a bundle, read once.

    Args:
        root: its folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.finder = ModuleFinder(root)
        self._documents: dict[str, Document] = {}

    @cached_property
    def config_names(self) -> list[str]:
        """The config files and overlays, as paths in the bundle."""
        folders = [self.root / "configs", self.root / "models"]
        paths = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in SUFFIXES)
        names = [path.relative_to(self.root).as_posix() for path in paths if path.is_file()]
        return [name for name in names if name != METADATA]

    @cached_property
    def metadata(self) -> Document:
        """The metadata; empty if there are none."""
        return self.read(METADATA) if (self.root / METADATA).is_file() else Document(METADATA, {})

    @cached_property
    def own(self) -> bool:
        """Whether the bundle is of this project: its configs use `tools`."""
        texts = [_read_text(self.root / name) for name in self.config_names]
        return self.is_committed or any(re.search(r"_target_['\"]?:\s*['\"]?tools\.", text) for text in texts)

    @cached_property
    def is_committed(self) -> bool:
        """Whether the bundle lies in the repository."""
        return self.root.resolve().parent == BUNDLES.resolve()

    @cached_property
    def exported(self) -> bool:
        """Whether the bundle is a copy for others: JSON configs, or code of its own."""
        return (
            any((self.root / f"configs/{stem}.json").is_file() for stem in ("inference", "train"))
            or (self.root / "tools").is_dir()
        )

    def read(self, name: str) -> Document:
        """Return a YAML or JSON file of the bundle that holds a mapping."""
        if name not in self._documents:
            self._documents[name] = read_mapping(self.root / name, name)
        return self._documents[name]

    def find_config(self, stem: str, suffixes: Sequence[str] = SUFFIXES) -> str | None:
        """Return the name of a config file, YAML first."""
        names = [f"{stem}{suffix}" for suffix in suffixes]
        return next((name for name in names if (self.root / name).is_file()), None)

    @cached_property
    def sets(self) -> list[MergedConfig]:
        """All config files that are run together, merged: those of `configs/`, then overlays over them."""
        found = list(self._list_sets(SUFFIXES))
        if self._json_differs():
            found += self._list_sets((".json",))
        # a file that cannot be read is told once, not again by each key that it would have
        whole = [(kind, documents) for kind, documents in found if not any(d.broken for d in documents)]
        return [merge(kind, documents, self.root) for kind, documents in whole]

    def choose(self, kind: str, count: int | None = None) -> list[MergedConfig]:
        """Return the sets of a kind, with `count` only those of that many files."""
        return [s for s in self.sets if s.kind == kind and count in (None, len(s.documents))]

    def check(self) -> Iterator[Finding]:
        """Yield what is wrong with the form of the config files, and what cannot be merged."""
        for name in [*self.config_names, METADATA]:
            if (self.root / name).is_file():
                yield from self.read(name).findings
        for merged in self.sets:
            yield from merged.findings

    def _list_sets(self, suffixes: Sequence[str]) -> Iterator[tuple[str, list[Document]]]:
        def find(*stems: str) -> list[Document] | None:
            names = [self.find_config(f"configs/{stem}", suffixes) for stem in stems]
            return None if None in names else [self.read(name) for name in names if name]

        for kind, stems in SETS:
            if documents := find(*stems):
                yield kind, documents
        for name in self.config_names:
            parts = Path(name).with_suffix("").parts
            if Path(name).suffix not in suffixes or (parts[0] == "configs" and len(parts) == 2):
                continue
            if suffixes == SUFFIXES and self.find_config("/".join(parts)) != name:
                continue  # JSON beside YAML
            yield from self._place_overlay(name, find)

    def _place_overlay(
        self, name: str, find: Callable[..., list[Document] | None]
    ) -> Iterator[tuple[str, list[Document]]]:
        """Yield the sets of an overlay: of models/ by its place, of configs/*/ by what its first lines say."""
        overlay = self.read(name)
        if name.startswith("models/"):
            bases = [("inference", ("inference",)), ("evaluate", ("train", "evaluate"))]
            cards = []
        else:
            head = "".join(line for line in _read_text(self.root / name).splitlines(True)[:6] if line.startswith("#"))
            pretrains = "after pretrain.yaml" in head or Path(name).stem.endswith("_pretrain")
            base = "pretrain" if pretrains else "inference" if "after inference.yaml" in head else "train"
            bases = [(base, (base,))]
            match = re.search(r"datasets/(\w+)\.yaml", head)
            card = CARDS / f"{match[1] if match else ''}.yaml"
            cards = [read_mapping(card, f"tools/datasets/{card.name}")] if card.is_file() else []
        for kind, stems in bases:
            if documents := find(*stems):
                yield kind, [*documents, *cards, overlay]

    def _json_differs(self) -> bool:
        pairs = [name for name in self.config_names if name.endswith(".json")]
        return any(
            (other := self.find_config(name.removesuffix(".json"), (".yaml", ".yml")))
            and self.read(name).content != self.read(other).content
            for name in pairs
        )


def normalize(value: Any) -> Any:
    """Return what JSON can hold of YAML data: its keys are texts."""
    if isinstance(value, dict):
        return {str(key): normalize(item) for key, item in value.items()}
    return [normalize(item) for item in value] if isinstance(value, (list, tuple)) else value


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
