# SPDX-License-Identifier: Apache-2.0
"""Numbers of each structure: volume, mean intensity, whether the border of the scan cuts it off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tools.reports.volumes import convert_to_ml, read_labels
from tools.scans import Scan


def measure_statistics(
    scan_path: str | Path, segmentation_path: str | Path, names: Mapping[int, str]
) -> dict[str, dict[str, Any]]:
    """Return `volume_mm3`, `mean_intensity` and `touches_border` of each structure, None where it has no voxel.

    A structure that touches the border of the scan is probably larger than what is measured.

    Args:
        scan_path: the scan; of several volumes the first one is measured.
        segmentation_path: its segmentation, in the same grid.
        names: of the values; 0, the background, is left out.

    Raises:
        MissingFileError: if there is no such file.
        UnreadableScanError: if one of them is no NIfTI volume.
    """
    segmentation, classes = read_labels(segmentation_path, names)
    scan = Scan(scan_path, num_channels=None)
    voxels = scan.read().reshape(*scan.shape, -1)[..., 0]
    statistics = {}
    for number, (value, name) in enumerate(names.items()):
        if value == 0:
            continue
        inside = classes == number
        count = int(inside.sum())
        borders = (np.take(inside, end, axis=axis).any() for axis in range(3) for end in (0, -1))
        statistics[name] = {
            "volume_mm3": round(float(convert_to_ml(np.array(count), segmentation)) * 1e3, 3),
            "mean_intensity": round(float(voxels[inside].mean(dtype=np.float64)), 4) if count else None,
            "touches_border": any(map(bool, borders)),
        }
    return statistics
