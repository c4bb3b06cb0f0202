# SPDX-License-Identifier: Apache-2.0
"""Scans: what a file says of its grid, and what its voxels look like."""

from __future__ import annotations

from tools.scans.facts import ScanFacts, read_facts
from tools.scans.units import get_unit_mm

__all__ = ["ScanFacts", "get_unit_mm", "read_facts"]
