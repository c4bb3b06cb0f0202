# SPDX-License-Identifier: Apache-2.0
"""A scan: where its voxels lie in mm, what they are, and how a result is written into its grid."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from tools.channels import list_channel_files
from tools.errors import GeometryMismatchError
from tools.files import write_atomically
from tools.scans.grids import check_same_grid
from tools.scans.nifti import find_affine_mm, get_unit_mm, read_header, read_voxels


class Scan:
    """A NIfTI volume whose header is sound; its voxels are read when they are asked for.

    Attributes:
        path: the file, the first one of several.
        files: all of them.
        shape: voxels along the three axes of the file.
        num_channels: how many volumes they hold.
        dtype: of the voxels in the file.
        unit_mm: length of the unit of the header.
        affine_mm: from voxels to mm, right, front and head being positive: the sform if its code is above 0, else the
            qform, else the spacing alone.
        spacing_mm: length of a voxel along each axis.
        orientation: where the axes point to, such as RAS.

    Args:
        path: a `.nii` or `.nii.gz` file, NIfTI-1 or NIfTI-2, or the first of several, see `list_channel_files`.
        num_channels: how many volumes the scan must hold, None for any number in this one file; axes of length 1 behind
            the third are ignored.

    Raises:
        MissingFileError: if there is no such file.
        UnreadableScanError: if it is no NIfTI file of 3D scalar volumes with a usable grid, or ends too early.
        GeometryMismatchError: if several files do not lie on the same grid.
    """

    def __init__(self, path: str | Path, num_channels: int | None = 1) -> None:
        self.path = Path(path)
        self.files = list_channel_files(self.path, num_channels or 1)
        self._image = image = read_header(self.path, num_channels if len(self.files) == 1 else 1)
        self.shape: tuple[int, int, int] = tuple(map(int, image.shape[:3]))  # type: ignore[assignment]
        self.num_channels = math.prod(map(int, image.shape[3:])) * len(self.files)
        self.dtype: np.dtype = image.header.get_data_dtype()
        self.unit_mm = get_unit_mm(image)
        self.affine_mm = find_affine_mm(image)
        self.spacing_mm = np.linalg.norm(self.affine_mm[:3, :3], axis=0)
        self.orientation = "".join(nib.aff2axcodes(image.affine))
        self._others = [Scan(file) for file in self.files[1:]]
        for other in self._others:
            check_same_grid(self, other)

    @property
    def has_orientation(self) -> bool:
        """Whether the file says where its axes point to."""
        return bool(self._image.header["qform_code"] > 0 or self._image.header["sform_code"] > 0)

    @property
    def extent_mm(self) -> np.ndarray:
        """Length to the right, to the front and to the head."""
        extent = np.zeros(3)
        extent[nib.io_orientation(self.affine_mm)[:, 0].astype(int)] = self.spacing_mm * self.shape
        return extent

    def read(self, scaled: bool = True) -> np.ndarray:
        """Return the voxels, `(H, W, D)`, or `(H, W, D, C)` of several volumes; the file is read to its end.

        Args:
            scaled: whether to apply slope and intercept of the header, which gives floats unless they are 1 and 0.

        Raises:
            UnreadableScanError: if the file ends early or is damaged.
        """
        if self._others:
            parts = [read_voxels(self.path, self._image, scaled).reshape(self.shape)]
            return np.stack([*parts, *(other.read(scaled) for other in self._others)], axis=-1)
        voxels = read_voxels(self.path, self._image, scaled)
        return voxels.reshape(self.shape if self.num_channels == 1 else (*self.shape, self.num_channels))

    def turn_to_ras(self, voxels: np.ndarray) -> np.ndarray:
        """Return voxels `(H, W, D)` of this grid with axes that point to the right, to the front and to the head.

        The closest axes are taken where the grid is oblique; nothing is interpolated.
        """
        return nib.apply_orientation(voxels, nib.io_orientation(self.affine_mm))

    @property
    def ras_affine_mm(self) -> np.ndarray:
        """The affine of what `turn_to_ras` returns."""
        return self.affine_mm @ nib.orientations.inv_ornt_aff(nib.io_orientation(self.affine_mm), self.shape)

    def write_like(self, voxels: np.ndarray, path: str | Path, names: Mapping[int, str] | None = None) -> None:
        """Write voxels in this grid with the header of this scan, atomically: affine, qform, sform, units to the bit.

        Args:
            voxels: `(H, W, D)` or `(H, W, D, C)`; a single volume gets all axes of the file.
            path: the file.
            names: of the values, or of the volumes, for a comment in the header.

        Raises:
            GeometryMismatchError: if the number of voxels along an axis differs.
            OSError: if the file cannot be written; nothing is left behind then.
        """
        if tuple(voxels.shape[:3]) != self.shape:
            raise GeometryMismatchError(
                self.path,
                f"a result of {tuple(map(int, voxels.shape[:3]))} voxels",
                f"the {self.shape} voxels of the scan",
                "end the postprocessing with Invertd, so that the result lies in the scan's grid",
            )
        if self.num_channels == 1 and voxels.ndim == 3:
            voxels = voxels.reshape(self._image.shape)
        image = type(self._image)(voxels, self._image.affine, self._image.header)
        image.set_data_dtype(voxels.dtype)
        image.header["cal_min"] = image.header["cal_max"] = 0
        image.header.extensions.clear()
        if names is not None:
            comment = json.dumps({"labels": {str(value): name for value, name in names.items()}})
            image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", comment.encode()))
        with write_atomically(Path(path)) as temporary:
            nib.save(image, temporary)
