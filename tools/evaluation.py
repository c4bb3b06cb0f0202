# SPDX-License-Identifier: Apache-2.0
"""Agreement of a segmentation with a reference, file against file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.metrics import compute_dice

from tools.checks import check_pair
from tools.errors import LabelValueError
from tools.scans import Scan


def measure_dice(
    segmentation_path: str | Path,
    label_path: str | Path,
    labels: Sequence[str],
    label_map: Mapping[int, int] | None = None,
) -> dict[str, float]:
    """Return Dice per class without background; NaN for a class that the reference does not have.

    Args:
        segmentation_path: a label map `(H, W, D)`.
        label_path: the reference in the same grid.
        labels: names of the classes, background first.
        label_map: class of each value in both files, as on the card of a data set; default: they are the classes.

    Raises:
        MissingFileError: if one of the files does not exist.
        UnreadableScanError: if one of them is no sound NIfTI volume.
        GeometryMismatchError: if shapes or affines differ.
        LabelValueError: if one of them holds other values than those of the map, or of `labels`.
    """
    values = label_map or {value: value for value in range(len(labels))}
    check_pair(segmentation_path, label_path, list(values), may_be_equal=True)
    segmentation, label = (_read_one_hot(path, values, len(labels)) for path in (segmentation_path, label_path))
    dice = compute_dice(segmentation, label, include_background=False, ignore_empty=True)[0]
    return dict(zip(labels[1:], dice.tolist(), strict=True))


def _read_one_hot(path: str | Path, label_map: Mapping[int, int], num_classes: int) -> torch.Tensor:
    """Return a label map as booleans `(1, K, H, W, D)`."""
    voxels = np.rint(Scan(path).read())  # programs that scale labels leave them close to whole numbers
    if unknown := sorted({*np.unique(voxels).tolist()} - {*label_map}):
        found, wanted = f"the value {unknown[0]:g}", f"only {', '.join(map(str, label_map))}"
        raise LabelValueError(path, found, wanted, "give the label map that belongs to this file")
    values = [[value for value, label in label_map.items() if label == number] for number in range(num_classes)]
    return torch.from_numpy(np.stack([np.isin(voxels, chosen) for chosen in values]))[None]
