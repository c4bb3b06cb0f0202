# SPDX-License-Identifier: Apache-2.0
"""Pictures of a scan with its segmentation: three planes, outlines, names and volumes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from tools.datasets import name_case
from tools.files import write_atomically
from tools.reports.colours import pick_colour
from tools.reports.planes import PLANES, Case, Plane, read_case, trace_outlines

DPI = 150
# lengths in pixels
_PANEL, _MARGIN, _BETWEEN, _TITLE, _ROW, _MIN_WIDTH = 520, 36, 72, 48, 30, 900
_BACKGROUND, _TEXT, _DIM, _WARNING = "#0e0f11", "#e8e8e8", "#8f959c", "#ffb454"
_FONT_PT = 8
_CHARACTER = 9.5  # mean width of a letter at that size, generously
_SWATCH, _GAP = 44, 48
_GREY_LEVELS = 64  # more cannot be told apart, but the noise in them would make half of the file
_BAR_LENGTHS_MM = (1, 2, 5, 10, 20, 50, 100, 200, 500)


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
    case = read_case(Path(scan_path), Path(segmentation_path), len(labels))
    picture = _draw(case, labels, title or name_case(scan_path)).render()
    with write_atomically(path) as temporary:
        picture.save(temporary, format="png", optimize=True, dpi=(DPI, DPI))


class _Sheet:
    """A figure whose places are pixels from its top left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=_BACKGROUND)
        self.canvas = FigureCanvasAgg(self.figure)

    def write(self, x: float, y: float, text: str, colour: str = _TEXT, **style: object) -> None:
        """Write `text` with its left middle at a place; names are no mathematics, whatever `$` they hold."""
        style = {"ha": "left", "va": "center", "fontsize": _FONT_PT, **style}
        self.figure.text(x / self.width, 1 - y / self.height, text, color=colour, parse_math=False, **style)

    def rule(self, x: float, y: float, length: float, colour: str, width_px: float) -> None:
        """Draw a horizontal line that starts at a place."""
        ends = [x / self.width, (x + length) / self.width]
        heights = [1 - y / self.height] * 2
        style = {"linewidth": width_px * 72 / DPI, "solid_capstyle": "butt"}
        self.figure.add_artist(Line2D(ends, heights, color=colour, **style))

    def show(
        self, corner: tuple[int, int], shape: tuple[int, int], *layers: tuple[np.ndarray, dict[str, object]]
    ) -> None:
        """Show pictures over each other in `shape` (rows, columns) pixels."""
        (x, y), (rows, columns) = corner, shape
        box = (x / self.width, 1 - (y + rows) / self.height, columns / self.width, rows / self.height)
        axes = self.figure.add_axes(box, facecolor="black")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        for picture, style in layers:
            axes.imshow(picture, extent=(0, columns, rows, 0), aspect="auto", **style)

    def render(self) -> Image.Image:
        """Return the figure as RGB in 64 levels of grey; the colours stay as they are."""
        self.canvas.draw()
        pixels = np.asarray(self.canvas.buffer_rgba())[..., :3].copy()
        is_grey = (pixels == pixels[..., :1]).all(axis=-1)
        step = 255 / (_GREY_LEVELS - 1)
        pixels[is_grey] = np.round(np.round(pixels[is_grey] / step) * step)
        return Image.fromarray(pixels)


