# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.image import imread

from tools.reports import plot_learning_curve


def make_history(num_epochs: int, val_interval: int) -> list[dict[str, float]]:
    history = []
    for epoch in range(1, num_epochs + 1):
        entry = {"epoch": epoch, "loss": 1 / epoch, "learning_rate": 1e-3 * (1 - epoch / (num_epochs + 1))}
        if val_interval and epoch % val_interval == 0:
            entry |= {"dice": 0.5, "dice/liver": 0.6, "dice/spleen": 0.4}
        history.append(entry)
    return history


@pytest.mark.parametrize(("num_epochs", "val_interval"), [(1, 0), (1, 1), (7, 3), (5000, 100)])
def test_curves_of_any_length_are_drawn(num_epochs: int, val_interval: int, tmp_path: Path):
    path = tmp_path / "curve.png"
    plot_learning_curve(make_history(num_epochs, val_interval), path)
    picture = imread(path)
    assert picture.shape[0] > 300
    assert picture.shape[1] > 900


def test_classes_without_a_case_leave_a_gap_and_no_error(tmp_path: Path):
    history = make_history(4, 2)
    history[1]["dice/liver"] = history[1]["dice"] = float("nan")
    plot_learning_curve(history, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000


def test_validation_adds_lines_to_the_picture(tmp_path: Path):
    for name, val_interval in (("without", 0), ("with", 2)):
        plot_learning_curve(make_history(10, val_interval), tmp_path / f"{name}.png")
    without, with_dice = (imread(tmp_path / f"{name}.png") for name in ("without", "with"))
    half = without.shape[1] // 2
    black = [(picture[:, half:, :3].max(axis=2) < 0.1).sum() for picture in (without, with_dice)]
    assert black[1] > 1.2 * black[0]


def test_each_term_of_a_loss_has_its_panel(tmp_path: Path):
    history = make_history(4, 2)
    plot_learning_curve(history, tmp_path / "plain.png")
    for entry in history:
        entry |= {"loss/a": 0.6 * entry["loss"], "loss/b": 0.4 * entry["loss"]}
    plot_learning_curve(history, tmp_path / "terms.png")
    plain, terms = (imread(tmp_path / f"{name}.png").shape for name in ("plain", "terms"))
    assert terms[0] > 1.5 * plain[0]


@pytest.mark.parametrize(("lower_is_better", "best"), [(True, 3), (False, 1)])
def test_the_best_epoch_is_marked(lower_is_better: bool, best: int, tmp_path: Path, monkeypatch):
    marked = []
    monkeypatch.setattr("matplotlib.axes.Axes.axvline", lambda axes, epoch, **style: marked.append(epoch))
    history = [
        {"epoch": epoch, "loss": 1.0, "learning_rate": 1e-3, "error": error}
        for epoch, error in enumerate((3.0, 1.5, 1.0, 2.0), start=1)
    ]
    plot_learning_curve(history, tmp_path / "curve.png", "error", lower_is_better)
    assert marked == [best]
