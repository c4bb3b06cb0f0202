# SPDX-License-Identifier: Apache-2.0
"""Dictionary transforms that MONAI lacks."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import ImageReader, MetaTensor
from monai.transforms import (
    Flip,
    LoadImaged,
    MapTransform,
    RandCropByPosNegLabeld,
    RandomizableTransform,
    RandRotate90d,
    Spacingd,
)
from monai.utils import convert_to_dst_type

from tools.errors import UnreadableScanError
from tools.scans.reader import ScanReader

logger = logging.getLogger(__name__)

_NO_DATA = 1e30  # no intensity is that large
IN_PLANE = (0, 1)  # X and Y, the slices of a scan in RAS


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
    """`LoadImaged` for NIfTI files by `ScanReader` alone, which says in a sentence what is wrong with a file.

    A reader that is only registered is one of several for MONAI: where it refuses a file, the others are tried.

    Args:
        keys: of the files.
        num_channels: of an image; labels have one.
        allow_missing_keys: whether a key may be missing.
    """

    def __init__(self, keys: Sequence[str] | str, num_channels: int = 1, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys=allow_missing_keys)
        self.num_channels = num_channels

    def __call__(
        self, data: Mapping[Hashable, str | Path], reader: ImageReader | None = None
    ) -> dict[Hashable, torch.Tensor]:
        """Return `data` with the files replaced by their voxels.

        Raises:
            MissingFileError: if a file does not exist.
            UnreadableScanError: if it is no sound NIfTI volume.
        """
        return super().__call__(data, reader or ScanReader(self.num_channels))


class PlainSpacingd(Spacingd):
    """`Spacingd` that leaves alone what stands beside its keys.

    That of MONAI 1.6 takes every entry whose name starts with `image_` for a dictionary of metadata and updates it, if
    the image comes from a NIfTI file. MONAI Label puts a text there, `image_path`, and answers with status 500.
    """

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        """Return `data` with resampled volumes."""
        own = {key: data[key] for key in self.key_iterator(data)}
        return {**data, **super().__call__(own, lazy)}


class RandStructureCropd(RandCropByPosNegLabeld):
    """`RandCropByPosNegLabeld` that also takes a volume with neither a structure nor a voxel above the threshold.

    Such are cases that are labelled empty and show nothing but air. MONAI's ends the training in mid-epoch; here crops
    of them come from anywhere.
    """

    def randomize(
        self,
        label: torch.Tensor | None = None,
        fg_indices: torch.Tensor | None = None,
        bg_indices: torch.Tensor | None = None,
        image: torch.Tensor | None = None,
    ) -> None:
        """Draw the centres of the crops."""
        if label is not None and image is not None:
            threshold = self.cropper.image_threshold
            if not bool((label > 0).any()) and not bool((image > threshold).any()):
                image = None
        super().randomize(label, fg_indices, bg_indices, image)


class RandMirrord(RandomizableTransform, MapTransform):
    """Flip crops `(C, H, W, D)` along each of some axes, and give structures of one side the name of the other.

    `RandFlipd` of MONAI leaves labels with their voxels: in half of what a network sees, the right kidney is the left
    one. Each flip makes a mirror image, and two flips a turned patient, in whom right is right again.

    Args:
        keys: image and label, of one size.
        axes: spatial axes, 0 to 2.
        prob: probability of a flip along each of them.
        classes: for each class of a label the one that it is in a mirror image; none: classes stay.
        label_keys: those of the keys that hold classes.
        allow_missing_keys: whether a key may be missing.
    """

    def __init__(
        self,
        keys: Sequence[str] | str,
        axes: Sequence[int] = (0, 1, 2),
        prob: float = 0.1,
        classes: Sequence[int] = (),
        label_keys: Sequence[str] | str = "label",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.axes = tuple(axes)
        self.classes = torch.as_tensor(list(classes), dtype=torch.long)
        self.label_keys = (label_keys,) if isinstance(label_keys, str) else tuple(label_keys)
        self.exchanges = bool((self.classes != torch.arange(len(self.classes))).any())
        self._flipped: tuple[int, ...] = ()

    def randomize(self, data: Any | None = None) -> None:
        """Draw the axes."""
        self._flipped = tuple(axis for axis in self.axes if self.R.random() < self.prob)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Return `data` with flipped crops."""
        self.randomize()
        flipped = dict(data)
        if not self._flipped:
            return flipped
        flip = Flip(self._flipped)
        exchanges = self.exchanges and len(self._flipped) % 2 == 1
        for key in self.key_iterator(flipped):
            crop = flip(flipped[key])
            if exchanges and key in self.label_keys:
                numbers = self.classes.to(crop.device)[
                    (crop.as_tensor() if isinstance(crop, MetaTensor) else crop).long()
                ]
                crop = convert_to_dst_type(numbers, crop, dtype=crop.dtype)[0]
            flipped[key] = crop
        return flipped


