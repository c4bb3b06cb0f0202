# SPDX-License-Identifier: Apache-2.0
"""Planes through a scan and its segmentation: which ones, in which grey values, with which outlines."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb

from tools.reports.colours import pick_colour
from tools.reports.volumes import convert_to_ml, count_voxels_per_slice, read_labels
from tools.scans import Scan, check_same_grid

_OUTLINE_PX = 2
_SUPERSAMPLING = 2  # smooths the outlines; edges of large voxels stay sharp
# A CT is told by its air (about -1000 HU); its window stays within fat to trabecular bone, since skull or lung
# would otherwise take most of the grey values
_AIR_HU, _CT_WINDOW_HU = -500, (-200, 500)


@dataclass(frozen=True)
class Plane:
    """A plane across `axis` of a RAS volume, which shows two other axes, both reversed: radiological convention."""

    name: str
    axis: int
    horizontal: int
    vertical: int

    def cut(self, voxels: np.ndarray, index: int) -> np.ndarray:
        """Return slice `index` of `(X, Y, Z)` as rows from top to bottom and columns from left to right."""
        return np.moveaxis(voxels, self.axis, 0)[index].T[::-1, ::-1]

    @property
    def letters(self) -> tuple[str, str, str, str]:
        """The patient's sides at the left, right, top and bottom edge."""
        return "RAS"[self.horizontal], "LPI"[self.horizontal], "RAS"[self.vertical], "LPI"[self.vertical]

    def name_position(self, point_mm: np.ndarray) -> str:
        """Return on which side of the scanner's origin the plane through a point lies, as `S 34 mm`."""
        place_mm = round(float(point_mm[self.axis]))
        return f"{('RAS' if place_mm >= 0 else 'LPI')[self.axis]} {abs(place_mm)} mm"


PLANES = (Plane("Axial", 2, 0, 1), Plane("Coronal", 1, 0, 2), Plane("Sagittal", 0, 1, 2))


@dataclass(frozen=True)
class Case:
    """A scan and its segmentation, axes in RAS order, without empty borders, and what the picture says about them."""

    grey: np.ndarray  # (X, Y, Z)
    voxels: np.ndarray  # (X, Y, Z), integers
    window: tuple[float, float]  # the grey values shown as black and as white
    spacing_mm: np.ndarray  # (3,)
    slices: tuple[int, int, int]  # one per axis
    position_mm: np.ndarray  # (3,), world coordinates of the voxel where the three planes meet
    counts: np.ndarray  # (classes,), voxels
    volumes_ml: np.ndarray  # (classes,)


def read_case(scan_path: Path, segmentation_path: Path, names: Mapping[int, str]) -> Case:
    """Return a scan, of several channels the first one, and its label map in RAS order.

    Raises:
        MissingFileError: if the scan or the segmentation does not exist.
        UnreadableScanError: if one of them is no 3D NIfTI volume.
        GeometryMismatchError: if they do not lie on the same grid.
        LabelValueError: if the segmentation holds other values than those of `names`.
    """
    scan = Scan(scan_path, num_channels=None)
    segmentation, voxels = read_labels(segmentation_path, names)
    check_same_grid(scan, segmentation)
    grey = scan.read().reshape(*scan.shape, -1)[..., 0]  # of several channels the first is shown
    # by the axes of the scan for both: at 45 degrees rounding could set them apart
    grey, voxels, affine = scan.turn_to_ras(grey), scan.turn_to_ras(voxels), scan.ras_affine_mm
    window = _find_window(grey)
    box = _find_content((grey > window[0]) | (voxels > 0))
    grey, voxels = grey[box], voxels[box]
    affine[:3, 3] += affine[:3, :3] @ [extent.start for extent in box]
    per_axis = [count_voxels_per_slice(voxels, len(names), axis) for axis in range(3)]
    slices = [_pick_slice(counts[:, 1:]) for counts in per_axis]
    counts = per_axis[0].sum(axis=0)
    return Case(
        grey=grey,
        voxels=voxels,
        window=window,
        spacing_mm=np.linalg.norm(affine[:3, :3], axis=0),
        slices=(slices[0], slices[1], slices[2]),
        position_mm=affine[:3] @ [*slices, 1],
        counts=counts,
        volumes_ml=convert_to_ml(counts, segmentation),
    )


