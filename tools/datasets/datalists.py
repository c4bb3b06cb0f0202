# SPDX-License-Identifier: Apache-2.0
"""Labelled data sets: lists of images and labels for training, from folders or a `dataset.json`.

The entries hold `image` and `label` only and absolute paths only, for the reasons given in `tools.datasets.scans`.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.datasets.scans import find_scans, make_absolute, name_case, order_naturally, require_files
from tools.errors import ConfigValueError, DatalistError, EmptyDatasetError, MissingFileError

logger = logging.getLogger(__name__)

# images and labels: Medical Segmentation Decathlon and nnU-Net, then BTCV as it is downloaded
FOLDER_PAIRS = (("imagesTr", "labelsTr"), ("img", "label"))
_SECTIONS = ("training", "validation")
UNLABELLED = "unlabelled"  # a further list of images, for pre-training
_ALIKE = 0.8  # of the letters of two words that are one, mistyped
_VALIDATION_STEP = 5  # without a given split, 20 % of the cases are for validation


def read_datalist(
    dataset_dir: str | Path | None, section: str, validation_cases: Sequence[str] = (), fold: int | None = None
) -> list[dict[str, str]]:
    """Return the image and label paths of one section of a labelled data set, in the order of the file.

    The list comes from `dataset.json` in Decathlon style, whose paths are relative to its own folder. Without that
    file, or with one that lists no cases (nnU-Net v2), `imagesTr/` and `labelsTr/` are paired by case name, where
    `x_0000.nii.gz` belongs to `x.nii.gz` (nnU-Net) and `img0001` to `label0001` (BTCV). Cases are split by
    `fold` if that is given; else as the file says; if it has no `validation` section, by `validation_cases`; if those
    are empty, every fifth case of the list sorted by name is for validation.

    Args:
        dataset_dir: the folder of the data set, or a JSON file.
        section: `training` or `validation`.
        validation_cases: names of cases (`hippocampus_011`), or their trailing numbers (`0035` for `img0035`).
        fold: the cases of the list `training` with this number in their field `fold` are for validation.

    Returns:
        Entries `{"image": path, "label": path}` with absolute paths; every file exists.

    Raises:
        MissingFileError: if the folder or a listed file does not exist.
        DatalistError: if the JSON file cannot be understood or an image has no label.
        EmptyDatasetError: if the section holds no case.
        ConfigValueError: if `section` or an entry of `validation_cases` cannot be understood, no case is meant by them,
            or there is no such fold.
    """
    if section not in _SECTIONS:
        raise ConfigValueError("section", repr(section), " or ".join(_SECTIONS), "correct it in the config")
    source = locate_source(dataset_dir)
    base = source if source.is_dir() else source.parent
    sections = read_sections(source) if source != base else {}
    if not sections:
        sections["training"] = _pair_folders(base)
    folds = _read_folds(source) if source != base else []
    if fold is not None:
        sections = _take_fold(sections["training"], folds, fold, source)
    elif "validation" not in sections:
        if any(number is not None for number in folds):
            known = ", ".join(map(str, sorted({number for number in folds if number is not None})))
            logger.warning(
                "%s has the folds %s, which are not used; --fold NUMBER validates one of them", source, known
            )
        sections = split_cases(sections["training"], validation_cases, source)
    pairs = sections.get(section, [])
    if not pairs:
        counts = ", ".join(f"{len(entries)} {name}" for name, entries in sections.items())
        raise EmptyDatasetError(
            source, f"no {section} case ({counts})", "at least one", "add cases or correct the validation cases"
        )
    require_files([Path(path) for pair in pairs for path in pair.values()], source, base)
    other = {pair["image"] for name, entries in sections.items() if name != section for pair in entries}
    if shared := [pair["image"] for pair in pairs if pair["image"] in other]:
        logger.warning("%s: %d images are for training and for validation, %s first", source, len(shared), shared[0])
    return pairs


def take_share(pairs: list[dict[str, str]], share: float) -> list[dict[str, str]]:
    """Return the first cases of a list, `share` of them and at least one.

    Raises:
        ConfigValueError: unless `share` is above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ConfigValueError("training_share", str(share), "a number above 0, at most 1", "correct --training_share")
    chosen = pairs[: max(1, round(share * len(pairs)))]
    if len(chosen) < len(pairs):
        logger.info("training with the first %d of %d cases", len(chosen), len(pairs))
    return chosen


