# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a network restores in pre-training."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from tools.files import write_atomically
from tools.reports.planes import PLANES

_COLUMNS = ("given", "restored", "wanted")
_PANEL_INCH = 2.2


def plot_reconstruction(
    given: Tensor, restored: Tensor, wanted: Tensor, path: str | Path, title: str | None = None, count: int = 4
) -> None:
    """Draw the middle slice across the third axis of some crops, as a PNG, a row for each.

    The columns are the corrupted crop, what the network made of it, the clean crop, and the absolute difference of the
    last two with its mean. A row has the grey values of its clean crop from the lowest to the highest, its error the
    same range from zero. Of several channels the first is drawn; axes in RAS order stand in radiological convention.

    Args:
        given: corrupted crops `(N, C, X, Y, Z)`.
        restored: the network's output, likewise.
        wanted: clean crops, likewise.
        path: the picture, written atomically.
        title: what stands above it.
        count: largest number of rows.

    Raises:
        OSError: if the folder cannot be written.
    """
    axial = PLANES[0]
    rows = [
        [axial.cut(crop[0].detach().float().cpu().numpy(), crop.shape[3] // 2) for crop in crops]
        for crops in zip(given[:count], restored[:count], wanted[:count], strict=True)
    ]
    height, width = rows[0][0].shape
    size = _PANEL_INCH / max(height, width)
    figure = Figure(
        figsize=((len(_COLUMNS) + 1) * size * width + 0.4, len(rows) * (size * height + 0.3) + 0.4),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), len(_COLUMNS) + 1, squeeze=False)
    for row, (corrupted, made, clean) in zip(panels, rows, strict=True):
        low, high = float(clean.min()), float(clean.max())
        error = abs(made - clean)
        for panel, pixels in zip(row, (corrupted, made, clean), strict=False):
            panel.imshow(pixels, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        row[-1].imshow(error, cmap="gray", vmin=0, vmax=high - low, interpolation="nearest")
        row[-1].set_title(f"error {error.mean():.3f}", fontsize="small", loc="left")
        for panel in row:
            panel.set_axis_off()
    for name, panel in zip(_COLUMNS, panels[0], strict=False):
        panel.set_title(name, fontsize="small", loc="left")
    if title:
        figure.suptitle(title)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
