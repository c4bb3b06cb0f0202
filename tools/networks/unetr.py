# SPDX-License-Identifier: Apache-2.0
"""UNETR with the four changes of the student project as switches, so that ablations share one network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import UnetrUpBlock
from monai.networks.nets import UNETR
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn

from tools.errors import ConfigValueError

PATCH_SIZE = 16  # voxels along each edge; MONAI's UNETR knows no other, its four up-samplings undo exactly 2^4


class ModifiedUNETR(UNETR):
    """MONAI's UNETR `(B, in, X, Y, Z) -> (B, out, X, Y, Z)` with switches for the student's four changes.

    With all switches off it is MONAI's UNETR: same state-dict keys, same parameters, same output.

    Args:
        in_channels: channels of the image.
        out_channels: classes, background included.
        img_size: voxels of the image along X, Y, Z, or one number for all three; the position code fixes it.
        feature_size: channels `f` of the finest decoder map; the coarser ones have 2f, 4f and 8f.
        hidden_size: length of a token, before `light` scales it.
        mlp_dim: width of the MLP in a transformer block, before `light` scales it.
        num_heads: attention heads, before `light` scales them.
        proj_type: "conv" or "perceptron", the layer that turns a patch into a token.
        norm_name: normalization in the convolutional blocks.
        conv_block: whether up-samplings of the skips are followed by convolutions.
        res_block: whether convolutional blocks are residual.
        dropout_rate: share of token features dropped in training, from 0 to 1.
        spatial_dims: 3; there to take the arguments of MONAI's UNETR.
        qkv_bias: whether query, key and value have a bias.
        save_attn: whether the attention blocks keep their attention matrices.
        stem: put a small CNN in front of the ViT; encoder1 still reads the raw image.
        stem_residual: add the image to the output of the stem. One channel after an instance norm can lose the
            contrast of the image, which the sum keeps.
        light: scale the ViT by 2/3: layers 12 -> 8, hidden 768 -> 512, heads 12 -> 8, MLP 3072 -> 2048.
        align: resample each skip to the decoder map it joins, so that `img_size` may be any size: the ViT reads the
            image on the next larger multiple of 16, the logits come back on the grid of the image. All sizes agree
            anyway if `img_size` is a multiple of 16; `align` then changes nothing.
        fpn: fuse all scales before the last decoder: 1x1x1 convolution and ReLU on the finest decoder map so far and
            the three token skips, up-sampled to it.
        fpn_channels: channels after the fusion, 2f by default; the student's code has 32, at f = 32. Only for `fpn`.

    Raises:
        ConfigValueError: if the sizes do not fit together; at run time if the image is not of size `img_size`.
        ValueError: from MONAI, for an unknown `proj_type` or a `dropout_rate` outside 0 to 1.

    Source: Hatamizadeh et al., "UNETR: Transformers for 3D Medical Image Segmentation", WACV 2022, for the network;
        github.com/Weng1002/DeepLearning-UNETR for the changes. `stem` and `fpn` are in its code; `light` and `align`
        only in its drawing, whose heads (12 do not divide 512) and taps (block 9 of 8) cannot be built as drawn.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        img_size: Sequence[int] | int,
        feature_size: int = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_heads: int = 12,
        proj_type: str = "conv",
        norm_name: tuple | str = "instance",
        conv_block: bool = True,
        res_block: bool = True,
        dropout_rate: float = 0.0,
        spatial_dims: int = 3,
        qkv_bias: bool = False,
        save_attn: bool = False,
        *,
        stem: bool = False,
        stem_residual: bool = False,
        light: bool = False,
        align: bool = False,
        fpn: bool = False,
        fpn_channels: int | None = None,
    ) -> None:
        if spatial_dims != 3:
            raise ConfigValueError("spatial_dims", str(spatial_dims), "3", "leave it out")
        if stem_residual and not stem:
            raise ConfigValueError("stem_residual", "true without a stem", "stem: true", "switch the stem on too")
        if hidden_size % num_heads:
            raise ConfigValueError(
                "hidden_size", str(hidden_size), f"a multiple of num_heads, {num_heads}", "change one of the two"
            )
        if light:
            hidden_size = _take_two_thirds("hidden_size", hidden_size)
            num_heads = _take_two_thirds("num_heads", num_heads)
            mlp_dim = _take_two_thirds("mlp_dim", mlp_dim)
        voxels = _read_img_size(img_size, align)
        vit_size = [math.ceil(size / PATCH_SIZE) * PATCH_SIZE for size in voxels]
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            img_size=vit_size,
            feature_size=feature_size,
            hidden_size=hidden_size,
            mlp_dim=mlp_dim,
            num_heads=num_heads,
            proj_type=proj_type,
            norm_name=norm_name,
            conv_block=conv_block,
            res_block=res_block,
            dropout_rate=dropout_rate,
            spatial_dims=spatial_dims,
            qkv_bias=qkv_bias,
            save_attn=save_attn,
        )
        self.img_size = voxels
        self.vit_size = vit_size
        if light:
            # MONAI's UNETR always builds 12 blocks; the 4 dropped here are 12.6 million of the scaled-down parameters
            self.num_layers = _take_two_thirds("num_layers", len(self.vit.blocks))
            self.vit.blocks = self.vit.blocks[: self.num_layers]
        # block outputs 3, 6, 9 of 12 as in MONAI, 2, 4, 6 of 8
        self.taps = [quarter * self.num_layers // 4 for quarter in (1, 2, 3)]
        self.stem = ConvStem(in_channels, feature_size // 2, stem_residual) if stem else nn.Identity()
        self.fusion: nn.Module | None = None
        if fpn:
            fused_channels = 2 * feature_size if fpn_channels is None else fpn_channels
            if fused_channels < 1:
                raise ConfigValueError("fpn_channels", str(fused_channels), "at least 1", "leave it out for 2f")
            self.fusion = nn.Sequential(
                nn.Conv3d((2 + 2 + 4 + 8) * feature_size, fused_channels, kernel_size=1), nn.ReLU(inplace=True)
            )
            self.decoder2 = UnetrUpBlock(
                spatial_dims=spatial_dims,
                in_channels=fused_channels,
                out_channels=feature_size,
                kernel_size=3,
                upsample_kernel_size=2,
                norm_name=norm_name,
                res_block=res_block,
            )

    def forward(self, x_in: Tensor) -> Tensor:
        """Map an image `(B, in, X, Y, Z)` of `img_size` voxels to logits `(B, out, X, Y, Z)`."""
        size = list(x_in.shape[2:])
        if size != self.img_size:
            raise ConfigValueError(
                "image", f"size {size}", f"size {self.img_size}", "set roi_size and img_size to the same value"
            )
        tokens, states = self.vit(self.stem(_resample(x_in, self.vit_size)))
        enc1 = self.encoder1(x_in)
        enc2 = self.encoder2(self.proj_feat(states[self.taps[0]]))
        enc3 = self.encoder3(self.proj_feat(states[self.taps[1]]))
        enc4 = self.encoder4(self.proj_feat(states[self.taps[2]]))
        dec4 = self.proj_feat(tokens)
        dec3 = self.decoder5(dec4, _align(enc4, dec4))
        dec2 = self.decoder4(dec3, _align(enc3, dec3))
        dec1 = self.decoder3(dec2, _align(enc2, dec2))
        if self.fusion is not None:
            fine = list(dec1.shape[2:])
            scales = [dec1, _resample(enc2, fine), _resample(enc3, fine), _resample(enc4, fine)]
            dec1 = self.fusion(torch.cat(scales, dim=1))
        return _resample(self.out(self.decoder2(dec1, _align(enc1, dec1))), self.img_size)


class ConvStem(nn.Module):
    """3x3x3 convolution, instance norm, ReLU and 1x1x1 convolution, `(B, C, X, Y, Z)` to the same shape.

    Args:
        channels: channels of the image, and of the output.
        width: channels in between; 16 in the student's code.
        residual: whether the image is added to the output.

    Raises:
        ConfigValueError: if `width` is not positive.
    """

    def __init__(self, channels: int, width: int, residual: bool = False) -> None:
        super().__init__()
        if width < 1:
            raise ConfigValueError("feature_size", "less than 2", "at least 2 for the stem", "raise feature_size")
        self.residual = residual
        self.layers = nn.Sequential(
            nn.Conv3d(channels, width, kernel_size=3, padding=1),
            nn.InstanceNorm3d(width),
            nn.ReLU(inplace=True),
            nn.Conv3d(width, channels, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Filter `x` without changing its shape."""
        return x + self.layers(x) if self.residual else self.layers(x)


def _align(skip: Tensor, below: Tensor) -> Tensor:
    """Resample `skip` to the size of the map it joins: `below`, doubled by the decoder."""
    return _resample(skip, [2 * size for size in below.shape[2:]])


def _resample(x: Tensor, size: list[int]) -> Tensor:
    """Resample `x` trilinearly to `size`; return it as it is where it has that size."""
    if list(x.shape[2:]) == size:
        return x
    return F.interpolate(x, size, mode="trilinear", align_corners=False)


def _read_img_size(img_size: Sequence[int] | int, any_multiple: bool) -> list[int]:
    """Return the three edges of the image in voxels; unless `any_multiple`, they must be multiples of the patch."""
    try:
        sizes = [int(size) for size in ensure_tuple_rep(img_size, 3)]
    except ValueError as error:
        raise ConfigValueError("img_size", str(img_size), "one number or three", "give X, Y and Z in voxels") from error
    if min(sizes) < 1:
        raise ConfigValueError("img_size", str(sizes), "positive numbers", "give X, Y and Z in voxels")
    if not any_multiple and any(size % PATCH_SIZE for size in sizes):
        raise ConfigValueError("img_size", str(sizes), f"multiples of {PATCH_SIZE}", "round them, or switch align on")
    return sizes


def _take_two_thirds(name: str, value: int) -> int:
    """Return two thirds of `value`, by which `light` scales the ViT."""
    if value % 3:
        raise ConfigValueError(name, str(value), "a multiple of 3, as the light ViT has 2/3 of it", f"change {name}")
    return value * 2 // 3
