# SPDX-License-Identifier: Apache-2.0
"""The match report: what became of every tensor of a checkpoint and of every tensor of the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.files import write_json

REPORT_NAME = "weights.json"
SHOWN_NAMES = 3  # of a list, in the table; the JSON has all
NETWORK_KINDS = ("matched", "reshaped", "fresh", "tolerated", "untouched", "missing", "misshapen")
FILE_KINDS = ("used", "dropped", "unexpected")


@dataclass
class MatchReport:
    """What a checkpoint and a network have in common.

    Every tensor of the file is in one of `used`, `dropped`, `unexpected`; every tensor of the network is in one of
    `matched`, `reshaped`, `fresh`, `tolerated`, `untouched`, `missing`, `misshapen`.

    Args:
        source: the file.
        layout: name of its layout.
        title: what that is.
        family: networks that the layout is for.
        network: class of the network.
        licence: of the weights.
        sha256: of the file, None for weights in memory.
        size_bytes: likewise.
        description: arguments of the network that the weights belong to, read from their shapes.
        network_description: those of the network itself.
        used: tensors of the file that went into the network, by themselves or folded into another.
        dropped: tensors of the file left out on purpose, with the reason.
        unexpected: tensors of the file that have no place in the network.
        matched: tensors of the network that took the file's values as they were.
        reshaped: those that took them after a conversion, with what was done.
        fresh: output layers that keep their first values because the classes differ.
        tolerated: tensors that the file need not have, with the reason.
        untouched: tensors outside the layout's part of the network, which keep their values.
        missing: tensors that the file should have and has not.
        misshapen: tensors whose shapes do not fit, with both shapes.
        remarks: what the file does not say, and what is assumed instead.
        norm_epsilon: what the layer norms of the transformer get, None if they keep theirs.
        patch_merging: the form of a Swin transformer's patch merging, None for other networks.
        patch_merging_evidence: what tells it.
        network_values: numbers in the network's tensors.
        loaded_values: how many of them came from the file.
        accepted: whether the weights were loaded.
    """

    source: str
    layout: str
    title: str
    family: str
    network: str
    licence: str
    sha256: str | None = None
    size_bytes: int | None = None
    description: dict[str, Any] = field(default_factory=dict)
    network_description: dict[str, Any] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    matched: list[str] = field(default_factory=list)
    reshaped: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    tolerated: dict[str, str] = field(default_factory=dict)
    untouched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    misshapen: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    norm_epsilon: float | None = None
    patch_merging: str | None = None
    patch_merging_evidence: str = ""
    network_values: int = 0
    loaded_values: int = 0
    accepted: bool = False

    @property
    def share(self) -> float:
        """The part of the network's numbers that came from the file, from 0 to 1."""
        return self.loaded_values / max(1, self.network_values)

    @property
    def num_loaded(self) -> int:
        """Tensors of the network that came from the file."""
        return len(self.matched) + len(self.reshaped)

    @property
    def num_tensors(self) -> int:
        """Tensors of the network."""
        return sum(len(getattr(self, kind)) for kind in NETWORK_KINDS)

    def summarize(self) -> str:
        """Return one line: the file, the layout and how much of the network came from it."""
        merging = f", patch merging {self.patch_merging} ({self.patch_merging_evidence})" if self.patch_merging else ""
        return (
            f"{self.source}: {self.num_loaded} of {self.num_tensors} tensors loaded, "
            f"{self.loaded_values / 1e6:.1f} M values ({self.share:.0%}), layout {self.layout}{merging}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain containers, the counts first."""
        kinds = (*NETWORK_KINDS, *FILE_KINDS)
        facts = (
            *("source", "sha256", "size_bytes", "licence", "layout", "title", "description"),
            *("family", "network", "network_description", "norm_epsilon"),
            *("patch_merging", "patch_merging_evidence", "remarks", "accepted"),
        )
        return {
            **{name: getattr(self, name) for name in facts},
            "loaded_values": self.loaded_values,
            "network_values": self.network_values,
            "share": round(self.share, 6),
            "counts": {kind: len(getattr(self, kind)) for kind in kinds},
            **{kind: getattr(self, kind) for kind in kinds},
        }

    def write(self, folder: str | Path) -> None:
        """Write `weights.json` into `folder`, atomically."""
        write_json(Path(folder) / REPORT_NAME, self.to_dict())

    def __str__(self) -> str:
        size = f", {self.size_bytes / 1e6:.1f} MB, sha256 {(self.sha256 or '')[:12]}" if self.size_bytes else ""
        rows = [
            ("weights", f"{self.source}{size}"),
            ("layout", f"{self.layout}: {self.title}"),
            ("licence", self.licence),
            (
                "loaded",
                f"{self.num_loaded} of {self.num_tensors} tensors of {self.network}, "
                f"{self.loaded_values / 1e6:.1f} of {self.network_values / 1e6:.1f} M values ({self.share:.0%})",
            ),
            *((("norms", f"epsilon {self.norm_epsilon:g}, the 2D network's"),) if self.norm_epsilon else ()),
            *((("merging", f"{self.patch_merging}, {self.patch_merging_evidence}"),) if self.patch_merging else ()),
            *(("remark", remark) for remark in self.remarks),
            *((kind, _tell(getattr(self, kind))) for kind in NETWORK_KINDS if getattr(self, kind)),
            *((f"{kind} (file)", _tell(getattr(self, kind))) for kind in FILE_KINDS[1:] if getattr(self, kind)),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _tell(entries: list[str] | dict[str, str]) -> str:
    """Say how many entries there are and give the first ones, grouped by their reasons."""
    if isinstance(entries, list):
        return f"{len(entries):>4}  {_shorten(entries)}"
    groups: dict[str, list[str]] = {}
    for name, reason in entries.items():
        groups.setdefault(reason, []).append(name)
    parts = [f"{reason} ({len(names)}: {_shorten(names)})" for reason, names in list(groups.items())[:SHOWN_NAMES]]
    more = f"; {len(groups) - SHOWN_NAMES} more reasons" if len(groups) > SHOWN_NAMES else ""
    return f"{len(entries):>4}  {'; '.join(parts)}{more}"


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
