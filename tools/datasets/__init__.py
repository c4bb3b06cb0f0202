# SPDX-License-Identifier: Apache-2.0
"""Data sets: one YAML card each (a config overlay), and the functions that turn folders into lists of scans."""

from __future__ import annotations

from tools.datasets.caching import DiskDataset
from tools.datasets.datalists import read_datalist, take_share
from tools.datasets.scans import list_scans, name_case, name_results
from tools.datasets.unlabelled import list_unlabelled, split_unlabelled

__all__ = [
    "DiskDataset",
    "list_scans",
    "list_unlabelled",
    "name_case",
    "name_results",
    "read_datalist",
    "split_unlabelled",
    "take_share",
]
