# SPDX-License-Identifier: Apache-2.0
"""Writers of segmentations: the source's own grid and header, whole files only, never over an input."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import SaveImaged

from tools.datasets import name_case
from tools.errors import ConfigValueError, GeometryMismatchError
from tools.files import write_atomically


class SaveSegmentationd(SaveImaged):
    """Write label maps `(1, H, W, D)` in the source grid as `<scan>_seg.nii.gz`, uint8, with the source's header.

    The header is copied from the scan, so that affine, qform, sform and units are the scan's to the last bit, and
    the label names travel in a NIfTI comment. It is a `SaveImaged`, which MONAI Label leaves out to write the result
    itself.

    Args:
        keys: keys of the label maps.
        output_dir: folder of the files.
        labels: names of the classes, background first.
        output_postfix: what is put after the scan's name.
    """

    def __init__(
        self, keys: KeysCollection, output_dir: str | Path, labels: Sequence[str], output_postfix: str = "seg"
    ) -> None:
        super().__init__(keys, output_dir=output_dir, output_postfix=output_postfix, separate_folder=False)
        if len(labels) > np.iinfo(np.uint8).max + 1:
            raise ConfigValueError("labels", f"{len(labels)} names", "at most 256, the values of uint8", "use fewer")
        self.output_dir = Path(output_dir)
        self.output_postfix = output_postfix
        self.labels = list(labels)

    def locate(self, name: str) -> Path:
        """Return the path of the segmentation of the scan called `name`."""
        return self.output_dir / f"{name}_{self.output_postfix}.nii.gz"

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write each label map; `data["name"]` names the result, else the file name of the scan does.

        Raises:
            GeometryMismatchError: if a label map does not have the shape of its scan.
            OSError: if the file cannot be written; nothing is left behind then.
        """
        for key in self.key_iterator(data):
            source = Path(data[key].meta["filename_or_obj"])
            path = self.locate(data.get("name") or name_case(source))
            write_segmentation(data[key][0], source, path, self.labels)
        return dict(data)


def write_segmentation(segmentation: torch.Tensor, source: str | Path, path: str | Path, labels: Sequence[str]) -> None:
    """Write a label map `(H, W, D)` in the grid of the scan `source`, atomically.

    Raises:
        GeometryMismatchError: if the number of voxels along an axis differs.
    """
    scan = nib.load(source)
    if tuple(segmentation.shape) != scan.shape[:3]:
        raise GeometryMismatchError(
            source,
            f"a segmentation of {tuple(segmentation.shape)} voxels",
            f"the {scan.shape[:3]} voxels of the scan",
            "end the postprocessing with Invertd, so that the result lies in the scan's grid",
        )
    values = np.asarray(torch.as_tensor(segmentation).cpu(), dtype=np.uint8)
    if math.prod(scan.shape[3:]) == 1:  # the grid of the scan with all its axes; of several channels, that of one
        values = values.reshape(scan.shape)
    image = type(scan)(values, scan.affine, scan.header)
    image.set_data_dtype(np.uint8)
    image.header["cal_min"] = image.header["cal_max"] = 0
    image.header.extensions.clear()
    comment = json.dumps({"labels": {str(value): name for value, name in enumerate(labels)}})
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", comment.encode()))
    with write_atomically(path) as temporary:
        nib.save(image, temporary)