class RandQuarterTurnd(RandRotate90d):
    """`RandRotate90d` that keeps the shape of crops `(C, H, W, D)`, so that turned ones and others fit into a batch.

    With crops that are square in the plane of their first two axes it is MONAI's, down to the random numbers. With
    others it turns in another plane in which they are square, if voxels are too, as a quarter turn would stretch what
    they show; and if there is none, by half turns in the first plane.

    Args:
        keys: image and label, of one size.
        prob: probability of one, two or three quarter turns, each of them as likely; or of a half turn.
        allow_missing_keys: whether a key may be missing.
    """

    def __init__(self, keys: Sequence[str] | str, prob: float = 0.1, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, prob, allow_missing_keys=allow_missing_keys)
        self._keeps_shape = True

    def randomize(self, data: Any | None = None) -> None:
        """Draw whether to turn, and how far."""
        super().randomize(data)
        if not self._keeps_shape:
            self._rand_k = 2

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        """Return `data` with turned crops."""
        for key in self.key_iterator(data):
            plane = find_square_plane(data[key])
            self._keeps_shape, self.spatial_axes = plane is not None, plane or IN_PLANE
            break
        return super().__call__(data, lazy)


def find_square_plane(crop: torch.Tensor) -> tuple[int, int] | None:
    """Return the spatial axes between which a crop `(C, H, W, D)` can be turned without a change of its shape.

    The first two come first, whatever its voxels are. Elsewhere voxels must be as wide as high, to 1 %; where nothing
    is known of their size they are.
    """
    sizes = crop.shape[1:]
    if sizes[0] == sizes[1]:
        return IN_PLANE
    pixdim = crop.pixdim.tolist() if isinstance(crop, MetaTensor) else [1.0] * len(sizes)
    for first, second in ((0, 2), (1, 2)) if len(sizes) == 3 else ():
        if sizes[first] == sizes[second] and math.isclose(pixdim[first], pixdim[second], rel_tol=0.01):
            return first, second
    return None


class FillNonFinited(MapTransform):
    """Replace voxels without a value of an image `(C, H, W, D)` by its smallest value, and log how many there were.

    They are NaN, infinite, or beyond 1e30: programs write the largest number of float32 where there are no data.

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
            plain = image.as_tensor() if isinstance(image, MetaTensor) else image
            finite = torch.isfinite(plain) & (plain.abs() < _NO_DATA)
            count = finite.numel() - int(finite.sum())
            if count == 0:
                continue
            name = image.meta.get("filename_or_obj", key) if isinstance(image, MetaTensor) else key
            if count == finite.numel():
                found = "only voxels that are NaN, infinite or beyond 1e30"
                raise UnreadableScanError(name, found, "grey values", "export the scan again")
            told = "%s: %d voxels that are NaN, infinite or beyond 1e30, as for no data, replaced by the smallest value"
            logger.warning(told, name, count)
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
