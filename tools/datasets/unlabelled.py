# SPDX-License-Identifier: Apache-2.0
"""Scans for pre-training: images without labels, from folders or from the training lists of labelled data sets.

What a labelled data set holds back for validation never enters pre-training: a network that has seen these images
would be judged on them later.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from tools.datasets.datalists import (
    FOLDER_PAIRS,
    UNLABELLED,
    locate_source,
    match_cases,
    read_sections,
    split_cases,
)
from tools.datasets.scans import list_scans
from tools.errors import ConfigValueError, EmptyDatasetError

logger = logging.getLogger(__name__)

_VALIDATION_STEP = 10  # every tenth scan measures the progress of pre-training

Cases = list[dict[str, str]]


def list_unlabelled(
    dataset_dir: str | Path | Sequence[str | Path] | None,
    held_back: Sequence[str] = (),
    option: str = "--dataset_dir",
    num_channels: int = 1,
) -> list[dict[str, str]]:
    """Return the scans of one or several sources, each file once; none of them is opened.

    A source is a folder of scans, or a labelled data set: a folder with a `dataset.json` (or that file), with
    `imagesTr` and `labelsTr`, or with `img` and `label`. Of a labelled data set the images of its training cases are
    taken, exactly those that `read_datalist` returns for training, and those of its list `unlabelled` if the JSON file
    has one; the label files need not be there. A file that one source has for validation is left out of all others too.

    Args:
        dataset_dir: the source or a list of sources.
        held_back: names of validation cases, as for `read_datalist`; they are left out of every source, also of a
            `dataset.json` with a validation list of its own.
        option: what gave the sources, for messages.
        num_channels: how many the network takes; of several, x_0000.nii.gz stands for x_0001.nii.gz and so on, too.

    Returns:
        Entries `{"image": path}` with absolute paths.

    Raises:
        MissingFileError: if nothing is given, or a source does not exist.
        DatalistError: if a JSON file cannot be understood.
        EmptyDatasetError: if a folder holds no scan, or all scans are held back.
        ConfigValueError: if an entry of `held_back` cannot be understood.
    """
    sources: Sequence[str | Path | None]
    sources = [dataset_dir] if dataset_dir is None or isinstance(dataset_dir, (str, Path)) else dataset_dir
    training: Cases = []
    validation: Cases = []
    for source in sources:
        kept, held = _split_source(source, held_back, option, num_channels)
        training += kept
        validation += held
    barred = {Path(case["image"]).resolve() for case in validation}
    unique: dict[Path, str] = {}
    for case in training:
        unique.setdefault(Path(case["image"]).resolve(), case["image"])
    scans = [{"image": path} for file, path in unique.items() if file not in barred]
    if not scans:
        raise EmptyDatasetError(
            option,
            f"no scan for pre-training ({len(barred)} are held back for validation)",
            "a folder of scans or a list of folders",
            f"correct {option}",
        )
    if barred:
        logger.info("%d scans are held back for the validation of segmentation", len(barred))
    return scans


def split_unlabelled(scans: Sequence[dict[str, str]], section: str) -> list[dict[str, str]]:
    """Return one section of the scans: `validation` is every tenth from the first on, `training` are the others.

    Raises:
        EmptyDatasetError: if there are not enough scans for two sections.
        ConfigValueError: if `section` is none of the two.
    """
    if len(scans) < 2:
        raise EmptyDatasetError(
            "the data set",
            f"{len(scans)} readable scans",
            "at least 2, because one is for validation",
            "add scans to --dataset_dir",
        )
    if section == "validation":
        return list(scans[::_VALIDATION_STEP])
    if section == "training":
        return [scan for position, scan in enumerate(scans) if position % _VALIDATION_STEP]
    raise ConfigValueError("section", repr(section), "training or validation", "correct it in the config")


def _split_source(
    source: str | Path | None, held_back: Sequence[str], option: str, num_channels: int
) -> tuple[Cases, Cases]:
    """Return the cases of one source that may be used and those that may not."""
    path = locate_source(source, option)
    sections = read_sections(path, need_labels=False) if path.is_file() else {}
    if sections:
        cases = sections.get("training", [])
        labelled = any("label" in case for case in cases)
    else:
        cases, labelled = _find_cases(path if path.is_dir() else path.parent, num_channels)
    kept, barred = [], sections.get("validation", [])
    if labelled and "validation" not in sections:
        split = split_cases(cases, held_back, path, must_match=False)
        kept, barred, cases = split["training"], split["validation"], []
    cases = cases + sections.get(UNLABELLED, [])
    named, _ = match_cases(cases, held_back)
    kept = kept + [case for position, case in enumerate(cases) if position not in named]
    return kept, barred + [cases[position] for position in named]


def _find_cases(folder: Path, num_channels: int) -> tuple[Cases, bool]:
    """Return the scans of a folder without a list, and whether they have labels."""
    for image_name, label_name in FOLDER_PAIRS:
        if (folder / image_name).is_dir():
            return list_scans(folder / image_name, num_channels=num_channels), (folder / label_name).is_dir()
    return list_scans(folder, num_channels=num_channels), False
