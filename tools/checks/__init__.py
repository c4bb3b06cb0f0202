# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a scan, a data set or a command line, said with file, value and remedy before the work begins."""

from __future__ import annotations

from tools.checks.pairs import check_dataset, check_pair
from tools.checks.scan_lists import select_readable
from tools.checks.settings import check_command_line, check_device, check_memory, check_shares
from tools.checks.volumes import check_scan, read_header

__all__ = [
    "check_command_line",
    "check_dataset",
    "check_device",
    "check_memory",
    "check_pair",
    "check_scan",
    "check_shares",
    "read_header",
    "select_readable",
]
