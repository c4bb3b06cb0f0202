# SPDX-License-Identifier: Apache-2.0
"""How MONAI reads scans here: with the grid that the file states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
from monai.data import NibabelReader
from monai.utils import ensure_tuple

from tools.scans.nifti import load_scan


class ScanReader(NibabelReader):
    """MONAI's reader of NIfTI files, with `load_scan` in place of `nibabel.load`.

    MONAI 1.6.1 replaces the sform by the qform where spacing and affine differ by more than 1e-5, even where the qform
    is said to be none: left and right change places, without a word. It knows no units, stops at the last voxel, before
    the checksum, and gives the channels of ITK, the fifth axis, no name.

    Args:
        num_channels: how many the network takes; of several, x_0000.nii.gz stands for x_0001.nii.gz and so on, too.
    """

    def __init__(self, num_channels: int = 1) -> None:
        super().__init__()
        self.num_channels = num_channels

    def read(self, data: Sequence[str | Path] | str | Path, **kwargs: Any) -> nib.Nifti1Image | list[nib.Nifti1Image]:
        """Return the scan of a file, or those of several.

        Raises:
            MissingFileError: if there is no such file.
            UnreadableScanError: if it is no sound NIfTI volume.
        """
        self.filenames = ensure_tuple(data)
        images = [load_scan(name, self.num_channels) for name in self.filenames]
        return images if len(images) > 1 else images[0]
