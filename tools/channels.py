# SPDX-License-Identifier: Apache-2.0
"""A scan of several channels as one file each, as nnU-Net has them: x_0000.nii.gz, x_0001.nii.gz, ...

The first file stands for the scan. The others belong to it where a network takes several channels: by their names alone
`scan_0000` and `scan_0001` may be two patients.
"""

from __future__ import annotations

import re
from pathlib import Path

_FIRST = re.compile(r"(.+_)0000(\.nii(?:\.gz)?)", re.IGNORECASE)
_LARGEST = 10_000  # of four digits


def list_channel_files(path: str | Path, num_channels: int | None = None) -> list[Path]:
    """Return the files of a scan, the first one being `path`.

    Args:
        path: a scan, or the first file of one.
        num_channels: how many files it must be, or it is one alone: patients may be numbered so, too. With None all
            files that follow are taken.
    """
    first = Path(path)
    name = _FIRST.fullmatch(first.name)
    if name is None:
        return [first]
    files = [first]
    for number in range(1, _LARGEST):
        file = first.with_name(f"{name[1]}{number:04}{name[2]}")
        if not file.exists():
            break
        files.append(file)
    return files if num_channels in (None, len(files)) else [first]


def drop_further_channels(paths: list[Path], num_channels: int) -> list[Path]:
    """Return the scans of a list without the files that stand behind a first one."""
    behind = {file for path in paths for file in list_channel_files(path, num_channels)[1:]}
    return [path for path in paths if path not in behind]
