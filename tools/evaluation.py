# SPDX-License-Identifier: Apache-2.0
"""Agreement of a segmentation with a reference, file against file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.metrics import compute_dice

from tools.errors import GeometryMismatchError


def measure_dice(segmentation_path: str | Path, label_path: str | Path, labels: Sequence[str]) -> dict[str, float]:
    """Return Dice per class without background; NaN for a class that the reference does not have.

    Args:
        segmentation_path: a label map `(H, W, D)`.
        label_path: the reference in the same grid.
        labels: names of the classes, background first.

    Raises:
        GeometryMismatchError: if the shapes differ.
    """
    segmentation, label = (np.asanyarray(nib.load(path).dataobj) for path in (segmentation_path, label_path))
    if segmentation.shape != label.shape:
        raise GeometryMismatchError(
            segmentation_path, f"shape {segmentation.shape}", f"{label.shape} as {label_path}", "compare in one grid"
        )
    classes = range(len(labels))
    one_hot = [
        torch.stack([torch.from_numpy(volume == value) for value in classes])[None] for volume in (segmentation, label)
    ]
    dice = compute_dice(one_hot[0], one_hot[1], include_background=False, ignore_empty=True)[0]
    return dict(zip(labels[1:], dice.tolist(), strict=True))
