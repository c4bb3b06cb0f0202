# SPDX-License-Identifier: Apache-2.0
"""A scan at a glance, from its header and a sample of its voxels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.scans.scan import Scan

_AIR_HU = -200  # below it is no tissue
_SAMPLE_VOXELS = 200_000
_NO_DATA = 1e30  # no intensity is that large


@dataclass(frozen=True)
class ScanFacts:
    """A scan at a glance.

    Attributes:
        path: the file.
        shape: voxels along the axes of the file.
        spacing_mm: along the same axes.
        orientation: where those axes point to, such as RAS.
        extent_mm: length to the right, to the front and to the head.
        dtype: of the voxels in the file.
        percentiles: of the intensities: 0, 1, 50, 99, 100 %.
        modality: CT or MR, as far as the intensities tell.
        oddities: what deserves a second look.
    """

    path: Path
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str
    extent_mm: tuple[float, float, float]
    dtype: str
    percentiles: tuple[float, ...]
    modality: str
    oddities: tuple[str, ...]


def read_facts(path: str | Path) -> ScanFacts:
    """Read the header of a scan and a sample of its voxels.

    Raises:
        MissingFileError: if there is no such file.
        UnreadableScanError: if it is no NIfTI volume.
    """
    scan = Scan(path, num_channels=None)
    sample = _draw_sample(scan.read())
    finite = sample[np.isfinite(sample) & (np.abs(sample) < _NO_DATA)]
    percentiles = np.percentile(finite, (0, 1, 50, 99, 100)) if finite.size else np.full(5, np.nan)
    return ScanFacts(
        scan.path,
        scan.shape if scan.num_channels == 1 else (*scan.shape, scan.num_channels),
        tuple(round(float(length), 4) for length in scan.spacing_mm),
        scan.orientation,
        tuple(round(float(length), 1) for length in scan.extent_mm),  # type: ignore[arg-type]
        str(scan.dtype),
        tuple(round(float(value), 4) for value in percentiles),
        _guess_modality(percentiles),
        tuple(_find_oddities(scan, percentiles, finite.size < sample.size)),
    )


def _draw_sample(voxels: np.ndarray) -> np.ndarray:
    """Return every so manyth voxel."""
    voxels = voxels.ravel(order="K")
    return voxels[:: max(1, voxels.size // _SAMPLE_VOXELS)].astype(np.float64)


def _guess_modality(percentiles: np.ndarray) -> str:
    """CT has air far below zero; MR has no negative values to speak of."""
    lowest, _, _, _, highest = percentiles
    return "CT" if lowest <= _AIR_HU and highest > 0 else "MR"


def _find_oddities(scan: Scan, percentiles: np.ndarray, has_no_numbers: bool) -> list[str]:
    found, spacing = [], scan.spacing_mm
    if scan.unit_mm != 1:
        found.append(f"its unit is {'m' if scan.unit_mm > 1 else 'micron'}, not mm")
    if not scan.has_orientation:
        found.append("it says nothing of its orientation (qform and sform code 0)")
    cosines = scan.affine_mm[:3, :3] / spacing
    if abs(abs(np.linalg.det(cosines)) - 1) > 1e-3:
        found.append("its axes are not perpendicular")
    elif np.abs(cosines).max(axis=0).min() < 0.999:
        found.append("it is oblique")
    if spacing.max() > 3 * spacing.min():
        found.append(f"its voxels are {spacing.max() / spacing.min():.1f} times as long as wide")
    if has_no_numbers:
        found.append("some voxels are no number")
    if percentiles[0] == percentiles[-1]:
        found.append("all voxels have the same value")
    return found
