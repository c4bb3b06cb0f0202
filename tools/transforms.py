# SPDX-License-Identifier: Apache-2.0
"""Dictionary transforms that MONAI lacks."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping

import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from tools.errors import UnreadableScanError

logger = logging.getLogger(__name__)


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
