# SPDX-License-Identifier: Apache-2.0
"""The picture of crops shows each as the network gets it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from tools.reports import plot_crops
from tools.reports.colours import pick_colour

LABELS = ["background", "right ear", "left ear"]


def make_crop(planar: bool = False) -> dict[str, torch.Tensor]:
    """Return a crop whose class 1 lies at high x, the right of a volume in RAS, and class 2 at low x."""
    label = torch.zeros(1, 32, 32, 5)
    label[0, 24:30, 13:19], label[0, 2:8, 13:19] = 1, 2
    image = torch.rand(1, 32, 32, 5, generator=torch.Generator().manual_seed(0)) * 0.1
    return {"image": image, "label": label[..., 2] if planar else label}


def find_columns(picture: np.ndarray, value: int) -> np.ndarray:
    colour = np.array(to_rgb(pick_colour(value))) * 255
    near = np.abs(picture[:240].astype(float) - colour).max(axis=-1) < 40  # the panels; the legend is below
    return np.flatnonzero(near.any(axis=0))


@pytest.mark.parametrize("planar", [False, True])
def test_labels_are_outlined_where_they_lie_right_on_the_left(tmp_path, planar):
    path = tmp_path / "crops.png"
    plot_crops([make_crop(planar)], LABELS, path, ["case_1"])
    picture = np.asarray(Image.open(path).convert("RGB"))
    right, left = (find_columns(picture, value) for value in (1, 2))
    assert right.size > 5
    assert left.size > 5
    assert right.max() < left.min()  # radiological convention: the patient's right is on the left of the picture
    assert right.max() - right.min() < 0.3 * 240


def test_crops_without_structures_and_of_one_value_are_drawn(tmp_path):
    crop = {"image": torch.zeros(1, 8, 8, 8), "label": torch.zeros(1, 8, 8, 8)}
    plot_crops([crop] * 9, LABELS, tmp_path / "crops.png")
    assert np.asarray(Image.open(tmp_path / "crops.png")).std() > 0
