# SPDX-License-Identifier: Apache-2.0
"""Pictures of a scan with its segmentation: three planes, outlines, names and volumes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from PIL import Image

from tools.datasets import name_case
from tools.files import write_atomically
from tools.reports.colours import pick_colour
from tools.reports.planes import PLANES, Case, Plane, read_case, trace_outlines
from tools.reports.volumes import name_values

DPI = 150
# lengths in pixels
_PANEL = 520  # longest side of a plane
_MIN_CELL, _MIN_WIDTH = 240, 900  # place for the texts around a narrow plane, and for a title
_TITLE, _ROW, _MARGIN, _BETWEEN = 48, 30, 36, 72
_SWATCH, _GAP, _CHARACTER = 44, 12, 10
_FONT_PT = 8
_BACKGROUND, _TEXT, _DIM, _WARNING = "#0e0f11", "#e8e8e8", "#8f959c", "#ffb454"
_GREY_LEVELS = 64  # more can hardly be told apart, but the noise in them would make half of the file
_BAR_LENGTHS_MM = (1, 2, 5, 10, 20, 50, 100, 200, 500)


def write_preview(
    scan_path: str | Path,
    segmentation_path: str | Path,
    labels: Sequence[str] | Mapping[int, str],
    path: str | Path,
    title: str | None = None,
    warnings: Sequence[str] = (),
) -> None:
    """Write a PNG of three orthogonal planes of a scan with the outlines of its segmentation, atomically.

    Planes follow the voxel axes in their closest anatomical orientation, as radiologists see them: the patient's
    right (R) is on the left of axial and coronal planes, anterior (A) on the left of sagittal ones. Each lies where
    the classes show best. Outlines run inside the edges of the voxels, so that neighbours do not hide each other.

    Args:
        scan_path: a 3D NIfTI scan.
        segmentation_path: a NIfTI label map in the scan's grid.
        labels: names of the values 0, 1, 2 ..., or by their values; the first is the background.
        path: the picture.
        title: what stands above it; default: the name of the scan.
        warnings: what is odd about the scan; it stands below.

    Raises:
        MissingFileError: if the scan or the segmentation does not exist.
        UnreadableScanError: if one of them is no 3D NIfTI volume.
        GeometryMismatchError: if they do not lie on the same grid.
        LabelValueError: if the segmentation holds other values than those of `labels`.
    """
    names = name_values(labels)
    case = read_case(Path(scan_path), Path(segmentation_path), names)
    shown = (title or name_case(scan_path)).encode(errors="backslashreplace").decode()  # a file name need not be UTF-8
    picture = _draw(case, [*names.values()], shown, warnings).render()
    with write_atomically(path) as temporary:
        picture.save(temporary, format="png", dpi=(DPI, DPI))


class _Sheet:
    """A figure whose places are pixels from its top left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        inches = (width + 1e-6) / DPI, (height + 1e-6) / DPI  # matplotlib cuts off fractions of a pixel
        self.figure = Figure(figsize=inches, dpi=DPI, facecolor=_BACKGROUND)
        self.canvas = FigureCanvasAgg(self.figure)

    def write(self, x: float, y: float, text: str, colour: str = _TEXT, **style: Any) -> None:
        """Write `text` with its left middle at a place; names are no mathematics, whatever `$` they hold."""
        style = {"ha": "left", "va": "center", "fontsize": _FONT_PT, **style}
        self.figure.text(x / self.width, 1 - y / self.height, text, color=colour, parse_math=False, **style)

    def rule(self, x: float, y: float, length: float, colour: str, width_px: float) -> None:
        """Draw a horizontal line that starts at a place."""
        ends = [x / self.width, (x + length) / self.width]
        heights = [1 - y / self.height] * 2
        line = Line2D(ends, heights, color=colour, linewidth=width_px * 72 / DPI, solid_capstyle="butt")
        self.figure.add_artist(line)

    def show(
        self,
        corner: tuple[int, int],
        shape: tuple[int, int],
        *layers: tuple[np.ndarray, dict[str, Any]],
        limits: tuple[float, float],
    ) -> None:
        """Show pictures over each other in `shape` (rows, columns) pixels; `limits` are black and white."""
        (x, y), (rows, columns) = corner, shape
        box = (x / self.width, 1 - (y + rows) / self.height, columns / self.width, rows / self.height)
        axes = self.figure.add_axes(box, facecolor="black")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        for picture, style in layers:
            axes.imshow(picture, extent=(0, columns, rows, 0), aspect="auto", vmin=limits[0], vmax=limits[1], **style)

    def render(self) -> Image.Image:
        """Return the figure as RGB in 64 levels of grey; the colours stay as they are."""
        self.canvas.draw()
        pixels = np.asarray(self.canvas.buffer_rgba())[..., :3].copy()
        red, green, blue = np.moveaxis(pixels, -1, 0)
        is_grey = (red == green) & (green == blue)
        step = 255 / (_GREY_LEVELS - 1)
        pixels[is_grey] = np.round(np.round(pixels[is_grey] / step) * step)
        return Image.fromarray(pixels)


