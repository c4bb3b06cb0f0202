# SPDX-License-Identifier: Apache-2.0
"""Crops that fit Swin UNETR, made of those that users and the cards of data sets ask for."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from monai.utils import ensure_tuple_rep

from tools.errors import ConfigValueError
from tools.networks.swin_unetr import STRIDE

logger = logging.getLogger(__name__)


def fit_roi_size(roi_size: Sequence[int] | int) -> list[int]:
    """Return a crop `(X, Y, Z)` that Swin UNETR takes and that shows no less than `roi_size`.

    Each edge is rounded up to a multiple of 32: 48 voxels to 64, and not down, as a crop should show enough to tell
    organs apart. One of 32 each way gets 64 along Z, since a single token of the deepest map cannot be normalized.
    Volumes that are thinner than that are padded in training and by the windows of inference.

    Args:
        roi_size: voxels along X, Y, Z, or one number for all three; a card has what is natural for its data.

    Raises:
        ConfigValueError: if `roi_size` is no size.
    """
    try:
        sizes = ensure_tuple_rep(roi_size, 3)
    except ValueError as error:
        raise ConfigValueError("roi_size", str(roi_size), "voxels along X, Y, Z", "correct --roi_size") from error
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ConfigValueError("roi_size", str(roi_size), "positive whole numbers", "correct --roi_size")
    fitting = [math.ceil(size / STRIDE) * STRIDE for size in sizes]
    if math.prod(fitting) == STRIDE**3:
        fitting[-1] = 2 * STRIDE
    if fitting != list(sizes):
        wanted, found = ("×".join(map(str, size)) for size in (fitting, sizes))
        logger.info("crops have %s voxels, not the %s of roi_size: Swin UNETR takes multiples of 32", wanted, found)
    return fitting
