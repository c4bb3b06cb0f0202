# SPDX-License-Identifier: Apache-2.0
"""From scans to segmentations in the grid of their source."""

from tools.inference.mirroring import MirroringInferer
from tools.inference.segmenter import ScanSegmenter
from tools.inference.slice_windows import SliceWindowInferer
from tools.inference.writers import SaveProbabilitiesd, SaveSegmentationd

__all__ = [
    "MirroringInferer",
    "SaveProbabilitiesd",
    "SaveSegmentationd",
    "ScanSegmenter",
    "SliceWindowInferer",
]
