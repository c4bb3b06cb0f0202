# SPDX-License-Identifier: Apache-2.0
"""The picture shows the crops that were given, what was made of them, and where it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

from tools.reports import plot_reconstruction

SHAPE = (8, 6, 4)  # X, Y, Z

Panel = dict[str, Any]


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[Panel]:
    """What is drawn, panel by panel."""
    drawn: list[Panel] = []
    draw = Axes.imshow

    def note(self: Axes, pixels: np.ndarray, **options: Any) -> Any:
        drawn.append({"pixels": np.asarray(pixels), "axes": self, **options})
        return draw(self, pixels, **options)

    monkeypatch.setattr(Axes, "imshow", note)
    return drawn


def make_crops(count: int = 2, channels: int = 1, shape: tuple[int, int, int] = SHAPE) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    wanted = torch.rand(count, channels, *shape, generator=generator) * 3 - 1
    return torch.zeros_like(wanted), wanted + 0.5, wanted


def test_a_row_shows_what_was_given_restored_and_wanted_and_the_error(panels: list[Panel], tmp_path: Path):
    given, restored, wanted = make_crops()
    plot_reconstruction(given, restored, wanted, tmp_path / "picture.png")
    assert len(panels) == 2 * 4
    for crop, row in enumerate((panels[:4], panels[4:])):
        for panel, crops in zip(row, (given, restored, wanted), strict=False):
            # the middle slice along Z in radiological convention: right of the patient at the left, front at the top
            np.testing.assert_allclose(panel["pixels"], crops[crop, 0, :, :, 2].flip(0, 1).T)
        low, high = float(wanted[crop, 0, :, :, 2].min()), float(wanted[crop, 0, :, :, 2].max())
        assert all((panel["vmin"], panel["vmax"]) == (low, high) for panel in row[:3])
        np.testing.assert_allclose(row[3]["pixels"], 0.5, atol=1e-6)
        assert (row[3]["vmin"], row[3]["vmax"]) == (0, high - low)
        assert row[3]["axes"].get_title(loc="left") == "error 0.500"
    assert [panel["axes"].get_title(loc="left") for panel in panels[:3]] == ["given", "restored", "wanted"]


def test_no_more_rows_than_wanted_and_of_several_channels_the_first(panels: list[Panel], tmp_path: Path):
    given, restored, wanted = make_crops(count=5, channels=3)
    plot_reconstruction(given, restored, wanted, tmp_path / "picture.png", count=3)
    assert len(panels) == 3 * 4
    np.testing.assert_allclose(panels[10]["pixels"], wanted[2, 0, :, :, 2].flip(0, 1).T)


def test_half_precision_with_gradients_is_drawn_and_crops_keep_their_proportions(panels: list[Panel], tmp_path: Path):
    given, restored, wanted = make_crops(count=1, shape=(40, 10, 4))
    plot_reconstruction(given, restored.bfloat16().requires_grad_(), wanted, tmp_path / "picture.png", "epoch 3")
    assert all(panel["pixels"].shape == (10, 40) for panel in panels)
    boxes = [panel["axes"].get_window_extent() for panel in panels]
    assert all(box.width / box.height == pytest.approx(4, rel=0.01) for box in boxes)
    assert panels[0]["axes"].figure.get_suptitle() == "epoch 3"


def test_a_crop_without_contrast_is_drawn(tmp_path: Path):
    flat = torch.zeros(1, 1, *SHAPE)
    plot_reconstruction(flat, flat, flat, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.format == "PNG"


def test_a_failure_leaves_the_old_picture(tmp_path: Path):
    (tmp_path / "picture.png").write_bytes(b"old")
    given, restored, wanted = make_crops()
    with pytest.raises(ValueError, match="zip"):
        plot_reconstruction(given, restored[:1], wanted, tmp_path / "picture.png")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    assert (tmp_path / "picture.png").read_bytes() == b"old"