def _draw(case: Case, labels: Sequence[str], title: str) -> _Sheet:
    shapes = [_fit_panel(case, plane) for plane in PLANES]
    panels_width = sum(columns for _, columns in shapes) + (len(shapes) - 1) * _BETWEEN
    width = max(_MIN_WIDTH, panels_width + 2 * _MARGIN)
    found = [value for value in range(1, len(labels)) if case.counts[value]]
    missing = [labels[value] for value in range(1, len(labels)) if not case.counts[value]]
    notes = textwrap.wrap(
        f"Not found: {', '.join(missing)}" if found and missing else "",
        width=round((width - 2 * _MARGIN) / _CHARACTER),
        max_lines=2,
        placeholder=" …",
    )
    entries = [(value, labels[value], _format_volume(case.volumes_ml[value])) for value in found]
    column_width = _SWATCH + _GAP + _CHARACTER * max([len(name) + len(size) for _, name, size in entries], default=1)
    num_columns = max(1, min(len(entries), int((width - 2 * _MARGIN) // column_width)))
    num_rows = -(-len(entries) // num_columns)

    legend_y = _TITLE + 2 * _ROW + max(rows for rows, _ in shapes) + _ROW
    sheet = _Sheet(width, legend_y + _ROW * max(num_rows + len(notes), 1))
    sheet.write(_MARGIN, _TITLE / 2, textwrap.shorten(title, 80, placeholder=" …"), fontsize=11, weight="bold")
    x = (width - panels_width) // 2
    for plane, shape in zip(PLANES, shapes, strict=True):
        _draw_plane(sheet, case, plane, (x, _TITLE + _ROW), shape)
        x += shape[1] + _BETWEEN
    if not found:
        sheet.write(width / 2, legend_y, "no label found", _WARNING, ha="center", fontsize=11, weight="bold")
    for position, (value, name, size) in enumerate(entries):
        column, row = divmod(position, num_rows)
        x, y = _MARGIN + column * column_width, legend_y + row * _ROW
        sheet.rule(x, y, _SWATCH - 12, pick_colour(value), 5)
        sheet.write(x + _SWATCH, y, name)
        sheet.write(x + column_width - _GAP, y, size, _DIM, ha="right")
    for position, note in enumerate(notes):
        sheet.write(_MARGIN, legend_y + (num_rows + position) * _ROW, note, _DIM)
    return sheet


def _fit_panel(case: Case, plane: Plane) -> tuple[int, int]:
    """Return rows and columns in pixels; all planes share a scale unless that makes one less than half as large."""
    extents_mm = case.spacing_mm * case.grey.shape
    size_mm = extents_mm[[plane.vertical, plane.horizontal]]
    common, own = _PANEL / extents_mm.max(), _PANEL / size_mm.max()
    rows, columns = np.maximum(1, np.round(size_mm * (common if own < 2 * common else own))).astype(int)
    return int(rows), int(columns)


def _draw_plane(sheet: _Sheet, case: Case, plane: Plane, corner: tuple[int, int], shape: tuple[int, int]) -> None:
    (x, y), (rows, columns) = corner, shape
    index, (black, white) = case.slices[plane.axis], case.window
    grey = np.clip(np.nan_to_num(plane.cut(case.grey, index), nan=black), black, white)
    smoothing = "bicubic" if grey.shape[0] < rows else "hanning"
    outlines = trace_outlines(plane.cut(case.voxels, index), shape)
    sheet.show(
        (x, y),
        shape,
        (grey, {"cmap": "gray", "vmin": black, "vmax": white, "interpolation": smoothing}),
        (outlines, {"interpolation": "nearest"}),
    )

    middle_x, middle_y, offset = x + columns / 2, y + rows / 2, _ROW / 2
    places = (
        (x - offset, middle_y),
        (x + columns + offset, middle_y),
        (middle_x, y - offset),
        (middle_x, y + rows + offset),
    )
    for letter, place in zip(plane.letters, places, strict=True):
        sheet.write(*place, letter, _DIM, weight="bold", ha="center")

    sheet.write(x, y - offset, plane.name)
    sheet.write(x + columns, y - offset, plane.name_position(case.position_mm), _DIM, ha="right")
    mm_per_px = case.spacing_mm[plane.horizontal] * case.grey.shape[plane.horizontal] / columns
    bar_mm = max((length for length in _BAR_LENGTHS_MM if length <= columns * mm_per_px / 3), default=None)
    if bar_mm:
        length = bar_mm / mm_per_px
        sheet.rule(x + columns - length, y + rows + offset, length, _DIM, 2)
        sheet.write(x + columns - length - 8, y + rows + offset, _format_length(bar_mm), _DIM, ha="right")


def _format_length(length_mm: int) -> str:
    return f"{length_mm} mm" if length_mm % 10 else f"{length_mm // 10} cm"


def _format_volume(volume_ml: float) -> str:
    return f"{volume_ml:.1f} mL" if volume_ml >= 10 else f"{volume_ml:.2f} mL"
