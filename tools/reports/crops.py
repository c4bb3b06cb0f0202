# SPDX-License-Identifier: Apache-2.0
"""A picture of what a network is given in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from tools.files import write_atomically
from tools.reports.colours import pick_colour
from tools.reports.planes import PLANES, trace_outlines

_COLUMNS, _PANEL_INCH, _PANEL_PX = 4, 2.4, 240
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


def plot_crops(
    crops: Sequence[Mapping[str, Tensor]],
    labels: Sequence[str],
    path: str | Path,
    names: Sequence[str] = (),
    orientation: str = "RAS",
) -> None:
    """Draw a slice of some crops as a network gets them, labels outlined and sides marked, as a PNG.

    Each shows the slice across the third axis that has most of the structures, the middle one if there are none. Axes
    in RAS order stand in radiological convention. Letters say where the axes point to: a turned patient is turned.

    Args:
        crops: `image` `(C, X, Y, Z)` and `label` `(1, X, Y, Z)`, or `(1, X, Y)` for the slice in the middle.
        labels: names of the classes, background first.
        path: the picture, written atomically.
        names: of the crops, to stand above them.
        orientation: where the axes of an image point to when nothing is flipped.

    Raises:
        OSError: if the folder cannot be written.
    """
    rows = -(-len(crops) // _COLUMNS)
    figure = Figure(figsize=(_COLUMNS * _PANEL_INCH, rows * (_PANEL_INCH + 0.25) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, _COLUMNS, squeeze=False)
    seen: set[int] = set()
    for panel in panels.flat:
        panel.set_axis_off()
    for number, crop in enumerate(crops):
        panel = panels.flat[number]
        image, label = _choose_slice(crop)
        low, high = np.percentile(image, (0.5, 99.5))
        scale = _PANEL_PX / max(image.shape)
        shape = (round(image.shape[0] * scale), round(image.shape[1] * scale))
        extent = (0, image.shape[1], image.shape[0], 0)
        panel.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest", extent=extent)
        panel.imshow(trace_outlines(label, shape), interpolation="nearest", extent=extent)
        style = {"color": "white", "fontsize": "small", "fontweight": "bold", "transform": panel.transAxes}
        side, front = orientation[0].upper(), orientation[1].upper()
        for letter, x, y in (
            (side, 0.04, 0.5), (_OPPOSITE[side], 0.96, 0.5), (front, 0.5, 0.95), (_OPPOSITE[front], 0.5, 0.05)
        ):  # fmt: skip
            panel.text(x, y, letter, ha="center", va="center", **style)
        if number < len(names):
            panel.set_title(names[number], fontsize="x-small", loc="left")
        seen |= {int(value) for value in np.unique(label) if value}
    handles = [Patch(color=pick_colour(value), label=labels[value]) for value in sorted(seen) if value < len(labels)]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=_COLUMNS, fontsize="x-small", frameon=False)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _choose_slice(crop: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    image, label = (np.asarray(crop[key].detach().cpu())[0] for key in ("image", "label"))
    if label.ndim == 2:  # of the slice in the middle
        index, label = image.shape[-1] // 2, label[..., None]
        image, chosen = image[..., index : index + 1], 0
    else:
        counts = (label > 0).sum(axis=(0, 1))
        chosen = int(counts.argmax()) if counts.any() else label.shape[-1] // 2
    axial = PLANES[0]
    return axial.cut(image.astype(np.float32), chosen), axial.cut(np.rint(label).astype(int), chosen)
