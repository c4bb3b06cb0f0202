# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a scan, a data set or a command line, said with file, value and remedy before the work begins."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tools.scans.nifti import check_scan

if TYPE_CHECKING:
    from tools.checks.pairs import check_dataset, check_pair
    from tools.checks.plausibility import check_model_settings, find_oddities
    from tools.checks.scan_lists import select_readable
    from tools.checks.settings import check_command_line, check_device, check_memory, check_settings, check_shares

__all__ = [
    "check_command_line",
    "check_dataset",
    "check_device",
    "check_memory",
    "check_model_settings",
    "check_pair",
    "check_scan",
    "check_settings",
    "check_shares",
    "find_oddities",
    "select_readable",
]
# imported when they are asked for: they stand on MONAI and torch, which commands that look at a header do without
_LATER = {
    **dict.fromkeys(("check_dataset", "check_pair"), "pairs"),
    **dict.fromkeys(
        ("check_command_line", "check_device", "check_memory", "check_settings", "check_shares"), "settings"
    ),
    **dict.fromkeys(("check_model_settings", "find_oddities"), "plausibility"),
    "select_readable": "scan_lists",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"tools.checks.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