def locate_source(dataset_dir: str | Path | None, option: str = "--dataset_dir") -> Path:
    """Return the JSON file of the data set if there is one, else its folder; `option` gave it, for messages."""
    if dataset_dir is None:
        raise MissingFileError(option, "nothing", "the folder of a data set", f"give {option} FOLDER")
    path = make_absolute(dataset_dir)
    if not path.exists():
        raise MissingFileError(path, "no such folder", "the folder of a data set", f"correct {option}")
    if path.is_dir():
        return path / "dataset.json" if (path / "dataset.json").exists() else path
    if path.suffix.lower() != ".json":
        raise DatalistError(path, "a file that is no .json", "a folder or a dataset.json", f"correct {option}")
    return path


def read_sections(file: Path, need_labels: bool = True) -> dict[str, list[dict[str, str]]]:
    """Return the sections that the JSON file has; none if it is a description without lists, as nnU-Net's.

    Args:
        file: a `dataset.json` in Decathlon style.
        need_labels: whether each entry must have a label; if not, an entry may also be just the path of an image, and
            there may be a section `unlabelled`.

    Raises:
        DatalistError: if the file cannot be understood.
    """
    try:
        # utf-8-sig: editors on Windows put a byte order mark in front
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DatalistError(file, f"no valid JSON ({error})", "a JSON object", "correct the file") from error
    if not isinstance(content, dict):
        raise DatalistError(file, f"a JSON {type(content).__name__}", "a JSON object", "correct the file")
    names = _SECTIONS if need_labels else (*_SECTIONS, UNLABELLED)
    return {name: _read_entries(content[name], name, file, need_labels) for name in names if name in content}


def read_label_names(file: Path) -> dict[int, str]:
    """Return the names by their values that a `dataset.json` states; files that state nothing give no names."""
    listed = json.loads(file.read_text(encoding="utf-8-sig")).get("labels")
    return name_values(listed) if isinstance(listed, dict) else {}


def name_values(listed: Mapping[Any, Any]) -> dict[int, str]:
    """Return names by their values, of `{value: name}` (MSD) or `{name: value}` (nnU-Net) without its regions.

    Args:
        listed: what a `dataset.json` has under `labels`.
    """
    pairs = [(key, name) if str(key).isdecimal() else (name, key) for key, name in listed.items()]
    return {int(value): str(name) for value, name in pairs if str(value).isdecimal()}


def _read_entries(entries: Any, section: str, file: Path, need_labels: bool) -> list[dict[str, str]]:
    if not isinstance(entries, list):
        raise DatalistError(file, f"'{section}' that is no list", "a list of entries", "correct the file")
    pairs = []
    for position, listed in enumerate(entries):
        entry = {"image": listed} if isinstance(listed, str) and not need_labels else listed
        pair: dict[str, str] = {}
        for key in ("image", "label"):
            path = entry.get(key) if isinstance(entry, dict) else None
            if path is None and key == "label" and pair and not need_labels:
                continue
            if not path or not isinstance(path, str):
                raise DatalistError(
                    f"{file}, entry {position} of '{section}'",
                    f"no {key} path in {json.dumps(entry, ensure_ascii=False)[:120]}",
                    '{"image": path, "label": path}',
                    "complete or remove the entry",
                )
            pair[key] = str(_find_listed(file.parent, path))
        pairs.append(pair)
    return pairs


