# SPDX-License-Identifier: Apache-2.0
"""The header of a file that `convert` wrote: what it says of the weights beside their names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.errors import CheckpointError
from tools.weights.files import OTHERS
from tools.weights.layouts import OWN, PART
from tools.weights.merging_forms import HEADER
from tools.weights.report import MatchReport


def describe_weights(report: MatchReport, source: Path, count: int, whole: bool) -> dict[str, str]:
    """Return the header for weights that `report` tells of.

    Args:
        report: of their conversion.
        source: the file they come from.
        count: tensors of the new file; of a part nothing else tells that one was lost.
        whole: whether they are a whole network.
    """
    epsilon = {} if report.norm_epsilon is None else {"norm_epsilon": f"{report.norm_epsilon:g}"}
    return {
        "format": "pt",
        "layout": OWN.name if whole else PART,
        "licence": report.licence,
        "source": f"{source.name}, sha256 {report.sha256}, {report.title}",
        "tensors": str(count),
        **epsilon,
        **({HEADER: report.patch_merging} if report.patch_merging else {}),
    }


def choose_layout(layout: str, metadata: Mapping[str, Any], count: int, path: Path) -> str:
    """Return `layout`, or for `auto` that of a part of a network if the header says so.

    Args:
        layout: as of `match`.
        metadata: the header.
        count: tensors in the file.
        path: of it, for messages.

    Raises:
        CheckpointError: if the file does not have as many tensors as its header says.
    """
    if layout != "auto" or metadata.get("layout") != PART:
        return layout
    written = metadata.get("tensors", str(count))
    if written != str(count):
        remedy = "convert the original file again"
        raise CheckpointError(path, f"{count} tensors", f"the {written} that were written into it", remedy)
    return PART


def complete_report(report: MatchReport, metadata: Mapping[str, Any], path: Path, sha256: str) -> None:
    """Add to a report what the file and its header say.

    Raises:
        CheckpointError: if the header is damaged.
    """
    report.sha256, report.size_bytes = sha256, path.stat().st_size
    report.licence = metadata.get("licence", report.licence)
    if OTHERS in metadata:
        report.remarks.append(metadata[OTHERS])
    if "norm_epsilon" in metadata:
        try:
            report.norm_epsilon = float(metadata["norm_epsilon"])
        except ValueError as error:
            found, remedy = f"norm_epsilon {metadata['norm_epsilon']!r} in its header", "convert the original again"
            raise CheckpointError(path, found, "a number", remedy) from error
