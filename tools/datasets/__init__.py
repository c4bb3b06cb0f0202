# SPDX-License-Identifier: Apache-2.0
"""Data sets: one YAML card each (a config overlay), and the functions that turn folders into lists of scans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tools.datasets.datalists import read_datalist, take_share
from tools.datasets.labels import list_label_values
from tools.datasets.scans import list_scans, name_case, name_results
from tools.datasets.sides import choose_mirror_axes, describe_mirroring, list_mirrored_classes
from tools.datasets.unlabelled import list_unlabelled, split_unlabelled

if TYPE_CHECKING:
    from tools.datasets.caching import DiskDataset

__all__ = [
    "DiskDataset",
    "choose_mirror_axes",
    "describe_mirroring",
    "list_label_values",
    "list_mirrored_classes",
    "list_scans",
    "list_unlabelled",
    "name_case",
    "name_results",
    "read_datalist",
    "split_unlabelled",
    "take_share",
]


def __getattr__(name: str) -> Any:
    """Import what stands on MONAI when it is asked for: lists of files are needed by commands that answer at once."""
    if name == "DiskDataset":
        from tools.datasets.caching import DiskDataset

        return DiskDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
