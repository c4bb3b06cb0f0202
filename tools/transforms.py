# SPDX-License-Identifier: Apache-2.0
"""Dictionary transforms that MONAI lacks."""

from __future__ import annotations

import copy
import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import torch
from monai.data import ImageReader, MetaTensor
from monai.transforms import LoadImaged, MapTransform, Spacingd

from tools.checks import check_scan
from tools.errors import UnreadableScanError

logger = logging.getLogger(__name__)


def keep_image(transforms: Sequence[MapTransform]) -> list[MapTransform]:
    """Return copies of `transforms` for image and label that touch the `image` alone.

    The cards of data sets crop image and label alike. Scans without labels are cropped by the same cards, and the label
    that Dice is measured with stays in its own grid.
    """
    copies = [copy.copy(transform) for transform in transforms]
    for transform in copies:
        transform.keys = ("image",)
    return copies


class LoadScand(LoadImaged):
    """`LoadImaged` for NIfTI files that says in a sentence what is wrong with a file it cannot read."""

    def __call__(
        self, data: Mapping[Hashable, str | Path], reader: ImageReader | None = None
    ) -> dict[Hashable, torch.Tensor]:
        """Return `data` with the files replaced by their voxels.

        Raises:
            MissingFileError: if a file does not exist.
            UnreadableScanError: if it is no sound NIfTI volume.
        """
        try:
            return super().__call__(data, reader)
        except Exception as error:
            for key in self.key_iterator(data):
                check_scan(
                    data[key], num_channels=None
                )  # reads the file once more, and raises with what is wrong with it
            reason = str(error.__cause__ or error).partition("\n")[0]
            raise UnreadableScanError(
                ", ".join(str(data[key]) for key in self.key_iterator(data)),
                f"data that cannot be read ({reason})",
                "a sound NIfTI volume",
                "export it again from its source",
            ) from error


class PlainSpacingd(Spacingd):
    """`Spacingd` that leaves alone what stands beside its keys.

    That of MONAI 1.6 takes every entry whose name starts with `image_` for a dictionary of metadata and updates it, if
    the image comes from a NIfTI file. MONAI Label puts a text there, `image_path`, and answers with status 500.
    """

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        """Return `data` with resampled volumes."""
        own = {key: data[key] for key in self.key_iterator(data)}
        return {**data, **super().__call__(own, lazy)}


class FillNonFinited(MapTransform):
    """Replace NaN and infinite voxels of an image `(C, H, W, D)` by its smallest finite value, and log how many.

    Scanners and resampling tools leave such voxels outside the field of view; one of them reaching the network
    turns every window that sees it into NaN. The smallest value is air in CT and background in MR.
    """

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Return `data` with finite images.

        Raises:
            UnreadableScanError: if an image has no finite voxel at all.
        """
        filled = dict(data)
        for key in self.key_iterator(filled):
            image = filled[key]
            finite = torch.isfinite(image.as_tensor() if isinstance(image, MetaTensor) else image)
            count = finite.numel() - int(finite.sum())
            if count == 0:
                continue
            name = image.meta.get("filename_or_obj", key) if isinstance(image, MetaTensor) else key
            if count == finite.numel():
                raise UnreadableScanError(name, "only NaN or infinite voxels", "grey values", "export the scan again")
            logger.warning("%s: %d NaN or infinite voxels replaced by the smallest value", name, count)
            filled[key] = torch.where(finite, image, image[finite].min())
        return filled


class TakeCentreSliced(MapTransform):
    """Replace a window of slices `(C, H, W, D)` by the slice in its middle, `(C, H, W)`."""

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Return `data` with plain tensors of one slice."""
        taken = dict(data)
        for key in self.key_iterator(taken):
            window = taken[key]
            plain = window.as_tensor() if isinstance(window, MetaTensor) else window
            taken[key] = plain[..., plain.shape[-1] // 2].contiguous()
        return taken
