# SPDX-License-Identifier: Apache-2.0
"""Scans on disk: finding, naming and listing them for inference.

Every path in a list is absolute: a config value that starts with `@`, `$` or `%` would be interpreted, a path that
starts at the root never is. An entry holds `image` only, because `Spacingd` of MONAI 1.6 takes any other key that
starts with `image_` for the metadata of a NIfTI file and fails on it.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.channels import drop_further_channels
from tools.errors import DatalistError, EmptyDatasetError, MissingFileError

logger = logging.getLogger(__name__)

_SUFFIXES = (".nii", ".nii.gz")


def name_case(path: str | Path) -> str:
    """Return the file name without `.nii` or `.nii.gz` (in any letter case), or without its last suffix."""
    name = Path(path).name
    stem = re.sub(r"(?i)\.nii(\.gz)?\Z", "", name)
    return stem if stem != name else Path(path).stem


def list_scans(
    dataset_dir: str | Path | None = None,
    datalist: Sequence[str | Mapping[str, str]] | str | None = None,
    num_channels: int = 1,
) -> list[dict[str, str]]:
    """Return the scans to segment; `datalist` wins over `dataset_dir`.

    Args:
        dataset_dir: a folder whose `.nii` and `.nii.gz` files are taken (not those of its sub-folders; `scan2`
            comes before `scan10`), or one scan.
        datalist: paths, or mappings with `image`, or one path.
        num_channels: how many the network takes; of several, x_0000.nii.gz stands for x_0001.nii.gz and so on, too.

    Returns:
        Entries `{"image": path}` with absolute paths, without repetitions. Scans of a folder are listed by name alone,
        so that a dangling link or a folder called `x.nii.gz` fails later, by itself.

    Raises:
        MissingFileError: if neither is given, or a given file or folder does not exist.
        DatalistError: if an entry of `datalist` has no image.
        EmptyDatasetError: if there is no scan.
    """
    if datalist is not None:
        scans = _list_given(datalist)
    elif dataset_dir is not None:
        scans = _list_found(make_absolute(dataset_dir))
        scans = drop_further_channels(scans, num_channels)
    else:
        raise MissingFileError(
            "--dataset_dir and --datalist",
            "neither of them",
            "the scans to segment",
            "give --dataset_dir FOLDER or --datalist \"['scan.nii.gz']\"",
        )
    unique: dict[Path, Path] = {}
    for scan in scans:
        first = unique.setdefault(scan.parent.resolve() / scan.name, scan)
        if first is not scan:
            logger.warning("%s is listed more than once and is segmented once", first)
    return [{"image": str(scan)} for scan in unique.values()]


def name_results(scans: Sequence[dict[str, str]]) -> list[str]:
    """Return one result name per scan, its case name; scans that share it get their parent folders in front.

    Names that differ in letter case or Unicode form only are held to be the same, because some file systems do.

    Args:
        scans: entries `{"image": path}`, each file once.

    Returns:
        Names without suffix in the order of `scans`, for example `a_ct`, `b_ct` for `a/ct.nii.gz`, `b/ct.nii.gz`.

    Raises:
        DatalistError: if two scans would get the same name, as `x.nii` and `x.nii.gz` of one folder do.
    """
    paths = [make_absolute(scan["image"]) for scan in scans]
    parts = [[*path.parent.parts[1:], name_case(path)] for path in paths]
    used = [1] * len(paths)  # how many of the last parts make the name
    while True:
        names = ["_".join(part[-count:]) for part, count in zip(parts, used, strict=True)]
        groups = defaultdict(list)
        for position, name in enumerate(names):
            groups[_fold(name)].append(position)
        clashes = [group for group in groups.values() if len(group) > 1]
        if not clashes:
            return names
        for group in clashes:
            same_folder = len({paths[position].parent for position in group}) < len(group)
            if same_folder or all(used[position] == len(parts[position]) for position in group):
                raise DatalistError(
                    paths[group[0]],
                    f"{paths[group[1]]} with the same result name {names[group[0]]}",
                    "one result name per scan",
                    "rename one of them or leave it out",
                )
            for position in group:
                used[position] = min(used[position] + 1, len(parts[position]))


def make_absolute(path: str | Path) -> Path:
    """Return `path` from the root on, with `~` for the home folder; `~x` is a name, links stay links."""
    path = Path(str(path))  # fire turns `--dataset_dir 2024` into a number
    return (path.expanduser() if path.parts[:1] == ("~",) else path).absolute()


def order_naturally(name: str) -> tuple[list[str | int], str]:
    """Return a sort key that compares the numbers in `name` as numbers; text and numbers alternate in it."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name