def _find_listed(folder: Path, listed: str) -> Path:
    """Return the file that a list means: written on Windows, or by nnU-Net, whose images end in `_0000`."""
    path = folder / listed
    if path.exists():
        return path
    slashed = folder / listed.replace("\\", "/")
    name = slashed.name
    suffix = next((end for end in (".nii.gz", ".nii") if name.lower().endswith(end)), "")
    numbered = slashed.with_name(f"{name.removesuffix(suffix)}_0000{suffix}")
    return next((found for found in (slashed, numbered) if suffix and found.exists()), path)


def _pair_folders(folder: Path) -> list[dict[str, str]]:
    for image_name, label_name in FOLDER_PAIRS:
        if (folder / image_name).is_dir() and (folder / label_name).is_dir():
            images, labels = _index_cases(folder / image_name), _index_cases(folder / label_name)
            break
    else:
        raise EmptyDatasetError(
            folder,
            "no list of training cases and no folders imagesTr and labelsTr",
            "a dataset.json or these folders",
            "correct --dataset_dir",
        )
    images = _take_first_channels(images, labels)
    # BTCV calls the label of img0001 label0001
    names = {case: case if case in labels else re.sub(r"\Aimg", "label", case) for case in images}
    if lonely := [images[case] for case, name in names.items() if name not in labels]:
        raise DatalistError(
            lonely[0],
            f"no label in {label_name}, as for {len(lonely)} of {len(images)} images",
            "a label of the same name",
            "add the label or move the image elsewhere",
        )
    if unused := labels.keys() - set(names.values()):
        logger.warning("%s: %d labels have no image and are not used", folder / label_name, len(unused))
    return [{"image": str(images[case]), "label": str(labels[name])} for case, name in names.items()]


def _take_first_channels(images: dict[str, Path], labels: Collection[str]) -> dict[str, Path]:
    """Return images without the files x_0001, x_0002, ... of a case x whose label is called x, as nnU-Net has them."""
    bases = {case: match[1] for case in images if (match := re.fullmatch(r"(.+)_\d{4}", case)) and case not in labels}
    return {case: path for case, path in images.items() if bases.get(case) not in images.keys() & {*labels}}


def _index_cases(folder: Path) -> dict[str, Path]:
    cases: dict[str, Path] = {}
    for path in find_scans(folder):
        case = _name_plainly(path)
        if case in cases:
            raise DatalistError(path, f"{cases[case].name} beside it", "one file per case", "remove one of the two")
        cases[case] = path
    return cases


def _name_plainly(path: str | Path) -> str:
    """Return the case name without the `_0000` of nnU-Net and composed, as macOS decomposes the names it copies."""
    return unicodedata.normalize("NFC", name_case(path)).removesuffix("_0000")


def split_cases(
    cases: list[dict[str, str]], validation_cases: Sequence[str], source: Path, *, must_match: bool = True
) -> dict[str, list[dict[str, str]]]:
    """Return the sections of a data set whose file gives none, as `read_datalist` describes it.

    Args:
        cases: all cases.
        validation_cases: names of those for validation.
        source: for messages.
        must_match: whether one of the names must be that of a case.

    Raises:
        ConfigValueError: if an entry of `validation_cases` cannot be understood, or none is a case.
    """
    chosen, unknown = match_cases(cases, validation_cases)
    if unknown:
        _check_unknown(cases, chosen, unknown, source)
    if unknown and not chosen and must_match:
        names = [_name_plainly(case["image"]) for case in cases]
        found = f"{', '.join(map(repr, unknown[:3]))}{' ...' if len(unknown) > 3 else ''}, none of which {source} has"
        wanted = f"names of its {len(names)} cases, such as {names[0]}"
        remedy = "correct them, or give --validation_cases [] for every fifth case"
        raise ConfigValueError("validation_cases", found, wanted, remedy)
    if unknown and chosen:
        logger.warning("%s lacks %d validation cases, %s first", source, len(unknown), unknown[0])
    if not chosen:
        names = [_name_plainly(case["image"]) for case in cases]
        order = sorted(range(len(names)), key=lambda position: order_naturally(names[position]))
        chosen.update(order[::_VALIDATION_STEP])
        logger.info("%s gives no split: every fifth case, %d of %d, is for validation", source, len(chosen), len(cases))
    return {
        "training": [case for position, case in enumerate(cases) if position not in chosen],
        "validation": [case for position, case in enumerate(cases) if position in chosen],
    }


