# SPDX-License-Identifier: Apache-2.0
"""Prepared volumes kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
from monai.data import PersistentDataset
from monai.data.utils import pickle_hashing
from monai.utils import convert_to_tensor

from tools.channels import list_channel_files


class DiskDataset(PersistentDataset):
    """MONAI's `PersistentDataset` that never takes what was prepared of other files or in another way.

    That of MONAI 1.6.1 knows a scan by its path alone: where all files of a data set are replaced, a training goes on
    with the old ones, its loss equal to the last digit. Here a file is its path, size and time of change; a
    preparation is its transforms up to the first random one and the version of MONAI.

    Items are of the same type whether they are read from disk or prepared just now: MONAI writes tensors without
    metadata and returns an item that it prepares with them. A batch of both cannot be collated, so that a training
    would end in its second epoch where the first one left out a scan.

    Args:
        data: entries whose values are paths, or lists of them.
        transform: the preparation.
        cache_dir: folder of the prepared volumes; to free their space, delete it.
    """

    def __init__(self, data: Sequence[Any], transform: Callable[..., Any], cache_dir: str | Path) -> None:
        super().__init__(data, transform, cache_dir, hash_func=hash_files, hash_transform=hash_preparation)

    def _cachecheck(self, item_transformed: Any) -> Any:
        item = super()._cachecheck(item_transformed)
        return convert_to_tensor(item, convert_numeric=False, track_meta=self.track_meta)


def hash_files(item: Any) -> bytes:
    """Return a hash of an entry that changes with the paths in it and with the files."""
    return pickle_hashing(_identify(item))


def hash_preparation(transforms: Sequence[Any]) -> bytes:
    """Return a hash of transforms that changes with any of their settings and with MONAI."""
    return pickle_hashing([monai.__version__, pickle_hashing(list(transforms))])


def _identify(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _identify(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_identify(item) for item in value]
    if isinstance(value, (str, Path)) and Path(value).is_file():
        stats = [(file, file.stat()) for file in list_channel_files(value)]
        return [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]
    return value
