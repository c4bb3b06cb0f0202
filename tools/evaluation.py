# SPDX-License-Identifier: Apache-2.0
"""Agreement of a segmentation with a reference, file against file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.metrics import compute_dice

from tools.checks import check_pair


def measure_dice(segmentation_path: str | Path, label_path: str | Path, labels: Sequence[str]) -> dict[str, float]:
    """Return Dice per class without background; NaN for a class that the reference does not have.

    Args:
        segmentation_path: a label map `(H, W, D)`.
        label_path: the reference in the same grid.
        labels: names of the classes, background first.

    Raises:
        MissingFileError: if one of the files does not exist.
        UnreadableScanError: if one of them is no sound NIfTI volume.
        GeometryMismatchError: if shapes or affines differ.
        LabelValueError: if the reference holds other values than those of `labels`.
    """
    check_pair(segmentation_path, label_path, range(len(labels)))
    segmentation, label = (_read_one_hot(path, len(labels)) for path in (segmentation_path, label_path))
    dice = compute_dice(segmentation, label, include_background=False, ignore_empty=True)[0]
    return dict(zip(labels[1:], dice.tolist(), strict=True))


def _read_one_hot(path: str | Path, num_classes: int) -> torch.Tensor:
    """Return a label map as booleans `(1, K, H, W, D)`."""
    voxels = np.asanyarray(nib.load(path).dataobj)
    voxels = voxels.reshape(voxels.shape[:3])
    return torch.from_numpy(np.stack([voxels == value for value in range(num_classes)]))[None]
