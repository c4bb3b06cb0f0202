# SPDX-License-Identifier: Apache-2.0
"""Learning curves of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.files import write_atomically
from tools.reports.colours import pick_colour

_SMOOTH_FROM = 50  # epochs; shorter curves are read as they are
_GREY = "#4d4d4d"


def plot_learning_curve(history: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Draw the loss and the learning rate on the left and the validation Dice on the right, as a PNG.

    Args:
        history: one entry per epoch with `epoch`, `loss`, `learning_rate` and, where there was a validation, `dice` and
            `dice/<label>`.
        path: the picture, written atomically.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_loss(left, history)
    _draw_dice(right, [entry for entry in history if "dice" in entry])
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_loss(axes: Axes, history: Sequence[Mapping[str, float]]) -> None:
    epochs, losses = ([entry[key] for entry in history] for key in ("epoch", "loss"))
    smooth = len(losses) > _SMOOTH_FROM
    marker = "o" if len(losses) == 1 else None
    axes.plot(epochs, losses, color=_GREY, alpha=0.35 if smooth else 1.0, label="loss", marker=marker)
    if smooth:
        axes.plot(epochs, _average(losses, len(losses) // 20), color=_GREY, linewidth=2, label="running mean")
    axes.set(xlabel="epoch", ylabel="training loss", title="Loss")
    rate = axes.twinx()
    rate.plot(epochs, [entry["learning_rate"] for entry in history], color="tab:olive", linestyle=":", marker=marker)
    rate.set_ylabel("learning rate (dotted)", color="tab:olive")
    rate.set_ylim(bottom=0)
    axes.legend(loc="upper right")


def _draw_dice(axes: Axes, validated: Sequence[Mapping[str, float]]) -> None:
    axes.set(xlabel="epoch", ylabel="Dice", title="Validation")
    if not validated:
        axes.text(0.5, 0.5, "no validation", ha="center", va="center", transform=axes.transAxes)
        return
    epochs = [entry["epoch"] for entry in validated]
    marker = "o" if len(validated) <= _SMOOTH_FROM else None
    labels = [key.removeprefix("dice/") for key in validated[0] if key.startswith("dice/")]
    for value, label in enumerate(labels, start=1):
        dice = [entry[f"dice/{label}"] for entry in validated]
        axes.plot(epochs, dice, color=pick_colour(value), linewidth=1, marker=marker, markersize=3, label=label)
    means = [entry["dice"] for entry in validated]
    axes.plot(epochs, means, color="black", linewidth=2.5, marker=marker, markersize=4, label="mean")
    best = int(np.nanargmax(means)) if np.isfinite(means).any() else 0
    axes.set_title(f"Validation: best mean {means[best]:.3f} in epoch {epochs[best]:.0f}")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small", ncols=1 + len(labels) // 8)


def _average(values: Sequence[float], width: int) -> np.ndarray:
    """Return the running mean over `width` values to each side, of those that are there at the ends."""
    kernel = np.ones(2 * width + 1)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
