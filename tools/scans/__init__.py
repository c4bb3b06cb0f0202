# SPDX-License-Identifier: Apache-2.0
"""Scans: what a file says of its grid, and what its voxels look like."""

from __future__ import annotations

from tools.scans.facts import ScanFacts, read_facts
from tools.scans.grids import check_same_grid
from tools.scans.images import NiftiImage, find_names, load_image, save_image
from tools.scans.nifti import check_scan
from tools.scans.scan import Scan

__all__ = [
    "NiftiImage",
    "Scan",
    "ScanFacts",
    "check_same_grid",
    "check_scan",
    "find_names",
    "load_image",
    "read_facts",
    "save_image",
]
