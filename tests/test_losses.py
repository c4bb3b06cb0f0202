# SPDX-License-Identifier: Apache-2.0
"""The focal term of a softmax, against its formula and against the figures of the code that the recipe is of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.losses import DiceFocalLoss, DiceLoss

from tools.losses import DiceSoftmaxFocalLoss

CLASSES = 14


def compute_focal(logits: np.ndarray, classes: np.ndarray, gamma: float) -> float:
    """Return the mean over voxels and classes of -(1 - p)^gamma log p of the right class, by hand."""
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    right = np.take_along_axis(exponents / exponents.sum(axis=1, keepdims=True), classes, axis=1)
    return float(np.mean(-((1 - right) ** gamma) * np.log(right)) / logits.shape[1])


def make_case(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, CLASSES, (2, 1, 16, 16, 16), generator=generator)
    if kind == "random":
        return torch.randn(2, CLASSES, 16, 16, 16, generator=generator, dtype=torch.float64), classes
    logits = torch.zeros(2, CLASSES, 16, 16, 16, dtype=torch.float64).scatter(1, classes, 4.0)
    return logits + (10.0 if kind == "raised" else 0.0), classes


@pytest.mark.numeric
@pytest.mark.parametrize("gamma", [2.0, 1.0, 0.5])
@pytest.mark.parametrize("kind", ["random", "right", "raised"])
def test_the_loss_is_the_dice_of_monai_plus_the_formula(kind, gamma):
    logits, classes = make_case(kind)
    dice = DiceLoss(to_onehot_y=True, softmax=True)(logits, classes)
    expected = float(dice) + compute_focal(logits.numpy(), classes.numpy(), gamma)
    assert float(DiceSoftmaxFocalLoss(to_onehot_y=True, gamma=gamma)(logits, classes)) == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.numeric
def test_the_focal_term_has_the_figures_of_the_published_code():
    """Measured with monai-weekly 0.6.dev2127: 0.199 for random logits, 0.00056 where the right class is 4 above."""
    for kind, published, sigmoid in (("random", 0.199, 0.347), ("right", 0.00056, 0.161), ("raised", 0.00056, 9.28)):
        logits, classes = make_case(kind)
        dice = float(DiceLoss(to_onehot_y=True, softmax=True)(logits, classes))
        ours = float(DiceSoftmaxFocalLoss(to_onehot_y=True)(logits, classes)) - dice
        monai = float(DiceFocalLoss(to_onehot_y=True, softmax=True)(logits, classes)) - dice
        assert ours == pytest.approx(published, rel=0.01)
        assert monai == pytest.approx(sigmoid, rel=0.01)


@pytest.mark.numeric
def test_planes_and_weights_of_classes_are_taken():
    logits, classes = make_case("random")
    weight = torch.linspace(0.5, 2.0, CLASSES, dtype=torch.float64)
    loss = DiceSoftmaxFocalLoss(to_onehot_y=True, weight=weight, lambda_dice=0.0)
    planar, plain = loss(logits[..., 0], classes[..., 0]), logits[..., 0].numpy()
    right = np.take_along_axis(
        np.log(np.exp(plain) / np.exp(plain).sum(axis=1, keepdims=True)), classes[..., 0].numpy(), 1
    )
    expected = (-((1 - np.exp(right)) ** 2) * right * weight.numpy()[classes[..., 0].numpy()]).mean() / CLASSES
    assert float(planar) == pytest.approx(expected, rel=1e-6)
