# SPDX-License-Identifier: Apache-2.0
"""From 2D to 3D: the patch embedding and the position table of a 2D transformer, made to read volumes.

Everything here keeps the function of the 2D network at the start: on the centre slice (`center`) or on the mean of
the slices (`average`) of a patch, the inflated embedding gives the tokens that the 2D network gives.

Source: Zhang et al., "Adapting Pre-trained Vision Transformers from 2D to 3D through Weight Inflation", ML4H 2022,
    for the two ways to inflate. That the intensity normalization is folded in is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tools.errors import ConfigValueError
from tools.weights.adaptation import resize_table, spread_channels

# mean and standard deviation of red, green and blue in [0, 1] that 2D networks were trained with
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # DINO, DINOv2, DeiT, MAE, Swin
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # BEiT, and the ViT of "How to train your ViT"
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # volumes with mean 0 and deviation 1 need no folding
}
METHODS = ("average", "center")


@dataclass(frozen=True)
class Inflation:
    """How a 2D patch embedding becomes a 3D one.

    Args:
        method: `average`: each slice of a patch counts the same; `center`: only slice `depth // 2` counts at first.
        normalization: what the 2D network expects, a key of `NORMALIZATIONS`, for volumes scaled to [0, 1];
            `none` for volumes of mean 0 and deviation 1; `auto`: that of the checkpoint's family.

    Raises:
        ConfigValueError: if one of the two is unknown.
    """

    method: Literal["average", "center"] = "average"
    normalization: str = "auto"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("inflation method", self.method, METHODS),
            ("inflation normalization", self.normalization, ("auto", *NORMALIZATIONS)),
        ):
            if value not in known:
                raise ConfigValueError(name, repr(value), f"one of {', '.join(known)}", "correct it")


def inflate_patch_embedding(
    weight: Tensor,
    bias: Tensor,
    patch_size: Sequence[int],
    in_channels: int = 1,
    method: str = "average",
    normalization: str | tuple[Sequence[float], Sequence[float]] = "imagenet",
) -> tuple[Tensor, Tensor]:
    """Turn a 2D patch embedding into a 3D one.

    Args:
        weight: kernel of the 2D network, `(E, 3, h, w)`.
        bias: its bias, `(E,)`.
        patch_size: `(h, w, d)` in voxels; where h and w differ from the kernel's, it is resampled (FlexiViT).
        in_channels: channels of the volume. Its mean channel takes the place of a grey image.
        method: see `Inflation`.
        normalization: a key of `NORMALIZATIONS`, or mean and deviation; it is folded into kernel and bias.

    Returns:
        Kernel `(E, in_channels, h, w, d)` and bias `(E,)`.
    """
    height, width, depth = patch_size
    weight = resample_kernel(weight, (height, width))
    mean, std = NORMALIZATIONS[normalization] if isinstance(normalization, str) else normalization
    weight, bias = fold_normalization(weight, bias, mean, std)
    return inflate_kernel(spread_channels(weight, in_channels), depth, method), bias


def resample_kernel(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample a kernel `(E, C, h, w)` such that it gives the same tokens on patches resampled to `size`.

    Source: Beyer et al., "FlexiViT: One Model for All Patch Sizes", CVPR 2023, section 3.4 (pseudo-inverse).
    """
    if tuple(weight.shape[2:]) == size:
        return weight
    from timm.layers import resample_patch_embed  # takes 2 s to import, and few need it

    return resample_patch_embed(weight, list(size), verbose=False)


def fold_normalization(
    weight: Tensor, bias: Tensor, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return kernel `(E, C, h, w)` and bias that do to `x` what the given ones do to `(x - mean) / std`."""
    shape = (1, -1, 1, 1)
    weight = weight / weight.new_tensor(std).view(shape)
    shift = (weight * weight.new_tensor(mean).view(shape)).sum(dim=(1, 2, 3))
    return weight, bias - shift


def inflate_kernel(weight: Tensor, depth: int, method: str = "average") -> Tensor:
    """Turn a kernel `(E, C, h, w)` into `(E, C, h, w, depth)`, see `Inflation` for the methods."""
    planes = weight.new_full((depth,), 1 / depth) if method == "average" else weight.new_zeros(depth)
    if method == "center":
        planes[depth // 2] = 1
    return weight.unsqueeze(-1) * planes


def inflate_position_table(table: Tensor, grid: Sequence[int]) -> Tensor:
    """Turn a 2D position table `(1, [prefix +] n * n, E)` into a 3D one `(1, X * Y * Z, E)`.

    Rows of class and register tokens go. The in-plane grid is resampled (bicubic, without antialiasing as DINOv2's)
    and repeated along the depth; token order is that of MONAI's ViT, depth fastest.

    Args:
        table: of a square image, rows of prefix tokens first.
        grid: patches of the volume along X, Y, Z.

    Raises:
        ConfigValueError: if the rows form no square.
    """
    rows = table.shape[1]
    side = int(rows**0.5)  # prefix tokens are few: they never fill up to the next square
    if side < 2 or rows - side * side > 16:
        raise ConfigValueError("position table", f"{rows} rows", "a square image", "give weights of square images")
    plane = resize_table(table[:, rows - side * side :], (side, side), tuple(grid[:2]))
    return plane.unsqueeze(2).expand(-1, -1, grid[2], -1).flatten(1, 2).contiguous()