def _draw(case: Case, labels: Sequence[str], title: str, warnings: Sequence[str]) -> _Sheet:
    shapes = [_fit_panel(case, plane) for plane in PLANES]
    cells = [max(columns, _MIN_CELL) for _, columns in shapes]
    panels_width = sum(cells) + (len(cells) - 1) * _BETWEEN
    width = max(_MIN_WIDTH, panels_width + 2 * _MARGIN)
    legend = _arrange_legend(case, labels, width - 2 * _MARGIN)
    legend_y = _TITLE + _ROW + max(rows for rows, _ in shapes) + 2 * _ROW

    told = [
        line for text in warnings for line in textwrap.wrap(f"Warning: {text}", (width - 2 * _MARGIN) // _CHARACTER)
    ]
    end = max(legend.num_rows + len(legend.notes), 1)
    sheet = _Sheet(width, legend_y + _ROW * (end + len(told)))
    sheet.write(_MARGIN, _TITLE / 2, title if len(title) <= 70 else f"{title[:69]}…", fontsize=11, weight="bold")
    x = (width - panels_width) // 2
    for plane, shape, cell in zip(PLANES, shapes, cells, strict=True):
        _draw_plane(sheet, case, plane, x, cell, shape)
        x += cell + _BETWEEN
    for position, (value, name, size) in enumerate(legend.entries):
        column, row = divmod(position, legend.num_rows)
        left, y = _MARGIN + column * legend.column_width, legend_y + row * _ROW
        sheet.rule(left, y, _SWATCH - _GAP, pick_colour(value), 5)
        sheet.write(left + _SWATCH, y, name)
        sheet.write(left + legend.column_width - 2 * _GAP, y, size, _DIM, ha="right")
    for position, note in enumerate(legend.notes, start=legend.num_rows):
        sheet.write(_MARGIN, legend_y + position * _ROW, note, _DIM)
    for position, line in enumerate(told, start=end):
        sheet.write(_MARGIN, legend_y + position * _ROW, line, _WARNING)
    if not legend.entries:
        sheet.write(width / 2, legend_y, "no label found", _WARNING, ha="center", fontsize=11, weight="bold")
    return sheet


@dataclass(frozen=True)
class _Legend:
    """Columns of classes that were found (value, name, volume), and lines on those that were not."""

    entries: list[tuple[int, str, str]]
    num_rows: int
    column_width: int
    notes: list[str]


def _arrange_legend(case: Case, labels: Sequence[str], width: int) -> _Legend:
    found = [value for value in range(1, len(labels)) if case.counts[value]]
    missing = [labels[value] for value in range(1, len(labels)) if not case.counts[value]]
    entries = [(value, labels[value], _format_volume(case.volumes_ml[value])) for value in found]
    column_width = _SWATCH + 3 * _GAP + max((_measure(name) + _measure(size) for _, name, size in entries), default=0)
    num_columns = max(1, (width + 2 * _GAP) // column_width)
    absence = f"Not found: {', '.join(missing)}" if found and missing else ""
    notes = textwrap.wrap(absence, width // _CHARACTER, max_lines=2, placeholder=" …")
    return _Legend(entries, math.ceil(len(entries) / num_columns), column_width, notes)


def _fit_panel(case: Case, plane: Plane) -> tuple[int, int]:
    """Return rows and columns in pixels; all planes share a scale unless that makes one less than half as large."""
    extents_mm = case.spacing_mm * case.grey.shape
    size_mm = extents_mm[[plane.vertical, plane.horizontal]]
    common, own = _PANEL / extents_mm.max(), _PANEL / size_mm.max()
    rows, columns = np.maximum(1, np.round(size_mm * (common if own < 2 * common else own))).astype(int)
    return int(rows), int(columns)


def _draw_plane(sheet: _Sheet, case: Case, plane: Plane, left: int, cell: int, shape: tuple[int, int]) -> None:
    """Draw a plane, its name, position, sides and scale, in a cell that may be wider than the picture."""
    rows, columns = shape
    x, y = left + (cell - columns) // 2, _TITLE + _ROW
    index, (black, white) = case.slices[plane.axis], case.window
    grey = np.clip(plane.cut(case.grey, index), black, white)  # NaN stays, and is shown black
    sheet.show(
        (x, y),
        shape,
        # hanning is what matplotlib calls antialiased: right for making smaller, too blurred for making larger
        (grey, {"cmap": "gray", "interpolation": "bicubic" if grey.shape[0] < rows else "hanning"}),
        (trace_outlines(plane.cut(case.voxels, index), shape), {"interpolation": "nearest"}),
        limits=(black, white),
    )
    above, below, middle_x, middle_y = y - _ROW / 2, y + rows + _ROW / 2, x + columns / 2, y + rows / 2
    sides = (x - _ROW / 2, middle_y), (x + columns + _ROW / 2, middle_y), (middle_x, above), (middle_x, below)
    for letter, side in zip(plane.letters, sides, strict=True):
        sheet.write(*side, letter, _DIM, weight="bold", ha="center")
    sheet.write(left, above, plane.name)
    sheet.write(left + cell, above, plane.name_position(case.position_mm), _DIM, ha="right")

    mm_per_px = case.spacing_mm[plane.horizontal] * case.grey.shape[plane.horizontal] / columns
    longest_mm = mm_per_px * min(columns / 3, cell / 2 - 85)  # leaves place for its length, right of the letter
    if bar_mm := max((length for length in _BAR_LENGTHS_MM if length <= longest_mm), default=0):
        bar_x = left + cell - bar_mm / mm_per_px
        sheet.rule(bar_x, below, bar_mm / mm_per_px, _DIM, 2)
        sheet.write(bar_x - 8, below, f"{bar_mm} mm" if bar_mm < 10 else f"{bar_mm // 10} cm", _DIM, ha="right")


def _measure(text: str) -> int:
    """Return the width of `text` in pixels."""
    font = FontProperties(size=_FONT_PT)
    return math.ceil(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] * DPI / 72)


def _format_volume(volume_ml: float) -> str:
    return f"{volume_ml:.1f} mL" if volume_ml >= 10 else f"{volume_ml:.2f} mL"
