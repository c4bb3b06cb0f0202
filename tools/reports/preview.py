# SPDX-License-Identifier: Apache-2.0
"""Pictures of a scan with its segmentation: three planes, outlines, names and volumes."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tools.checks import read_header
from tools.checks.volumes import read_voxels
from tools.datasets import name_case
from tools.errors import GeometryMismatchError
from tools.files import write_atomically
from tools.reports.colours import pick_colour
from tools.reports.volumes import convert_to_ml, count_voxels_per_slice, get_unit_mm, read_labels

DPI = 150
# lengths in pixels
_PANEL, _MARGIN, _TITLE, _ROW, _MIN_WIDTH = 520, 36, 48, 30, 900
_OUTLINE = 2.0  # 1 point at 150 dpi
_SUPERSAMPLING = 2  # smooths the outlines; grid lines of the voxels stay sharp
_GREY_LEVELS = 64  # noise in more of them cannot be seen but doubles the size of the file
_BACKGROUND, _TEXT, _DIM = "#0e0f11", "#e8e8e8", "#8f959c"
_FONT_PT = 8
_CHARACTER = 10.5  # width of a wide letter at that size

# A CT is told by its air (about -1000 HU); its window stays within fat to trabecular bone, since skull or lung
# would otherwise take most of the grey values
_AIR_HU, _CT_WINDOW_HU = -500, (-200, 500)


@dataclass(frozen=True)
class _Plane:
    """A plane across `axis` of a RAS volume, which shows two other axes, both reversed: radiological convention."""

    name: str
    axis: int
    horizontal: int
    vertical: int

    def cut(self, voxels: np.ndarray, index: int) -> np.ndarray:
        return voxels.take(index, axis=self.axis).T[::-1, ::-1]

    @property
    def letters(self) -> dict[str, str]:
        return {
            "left": "RAS"[self.horizontal],
            "right": "LPI"[self.horizontal],
            "top": "RAS"[self.vertical],
            "bottom": "LPI"[self.vertical],
        }


_PLANES = (_Plane("Axial", 2, 0, 1), _Plane("Coronal", 1, 0, 2), _Plane("Sagittal", 0, 1, 2))


@dataclass(frozen=True)
class _Case:
    """A scan and its segmentation, axes in RAS order, with what the picture says about them."""

    grey: np.ndarray  # (X, Y, Z)
    voxels: np.ndarray  # (X, Y, Z), integers
    spacing_mm: np.ndarray  # (3,)
    slices: tuple[int, int, int]  # one per axis
    position_mm: np.ndarray  # (3,), world coordinates of the voxel where the three planes meet
    volumes_ml: np.ndarray  # (classes,)


def write_preview(
    scan_path: str | Path,
    segmentation_path: str | Path,
    labels: Sequence[str],
    path: str | Path,
    title: str | None = None,
) -> None:
    """Write a PNG of three orthogonal planes of a scan with the outlines of its segmentation, atomically.

    Planes follow the voxel axes in their closest anatomical orientation, as radiologists see them: the patient's
    right (R) is on the left of axial and coronal planes, anterior (A) on the left of sagittal ones. Each lies where
    the classes show best. Outlines run inside the edges of the voxels, so that neighbours do not hide each other.

    Args:
        scan_path: a 3D NIfTI scan.
        segmentation_path: a NIfTI label map in the scan's grid.
        labels: names of the values 0, 1, 2 ...; the first is the background.
        path: the picture.
        title: what stands above it; default: the name of the scan.

    Raises:
        MissingFileError: if the scan or the segmentation does not exist.
        UnreadableScanError: if one of them is no 3D NIfTI volume.
        GeometryMismatchError: if they do not lie on the same grid.
        LabelValueError: if the segmentation holds other values than those of `labels`.
    """
    figure = _draw(
        _read_case(Path(scan_path), Path(segmentation_path), len(labels)), labels, title or name_case(scan_path)
    )
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, facecolor=_BACKGROUND, pil_kwargs={"optimize": True})


def _read_case(scan_path: Path, segmentation_path: Path, num_classes: int) -> _Case:
    scan = read_header(scan_path)
    segmentation, voxels = read_labels(segmentation_path, num_classes)
    _check_grid(scan, segmentation, scan_path, segmentation_path)
    grey = read_voxels(scan_path, partial(scan.get_fdata, dtype=np.float32, caching="unchanged"))
    orientation = nib.io_orientation(scan.affine)  # of the scan for both: at 45 degrees rounding could set them apart
    grey, voxels = (nib.apply_orientation(array.reshape(scan.shape[:3]), orientation) for array in (grey, voxels))
    affine = scan.affine @ nib.orientations.inv_ornt_aff(orientation, scan.shape[:3]) * get_unit_mm(scan)
    counts = [count_voxels_per_slice(voxels, num_classes, axis) for axis in range(3)]
    slices = tuple(_pick_slice(count[:, 1:]) for count in counts)
    return _Case(
        grey=grey,
        voxels=voxels,
        spacing_mm=np.linalg.norm(affine[:3, :3], axis=0),
        slices=slices,
        position_mm=affine[:3] @ [*slices, 1],
        volumes_ml=convert_to_ml(counts[0].sum(axis=0), segmentation),
    )


def _check_grid(scan: nib.Nifti1Image, segmentation: nib.Nifti1Image, scan_path: Path, segmentation_path: Path) -> None:
    shape, wanted = segmentation.shape[:3], scan.shape[:3]
    # no voxel may move by more than half a voxel, which lets rounding in the files pass
    shift = np.abs(segmentation.affine - scan.affine)[:3] @ [*wanted, 1]
    if shape != wanted or shift.max() > nib.affines.voxel_sizes(scan.affine).min() / 2:
        raise GeometryMismatchError(
            segmentation_path,
            f"shape {shape}" if shape != wanted else "another affine",
            f"the grid {wanted} of {scan_path}",
            "give the segmentation of this scan",
        )


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
    values = grey[::step, ::step, ::step]
    values = values[np.isfinite(values)]
    values = values[values > values.min(initial=np.inf)]
    if not values.size:  # a constant scan
        return 0.0, 1.0
    if np.mean(values < _AIR_HU) < 0.01:
        low, high = np.percentile(values, (0.5, 99.5))
    else:
        low, high = np.clip(np.percentile(values[values >= _AIR_HU], (1, 99)), *_CT_WINDOW_HU)
    return float(low), float(max(high, low + 1e-6))
