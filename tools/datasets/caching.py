# SPDX-License-Identifier: Apache-2.0
"""Prepared volumes kept on disk."""

from __future__ import annotations

from typing import Any

from monai.data import PersistentDataset
from monai.utils import convert_to_tensor


class DiskDataset(PersistentDataset):
    """MONAI's `PersistentDataset`, with items of the same type whether they are read from disk or prepared just now.

    MONAI 1.6.1 writes tensors without metadata, and returns an item that it prepares with them. A batch of both cannot
    be collated: a training ends in its second epoch where the first one left out a scan, or goes on from a cache that
    is not complete.
    """

    def _cachecheck(self, item_transformed: Any) -> Any:
        item = super()._cachecheck(item_transformed)
        return convert_to_tensor(item, convert_numeric=False, track_meta=self.track_meta)
