# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
from matplotlib.colors import to_rgb

from tools.reports.colours import COLOURS, pick_colour

# linear RGB as seen with protanopia, deuteranopia and tritanopia (Machado, Oliveira and Fernandes 2009, severity 1)
DEFICIENCIES = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def convert_to_lab(deficiency: str) -> np.ndarray:
    rgb = np.array([to_rgb(colour) for colour in COLOURS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(DEFICIENCIES[deficiency]).T).clip(0, 1)
    x, y, z = np.cbrt(seen @ TO_XYZ.T / [0.95047, 1, 1.08883]).T  # all are bright enough for the cube root
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def test_no_two_colours_look_alike_to_anyone():
    for deficiency in DEFICIENCIES:
        lab = convert_to_lab(deficiency)
        distances = np.linalg.norm(lab[:, None] - lab, axis=-1)[~np.eye(len(lab), dtype=bool)]
        assert distances.min() > 13, deficiency


def test_every_colour_stands_out_on_black():
    assert convert_to_lab("none")[:, 0].min() > 50


def test_there_are_colours_for_the_thirteen_organs_of_btcv_and_more():
    assert len(set(COLOURS)) == len(COLOURS) >= 14
    assert pick_colour(1) == COLOURS[0]
    assert pick_colour(len(COLOURS) + 1) == COLOURS[0]
