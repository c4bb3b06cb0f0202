# SPDX-License-Identifier: Apache-2.0
"""MONAI's Swin UNETR in a form that `torch.jit.script` takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from monai.networks.nets import SwinUNETR

from tools.errors import ConfigValueError
from tools.networks.patch_merging import make_patch_merging
from tools.networks.tracing import TracedNetwork

STRIDE = 32  # voxels along each edge of a token of the deepest map: patches of 2, halved four times


class ScriptableSwinUNETR(SwinUNETR):
    """Swin UNETR with the parameters and names of MONAI's, in both of its forms, for `monai.bundle ckpt_export`.

    `torch.jit.script` compiles every function that a network calls, and torch.utils.checkpoint, which the Swin
    transformer calls for `use_checkpoint`, has keyword arguments that it does not know. It gets a trace instead.

    Source: Hatamizadeh et al., Swin UNETR, BrainLes 2021; Tang et al., CVPR 2022.

    Args:
        img_size: voxels of the images `(X, Y, Z)` that the traced network will take; the network itself takes any
            multiples of 32.
        in_channels: channels of an image.
        out_channels: classes, with the background.
        patch_merging: `original`, `corrected` or `v2`, see `tools.networks.patch_merging`; None or `auto`: that of the
            weights which `tools.weights` loads, `corrected` before; with `auto` the state dict tells it in any case.
        options: as of `SwinUNETR`.

    Raises:
        ConfigValueError: if a size does not fit the network.
    """

    def __init__(
        self,
        img_size: Sequence[int],
        in_channels: int,
        out_channels: int,
        patch_merging: str | None = None,
        **options: Any,
    ) -> None:
        check_sizes(img_size, options.get("feature_size", 24))
        options = {"downsample": make_patch_merging(patch_merging), **options}
        super().__init__(in_channels=in_channels, out_channels=out_channels, **options)
        self.patch_merging = patch_merging
        self.image_shape = (in_channels, *img_size)

    def __prepare_scriptable__(self) -> TracedNetwork:
        """Stand in for this network in `torch.jit.script`."""
        return TracedNetwork(self, self.image_shape)


def check_sizes(img_size: Sequence[int], feature_size: int, key: str = "roi_size") -> None:
    """Refuse sizes with which the network cannot be trained.

    Args:
        img_size: voxels `(X, Y, Z)`; with one token in the deepest map InstanceNorm has nothing to normalize over.
        feature_size: channels after the patch embedding; MONAI wants a multiple of 12.
        key: of the config that the voxels come from.

    Raises:
        ConfigValueError: if a size does not fit.
    """
    if any(size < STRIDE or size % STRIDE for size in img_size) or math.prod(img_size) == STRIDE**3:
        found, wanted = "×".join(map(str, img_size)), f"multiples of {STRIDE}, not all of them {STRIDE}"
        fitting = [max(1, math.ceil(size / STRIDE)) * STRIDE for size in img_size]
        if math.prod(fitting) == STRIDE**3:
            fitting[-1] = 2 * STRIDE
        raise ConfigValueError(key, found, wanted, f"set --{key} [{','.join(map(str, fitting))}]")
    if feature_size < 12 or feature_size % 12:
        raise ConfigValueError("feature_size", str(feature_size), "a multiple of 12", "use 12, 24, 48 or 96")
