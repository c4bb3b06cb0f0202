# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a labelled data set: images and labels that do not belong together, unknown label values."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tools.errors import (
    DatalistError,
    DatasetError,
    EmptyDatasetError,
    LabelValueError,
    ToolsError,
)
from tools.scans import Scan, check_same_grid

logger = logging.getLogger(__name__)

_WHOLE = 1e-3  # programs that scale labels leave them that close to whole numbers


def check_pair(
    image_path: str | Path,
    label_path: str | Path,
    label_values: Collection[int],
    num_channels: int = 1,
    *,
    may_be_equal: bool = False,
) -> set[int]:
    """Return the values that a label has; raise if it does not belong to its image; warn if it is all background.

    Values within 0.001 of a whole number are that number. Both files are read to their ends, where the checksum is. Two
    grids are the same if no corner of the volume moves by more than half a voxel along any axis, which lets rounding in
    the files pass.

    Args:
        image_path: a `.nii` or `.nii.gz` file.
        label_path: a `.nii` or `.nii.gz` file of whole numbers.
        label_values: the values that the data set defines, background among them.
        num_channels: how many volumes the image must hold.
        may_be_equal: whether both may hold the same voxels, as two segmentations do.

    Raises:
        MissingFileError: if one of the files does not exist.
        UnreadableScanError: if one of the files is refused by `Scan`, or damaged.
        GeometryMismatchError: if shapes or affines differ.
        LabelValueError: if the label holds other values.
    """
    image, label = Scan(image_path, num_channels), Scan(label_path)
    check_same_grid(image, label)
    grey = image.read(scaled=False)  # a damaged one shall not end the training in its tenth epoch
    voxels = label.read()
    if voxels.dtype.kind == "f":
        whole_voxels = np.rint(voxels)
        voxels = np.where(np.abs(voxels - whole_voxels) <= _WHOLE, whole_voxels, voxels)
    if not may_be_equal and voxels.any() and voxels.shape == grey.shape and np.array_equal(voxels, grey):
        found = "the same voxels as the image"
        raise LabelValueError(label_path, found, "classes", "give the label that belongs to the image")
    allowed = sorted({int(value) for value in label_values})
    unknown = voxels[~np.isin(voxels, allowed)]
    if unknown.size:
        values, counts = np.unique(unknown, return_counts=True)
        listed = [f"{value:.9g} ({count} voxels)" for value, count in zip(values[:5], counts[:5], strict=True)]
        more = f" and {len(values) - 5} other values" if len(values) > 5 else ""
        whole = bool(np.isfinite(values).all() and (values == np.round(values)).all())
        raise LabelValueError(
            label_path,
            f"values {', '.join(listed)}{more}",
            f"only {', '.join(map(str, allowed))}",
            "correct the label, or give these values a class in label_map; none is left out of loss and Dice"
            if whole
            else "resample labels by nearest neighbour",
        )
    if not voxels.any():
        logger.warning("%s: found background only; the case adds nothing to the classes", label_path)
    return {int(value) for value in np.unique(voxels)}


def check_dataset(
    datalist: Sequence[Mapping[str, str]],
    label_values: Collection[int] | Mapping[int, int],
    num_workers: int = 2,
    num_channels: int = 1,
    labels: Sequence[str] = (),
    validation: Sequence[Mapping[str, str]] = (),
) -> None:
    """Run `check_pair` over a data set, report all problems at once, and warn of classes that no case has.

    Args:
        datalist: entries `{"image": path, "label": path}`.
        label_values: the values that the data set defines, background among them, or the class of each.
        num_workers: threads; decompression, most of the work, runs outside the interpreter lock.
        num_channels: how many volumes each image must hold.
        labels: names of the classes, for the warning.
        validation: further entries, which are validated; classes that only these have are told, and those that they
            lack.

    Raises:
        EmptyDatasetError: if there is no entry.
        DatalistError: if the only bad entry lacks its image or label.
        ToolsError: what `check_pair` raises, if one case is bad.
        DatasetError: if several are; the first is in the text, each of the others is logged at level ERROR.
    """
    entries = [*datalist, *validation]
    if not entries:
        raise EmptyDatasetError("the data set", "no case", "at least one", "correct --dataset_dir")
    find = partial(_check_entry, label_values=label_values, num_channels=num_channels)
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        found = pool.map(find, entries)
        # a short check should not leave a bar on the screen: it is shown after 2 s only
        shown = tqdm(found, "checking data set", len(entries), unit="case", delay=2, disable=len(entries) <= 20)
        outcomes = list(shown)
    problems = [outcome for outcome in outcomes if isinstance(outcome, ToolsError)]
    if not problems:
        classes = label_values if isinstance(label_values, Mapping) else {value: value for value in label_values}
        present = [{classes[value] for value in outcome} for outcome in outcomes if isinstance(outcome, set)]
        learned, measured = (set().union(*part) for part in (present[: len(datalist)], present[len(datalist) :]))
        for number in sorted({*classes.values()}):
            name = labels[number] if number < len(labels) else f"class {number}"
            if number not in learned | measured:
                told = "%s is in none of %d cases: nothing can be learned or measured of it"
                logger.warning(told, name, len(entries))
            elif validation and datalist and number not in learned:
                told = "%s is in none of %d cases for training, only in those for validation: it cannot be learned"
                logger.warning(told, name, len(datalist))
            elif validation and number not in measured:
                told = "%s is in none of %d cases for validation: it is learned, and its Dice is not defined"
                logger.warning(told, name, len(validation))
        return
    first, *others = problems
    if not others:
        raise first
    for other in others:
        logger.error("%s", other)
    raise DatasetError(
        first.subject,
        f"{first.found} (the first of {len(problems)} bad cases among {len(entries)})",
        first.wanted,
        f"{first.remedy}, and see the log for the other {len(others)}",
    ) from first


def _check_entry(entry: Mapping[str, str], label_values: Collection[int], num_channels: int) -> ToolsError | set[int]:
    try:
        for key in ("image", "label"):
            if not entry.get(key):
                raise DatalistError(
                    f"entry {dict(entry)}", f"no {key}", "an image and a label", "complete or remove the entry"
                )
        return check_pair(entry["image"], entry["label"], label_values, num_channels)
    except ToolsError as problem:
        return problem
