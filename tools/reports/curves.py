# SPDX-License-Identifier: Apache-2.0
"""Learning curves of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tools.files import write_atomically
from tools.reports.colours import pick_colour

_SMOOTH_FROM = 50  # epochs; shorter curves are read as they are
_GREY = "#4d4d4d"
_SHADE = 0.8  # the colours are made for black; this much of their light makes the pale ones visible on white


def plot_learning_curve(
    history: Sequence[Mapping[str, float]], path: str | Path, metric: str = "dice", lower_is_better: bool = False
) -> None:
    """Draw the loss, its terms and the learning rate on the left and the validation metric on the right, as a PNG.

    Args:
        history: one entry per epoch with `epoch`, `loss`, `learning_rate`, perhaps `loss/<term>`, and, where there was
            a validation, `<metric>` and perhaps `<metric>/<label>`; values that are no number leave a gap.
        path: the picture, written atomically.
        metric: name of the validation metric.
        lower_is_better: whether the best epoch is that of the lowest metric; the axis of a metric where it is the
            highest goes from 0 to 1.

    Raises:
        OSError: if the folder cannot be written.
    """
    terms = list(dict.fromkeys(key for entry in history for key in entry if key.startswith("loss/")))
    figure = Figure(figsize=(12, 4.8 + 1.6 * len(terms)), layout="constrained")
    FigureCanvasAgg(figure)
    axes: dict[str, Axes] = figure.subplot_mosaic(
        [[name, "metric"] for name in ("loss", *terms, "rate")],
        height_ratios=[4, *(2 for _ in terms), 1],
        width_ratios=[5, 6],
    )
    for name in ("loss", *terms):
        _draw_loss(axes[name], name, history)
    _draw_rate(axes["rate"], history)
    _draw_metric(axes["metric"], metric, lower_is_better, [entry for entry in history if metric in entry])
    for panel in axes.values():
        panel.set_xlim(0, max((entry["epoch"] for entry in history), default=1) + 1)  # one time axis for all
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_loss(axes: Axes, name: str, history: Sequence[Mapping[str, float]]) -> None:
    epochs, losses = [entry["epoch"] for entry in history], [entry.get(name, np.nan) for entry in history]
    smooth = len(losses) > _SMOOTH_FROM
    marker = "o" if len(losses) == 1 else None
    axes.plot(epochs, losses, color=_GREY, alpha=0.35 if smooth else 1, linewidth=1, label="epoch", marker=marker)
    if smooth:
        axes.plot(epochs, _average(losses, len(losses) // 40), color=_GREY, linewidth=2, label="running mean")
    if smooth and name == "loss":
        axes.legend(frameon=False)
    axes.set_title("Training loss" if name == "loss" else name.removeprefix("loss/"))
    axes.tick_params(labelbottom=False)


def _draw_rate(axes: Axes, history: Sequence[Mapping[str, float]]) -> None:
    epochs, rates = ([entry[key] for entry in history] for key in ("epoch", "learning_rate"))
    axes.plot(epochs, rates, color=_GREY, linewidth=1, marker="o" if len(rates) == 1 else None)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes.set_ylim(bottom=0)
    axes.set(xlabel="epoch", ylabel="learning\nrate")


def _draw_metric(axes: Axes, metric: str, lower_is_better: bool, validated: Sequence[Mapping[str, float]]) -> None:
    title = f"Validation {metric.capitalize()}"
    axes.set(xlabel="epoch", title=title)
    if not lower_is_better:
        axes.set_ylim(0, 1)
    if not validated:
        axes.text(0.5, 0.5, "no validation", ha="center", va="center", transform=axes.transAxes)
        return
    epochs, means = np.array([[entry["epoch"], entry[metric]] for entry in validated]).T
    choose = np.nanargmin if lower_is_better else np.nanargmax
    best = int(choose(means)) if np.isfinite(means).any() else None
    marker = "o" if len(validated) <= _SMOOTH_FROM else None
    keys = dict.fromkeys(key for entry in validated for key in entry if key.startswith(f"{metric}/"))
    for value, key in enumerate(keys, start=1):
        values = [entry.get(key, np.nan) for entry in validated]
        colour = np.multiply(to_rgb(pick_colour(value)), _SHADE)
        name = _name_line(key.removeprefix(f"{metric}/"), values, best)
        axes.plot(epochs, values, color=colour, linewidth=1, marker=marker, markersize=3, label=name)
    axes.plot(
        epochs, means, color="black", linewidth=2.5, marker=marker, markersize=4, label=_name_line("mean", means, best)
    )
    if best is not None:
        axes.axvline(epochs[best], color="black", linewidth=1, linestyle=":")
        axes.set_title(f"{title}: best {'mean ' if keys else ''}{means[best]:.4f} in epoch {epochs[best]:.0f}")
    if not keys:
        return
    legend = axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may hold a `$`


def _name_line(name: str, values: Sequence[float] | np.ndarray, best: int | None) -> str:
    """Return a name with the value in the best epoch, if there is one."""
    return name if best is None or np.isnan(values[best]) else f"{name} {values[best]:.3f}"


def _average(values: Sequence[float], width: int) -> np.ndarray:
    """Return the running mean over `width` values to each side, of the numbers that are there."""
    kernel = np.ones(2 * width + 1)
    numbers = np.isfinite(values)
    sums, counts = (np.convolve(terms, kernel, "same") for terms in (np.where(numbers, values, 0), numbers))
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)
