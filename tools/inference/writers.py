# SPDX-License-Identifier: Apache-2.0
"""Writers of segmentations: the source's own grid and header, whole files only, never over an input."""

from __future__ import annotations

import difflib
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
        structures: names of the classes that are kept, with their values; the others become background. None: all.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | Path,
        labels: Sequence[str],
        output_postfix: str = "seg",
        structures: Sequence[str] | None = None,
    ) -> None:
        super().__init__(keys, output_dir=output_dir, output_postfix=output_postfix, separate_folder=False)
        if len(labels) > np.iinfo(np.uint8).max + 1:
            raise ConfigValueError("labels", f"{len(labels)} names", "at most 256, the values of uint8", "use fewer")
        self.output_dir = Path(output_dir)
        self.output_postfix = output_postfix
        self.names = choose_structures(labels, structures)

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
            write_segmentation(data[key][0], source, path, self.names)
        return dict(data)


class SaveProbabilitiesd(SaveImaged):
    """Write the probabilities of the classes in the source grid as `<scan>_prob.nii.gz`, float32 `(H, W, D, K)`.

    Which volume is which class stands in a NIfTI comment, as in the segmentation. The data are not changed. It is a
    `SaveImaged`, too, so that MONAI Label leaves it out.

    Args:
        keys: keys of logits `(K, H, W, D)` in the source grid.
        output_dir: folder of the files.
        labels: names of the classes, background first.
        structures: names of those that are written; None: all, with background.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | Path,
        labels: Sequence[str],
        structures: Sequence[str] | None = None,
    ) -> None:
        super().__init__(keys, output_dir=output_dir, output_postfix="prob", separate_folder=False)
        self.output_dir = Path(output_dir)
        names = choose_structures(labels, structures)
        self.names = names if structures is None else {value: name for value, name in names.items() if value}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the probabilities; `data["name"]` names the result, else the file name of the scan does."""
        for key in self.key_iterator(data):
            source = Path(data[key].meta["filename_or_obj"])
            name = data.get("name") or name_case(source)
            logits = torch.as_tensor(data[key]).float()
            values = torch.softmax(logits, dim=0)[list(self.names)].movedim(0, -1).cpu().numpy()
            _write_like(source, values, self.output_dir / f"{name}_prob.nii.gz", dict(enumerate(self.names.values())))
        return dict(data)


def choose_structures(labels: Sequence[str], structures: Sequence[str] | None) -> dict[int, str]:
    """Return the names of the classes that are kept by their values, background always.

    Raises:
        ConfigValueError: if there is no class of a name.
    """
    known = dict(enumerate(labels))
    if structures is None:
        return known
    if isinstance(structures, str):
        structures = [structures]
    if unknown := [str(name) for name in structures if name not in known.values()]:
        near = difflib.get_close_matches(unknown[0], list(labels)[1:], n=1)
        remedy = f"write {near[0]}" if near else "correct --structures"
        raise ConfigValueError("structures", repr(unknown[0]), f"one or more of {', '.join(list(labels)[1:])}", remedy)
    return {value: name for value, name in known.items() if value == 0 or name in structures}


def write_segmentation(
    segmentation: torch.Tensor, source: str | Path, path: str | Path, names: Mapping[int, str]
) -> None:
    """Write a label map `(H, W, D)` in the grid of the scan `source`, atomically.

    Args:
        segmentation: the values.
        source: the scan.
        path: the file.
        names: of the values; those that have none become background.

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
    kept = np.zeros(256, np.uint8)
    kept[list(names)] = list(names)
    values = kept[values]
    if math.prod(scan.shape[3:]) == 1:  # the grid of the scan with all its axes; of several channels, that of one
        values = values.reshape(scan.shape)
    _write_like(source, values, Path(path), names)


def _write_like(source: str | Path, values: np.ndarray, path: Path, names: Mapping[int, str]) -> None:
    """Write voxels in the grid and with the header of a scan; the names travel in a comment."""
    scan = nib.load(source)
    image = type(scan)(values, scan.affine, scan.header)
    image.set_data_dtype(values.dtype)
    image.header["cal_min"] = image.header["cal_max"] = 0
    image.header.extensions.clear()
    comment = json.dumps({"labels": {str(value): name for value, name in names.items()}})
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", comment.encode()))
    with write_atomically(path) as temporary:
        nib.save(image, temporary)