def _check_unknown(cases: Sequence[dict[str, str]], chosen: set[int], unknown: Sequence[str], source: Path) -> None:
    """Refuse names that a case is meant by: what shall be held back must not be trained on.

    Other names may be missing: a list that belongs to a public data set is used with a part of it.

    Raises:
        ConfigValueError: with the name that was probably meant.
    """
    names = [_name_plainly(case["image"]) for case in cases]
    free = [name for position, name in enumerate(names) if position not in chosen]
    for entry in unknown:
        if near := [name for name in free if _is_meant(entry, name)]:
            raise ConfigValueError(
                "validation_cases", f"{entry!r}, which {source} lacks", "names of its cases", f"write {near[0]}"
            )


def _is_meant(entry: str, name: str) -> bool:
    """Tell whether a name that no case has is that of a case but for zeros in front, letter case or a slip."""
    numbers, words = re.findall(r"\d+", entry), re.findall(r"[^\W\d_]+", entry)
    own_numbers, own_words = re.findall(r"\d+", name), re.findall(r"[^\W\d_]+", name)
    if not words:  # a number alone is the last one of a name
        own_numbers = own_numbers[-len(numbers) :]
    if list(map(int, numbers)) != list(map(int, own_numbers)):
        return False
    if not words:
        return bool(numbers)
    spelled = " ".join(words).casefold(), " ".join(own_words).casefold()
    return difflib.SequenceMatcher(None, *spelled).ratio() >= _ALIKE


def _read_folds(file: Path) -> list[int | None]:
    """Return the field `fold` of each entry of the list `training`, None where there is none."""
    listed = json.loads(file.read_text(encoding="utf-8-sig")).get("training") or []
    numbers = [entry.get("fold") if isinstance(entry, dict) else None for entry in listed]
    return [number if isinstance(number, int) and not isinstance(number, bool) else None for number in numbers]


def _take_fold(
    cases: list[dict[str, str]], folds: Sequence[int | None], fold: int, source: Path
) -> dict[str, list[dict[str, str]]]:
    """Return the sections of a data set by the fields `fold` of its file."""
    known = sorted({number for number in folds if number is not None})
    if isinstance(fold, bool) or fold not in known:
        wanted = (
            f"one of the folds of {source}: {', '.join(map(str, known))}" if known else f"none: {source} has no folds"
        )
        raise ConfigValueError("fold", repr(fold), wanted, "correct --fold")
    return {
        "training": [case for case, number in zip(cases, folds, strict=True) if number != fold],
        "validation": [case for case, number in zip(cases, folds, strict=True) if number == fold],
    }


def match_cases(cases: Sequence[dict[str, str]], validation_cases: Sequence[str]) -> tuple[set[int], list[str]]:
    """Return the positions of the `cases` that `validation_cases` names, and the names that belong to no case.

    Raises:
        ConfigValueError: if an entry of `validation_cases` cannot be understood.
    """
    names = [_name_plainly(case["image"]) for case in cases]
    chosen: set[int] = set()
    unknown = []
    for entry in [validation_cases] if isinstance(validation_cases, str) else validation_cases:
        if not isinstance(entry, str) or not entry:
            # YAML reads an unquoted 0035 as the octal number 29
            raise ConfigValueError("validation_cases", repr(entry), "names of cases", "put the name in quotes")
        pattern = re.compile(rf"(?:\A|\D){re.escape(unicodedata.normalize('NFC', entry))}\Z")
        found = [position for position, name in enumerate(names) if pattern.search(name)]
        chosen.update(found)
        unknown += [] if found else [entry]
    return chosen, unknown