def _find_content(content: np.ndarray) -> tuple[slice, ...]:
    """Return the box around the true voxels and a margin (4 % of an axis, at least 2 voxels), or all if none is."""
    if not content.any():
        return (slice(0, None),) * 3
    box = []
    for axis, size in enumerate(content.shape):
        used = np.flatnonzero(content.any(axis=tuple({0, 1, 2} - {axis})))
        margin = max(2, round(0.04 * size))
        box.append(slice(max(0, int(used[0]) - margin), min(size, int(used[-1]) + 1 + margin)))
    return tuple(box)


def _pick_slice(counts: np.ndarray) -> int:
    """Return the slice that shows the classes best, the middle one if there are none.

    Each class adds the share of its largest cross-section that the slice shows: many classes beat one large class, and
    a class is better shown by its largest cross-section than by its first voxels.

    Args:
        counts: voxels `(slices, classes)` without background.
    """
    largest = counts.max(axis=0, initial=0)
    if not largest.any():
        return len(counts) // 2
    return int((counts[:, largest > 0] / largest[largest > 0]).sum(axis=1).argmax())


def _find_window(grey: np.ndarray) -> tuple[float, float]:
    """Return the values shown as black and white: robust percentiles, without the padding around the patient."""
    step = max(1, round((grey.size / 2e6) ** (1 / 3)))  # two million voxels give the percentiles as well as all
    values = grey[::step, ::step, ::step].astype(np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    is_ct = np.mean(values < _AIR_HU) > 0.01
    inside = values[values > max(values.min(), _AIR_HU if is_ct else -np.inf)]
    low, high = np.percentile(inside if inside.size else values, (1, 99) if is_ct else (0.5, 99.5))
    if is_ct:
        low, high = np.clip((low, high), *_CT_WINDOW_HU)
    return (float(low), float(high)) if high > low else (float(low) - 1, float(low) + 1)  # a constant scan is grey


def trace_outlines(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the outlines of a plane of labels `(rows, columns)` as an RGBA picture `(*shape, 4)` of pixels.

    The labels are enlarged without interpolation; a point belongs to an outline if another label lies within the
    width of the line, and takes the colour of its own label.
    """
    rows, columns = (
        ((np.arange(size * _SUPERSAMPLING) + 0.5) * count / (size * _SUPERSAMPLING)).astype(int)
        for size, count in zip(shape, labels.shape, strict=True)
    )
    fine = labels[np.ix_(rows, columns)]
    reach = round(_OUTLINE_PX * _SUPERSAMPLING)
    padded = np.pad(fine, reach, mode="edge")  # no line where the scan ends
    on_line = np.zeros(fine.shape, dtype=bool)
    for down, right in itertools.product(range(-reach, reach + 1), repeat=2):
        if down**2 + right**2 <= reach**2:
            top, left = reach + down, reach + right
            on_line |= padded[top : top + fine.shape[0], left : left + fine.shape[1]] != fine
    on_line &= fine > 0
    rgba = np.zeros((*fine.shape, 4), dtype=np.float32)
    for value in np.unique(fine[on_line]):
        rgba[on_line & (fine == value)] = (*to_rgb(pick_colour(int(value))), 1)
    sums = rgba.reshape(shape[0], _SUPERSAMPLING, shape[1], _SUPERSAMPLING, 4).sum(axis=(1, 3))
    sums[..., :3] /= np.maximum(sums[..., 3:], 1)  # the mean colour of the points on the line ...
    sums[..., 3] /= _SUPERSAMPLING**2  # ... as opaque as there are many
    return sums