def find_scans(folder: Path) -> list[Path]:
    """Return the entries of `folder` that are called like a NIfTI scan, `scan2` before `scan10`; none is opened."""
    scans = [path for path in _list_folder(folder) if path.name.lower().endswith(_SUFFIXES)]
    return sorted(scans, key=lambda path: order_naturally(path.name))


def require_files(paths: Sequence[Path], source: object, base: Path) -> None:
    """Make sure that all `paths` exist.

    Args:
        paths: absolute paths.
        source: what lists them, for the message.
        base: the folder that relative paths in `source` start from, for the message.

    Raises:
        MissingFileError: with the first missing path and the number of all.
    """
    missing = [path for path in paths if not _exists(path)]
    if missing:
        raise MissingFileError(
            missing[0],
            f"no such file ({len(missing)} of {len(paths)} files of {source} are missing)",
            "every listed file",
            f"correct the paths (relative ones start at {base}) or bring the files",
        )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long (an unquoted list), or a parent folder that may not be entered
        return False


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _list_folder(folder: Path) -> list[Path]:
    """Return what lies in `folder`, without hidden files (macOS puts `._x.nii.gz` beside `x.nii.gz`)."""
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise MissingFileError(
            folder, f"a folder that cannot be read ({error.strerror})", "a readable one", "change its permissions"
        ) from error


def _list_given(datalist: Sequence[str | Mapping[str, str]] | str) -> list[Path]:
    entries = list(datalist) if isinstance(datalist, Sequence) and not isinstance(datalist, str) else [datalist]
    scans = []
    for position, entry in enumerate(entries):
        image = entry.get("image") if isinstance(entry, Mapping) else entry
        if not isinstance(image, (str, Path)) or not str(image):
            raise DatalistError(
                f"--datalist, entry {position}", repr(entry), "a path or {'image': path}", "correct the entry"
            )
        scans.append(make_absolute(image))
    if not scans:
        raise EmptyDatasetError("--datalist", "an empty list", "at least one scan", "list scans or use --dataset_dir")
    if isinstance(datalist, str) and datalist.startswith("[") and not _exists(scans[0]):
        raise DatalistError(
            "--datalist", datalist, "a list with quoted paths", "write --datalist \"['first.nii.gz', 'second.nii.gz']\""
        )
    require_files(scans, "--datalist", Path.cwd())
    return scans


def _list_found(path: Path) -> list[Path]:
    if not path.exists():
        raise MissingFileError(path, "no such file or folder", "a folder of scans", "correct --dataset_dir")
    if not path.is_dir():
        if not path.name.lower().endswith(_SUFFIXES):
            raise DatalistError(path, "a file that is no NIfTI scan", "a .nii or .nii.gz file", "convert it to NIfTI")
        return [path]
    if scans := find_scans(path):
        return scans
    content = _list_folder(path)
    folders = sorted(sub.name for sub in content if sub.is_dir() and find_scans(sub))
    raise EmptyDatasetError(
        path,
        f"no .nii or .nii.gz file among {len(content)} entries",
        "a folder of scans",
        f"give one of its sub-folders with scans: {', '.join(folders)}" if folders else "convert the scans to NIfTI",
    )
