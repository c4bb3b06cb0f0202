# SPDX-License-Identifier: Apache-2.0
"""Writers of segmentations: the source's own grid and header, whole files only, never over an input."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import SaveImaged

from tools.datasets import name_case
from tools.errors import ConfigValueError
from tools.scans import Scan


class SaveSegmentationd(SaveImaged):
    """Write label maps `(1, H, W, D)` in the source grid as `<scan>_seg.nii.gz` with the source's header.

    The header is copied from the scan, so that affine, qform, sform and units are the scan's to the last bit, and
    the names of the values travel in a NIfTI comment. Voxels are uint8, uint16 where a value is above 255. It is a
    `SaveImaged`, which MONAI Label leaves out to write the result itself.

    Args:
        keys: keys of the label maps.
        output_dir: folder of the files.
        labels: names of the classes, background first.
        output_postfix: what is put after the scan's name.
        structures: names of the classes that are kept; the others become background. None: all.
        values: of the classes in the label maps; None: 0, 1, 2, ...
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | Path,
        labels: Sequence[str],
        output_postfix: str = "seg",
        structures: Sequence[str] | None = None,
        values: Sequence[int] | None = None,
    ) -> None:
        super().__init__(keys, output_dir=output_dir, output_postfix=output_postfix, separate_folder=False)
        values = list(range(len(labels)) if values is None else values)
        if len(set(values)) != len(labels) or min(values) < 0 or max(values) > np.iinfo(np.uint16).max:
            wanted = f"a value of its own for each of {len(labels)} labels, from 0 to {np.iinfo(np.uint16).max}"
            raise ConfigValueError("label_map", f"the values {values}", wanted, "correct the label map")
        self.output_dir = Path(output_dir)
        self.output_postfix = output_postfix
        self.table = dict(zip(values, labels, strict=True))
        kept = choose_structures(labels, structures)
        self.names = {value: name for number, (value, name) in enumerate(self.table.items()) if number in kept}

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
        self.names = names if structures is None else {number: name for number, name in names.items() if number}

    def locate(self, name: str) -> Path:
        """Return the path of the probabilities of the scan called `name`."""
        return self.output_dir / f"{name}_prob.nii.gz"

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the probabilities; `data["name"]` names the result, else the file name of the scan does."""
        for key in self.key_iterator(data):
            source = Path(data[key].meta["filename_or_obj"])
            name = data.get("name") or name_case(source)
            logits = torch.as_tensor(data[key]).float()
            values = torch.softmax(logits, dim=0)[list(self.names)].movedim(0, -1).cpu().numpy()
            names = dict(enumerate(self.names.values()))
            Scan(source, num_channels=None).write_like(values, self.locate(name), names)
        return dict(data)


def choose_structures(labels: Sequence[str], structures: Sequence[str] | None) -> dict[int, str]:
    """Return the names of the classes that are kept by their numbers, background always.

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
    return {number: name for number, name in known.items() if number == 0 or name in structures}


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
    dtype = np.uint8 if max(names) <= np.iinfo(np.uint8).max else np.uint16
    values = np.asarray(torch.as_tensor(segmentation).cpu()).astype(dtype)
    kept = np.zeros(np.iinfo(dtype).max + 1, dtype)
    kept[list(names)] = list(names)
    Scan(source, num_channels=None).write_like(kept[values], path, names)
