# SPDX-License-Identifier: Apache-2.0
"""2D transformers of timm, inflated to read windows of neighbouring slices and segment the centre slice.

Source: Zhang et al., "Adapting Pre-trained Vision Transformers from 2D to 3D through Weight Inflation", ML4H 2022
    (TransSeg). That images may be of any height and width, and the choice of transformers and decoders, are ours.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from monai.utils import ensure_tuple, ensure_tuple_rep
from torch import Tensor, nn

from tools.errors import CheckpointError, ConfigValueError
from tools.networks.decoders import DECODERS, Plan, is_pyramid
from tools.networks.layers import resize
from tools.networks.tracing import TracedNetwork

KERNEL = "patch_embed.proj.weight"  # of every transformer that can be inflated


class Stage(NamedTuple):
    """A block of a plain transformer or a stage of a hierarchical one, whose output is a feature map."""

    channels: int
    stride: int  # pixels of the image per position of the map


class InflatedEncoder(nn.Module):
    """A 2D transformer of timm that reads windows `(B, C, H, W, D)` of D slices and returns feature maps.

    A 3D patch embedding of kernel `(E, C, p, p, D)` makes one layer of tokens of D slices, so everything after it is
    the 2D transformer; it is the 2D convolution over `flatten_slices` of window and kernel.

    Works with ViT, DeiT, DeiT III, BEiT, BEiT v2, BEiT-3, EVA-02, DINOv2, DINOv3, Swin, Swin v2 and Swin v2 CR; others
    are taken if they are built alike. Weights are random: see `resize_planar`.

    Args:
        name: a model name of timm, with or without the tag of its weights, such as `vit_small_patch14_dinov2`.
        in_channels: channels of the volume.
        num_slices: slices D of a window, odd.
        img_size: height and width of the slices in pixels, or one number for both; they may have any size, as the
            slices are padded (with their last row and column) to multiples of the largest stride.
        depths: blocks (plain) or stages (hierarchical) to take feature maps of, counted from 0, growing; all stages or
            the last block by default. What comes after the last of them is not built. The map of the very last block
            passes the final normalization of the transformer, if it has one.
        drop_path_rate: share of residual branches dropped in training in the last block, less in those before.
        use_checkpoint: compute the blocks again for the gradients, rather than keep what they computed.
        options: more arguments for the timm model, such as `{depth: 6}`.

    Attributes:
        model: the timm model, without head.
        channels: channels of each feature map.
        strides: pixels per position of each feature map.
        padded_size: height and width that the timm model reads.

    Raises:
        ConfigValueError: if the model is unknown or cannot be inflated, or a value does not fit; at run time if the
            windows have another shape.
    """

    model: Any  # models of timm have methods in common, but no class

    def __init__(
        self,
        name: str,
        in_channels: int = 1,
        num_slices: int = 5,
        img_size: Sequence[int] | int = (224, 224),
        depths: Sequence[int] | None = None,
        drop_path_rate: float = 0.0,
        use_checkpoint: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if in_channels < 1:
            raise ConfigValueError("in_channels", str(in_channels), "at least 1", "correct it")
        if num_slices < 1 or num_slices % 2 == 0:
            raise ConfigValueError("num_slices", str(num_slices), "an odd number", "correct it, 1 reads single slices")
        if not 0 <= drop_path_rate < 1:
            raise ConfigValueError("drop_path_rate", str(drop_path_rate), "0 or more, less than 1", "correct it")
        stages = list_stages(name, options)
        if depths is None:
            depths = range(len(stages)) if is_pyramid([stage.stride for stage in stages]) else [len(stages) - 1]
        self.depths = list(depths)
        if not self.depths or sorted(set(self.depths) & set(range(len(stages)))) != self.depths:
            wanted = f"growing numbers from 0 to {len(stages) - 1}"
            raise ConfigValueError("depths", str(self.depths), wanted, "correct them, or leave them out")
        self.channels = [stages[depth].channels for depth in self.depths]
        self.strides = [stages[depth].stride for depth in self.depths]
        self.name, self.in_channels, self.num_slices = name, in_channels, num_slices
        self.img_size = _read_img_size(img_size)
        self.padded_size = [math.ceil(size / max(self.strides)) * max(self.strides) for size in self.img_size]

        self.model = _create_model(
            name,
            options,
            img_size=tuple(self.padded_size),
            in_chans=in_channels * num_slices,
            drop_path_rate=drop_path_rate,
        )
        self._normalizes = self.depths[-1] == len(stages) - 1 and hasattr(self.model, "norm")
        parts = set(self.model.state_dict())
        # parameters that no gradient reaches would stop training on several GPUs
        self.model.prune_intermediate_layers(self.depths, prune_norm=not self._normalizes, prune_head=True)
        self._pruned = frozenset(parts - set(self.model.state_dict()))
        self.model.set_grad_checkpointing(use_checkpoint)

    def forward(self, windows: Tensor) -> list[Tensor]:
        """Return the feature maps `(B, Ci, hi, wi)` of windows `(B, C, H, W, D)`."""
        return self.encode(self.prepare(windows))

    def prepare(self, windows: Tensor) -> Tensor:
        """Turn windows `(B, C, H, W, D)` into what the timm model reads, `(B, C * D, *padded_size)`."""
        wanted = (self.in_channels, *self.img_size, self.num_slices)
        if tuple(windows.shape[1:]) != wanted:
            raise ConfigValueError(
                "windows",
                f"channels, height, width and slices {tuple(windows.shape[1:])}",
                str(wanted),
                "give in_channels, img_size and num_slices of the network and the size of the windows the same values",
            )
        height, width = (padded - size for padded, size in zip(self.padded_size, self.img_size, strict=True))
        slices = flatten_slices(windows)
        # replicated, as zero is air in one modality and the mean in another
        return F.pad(slices, (0, width, 0, height), mode="replicate") if height or width else slices

    def encode(self, slices: Tensor) -> list[Tensor]:
        """Return the feature maps of what `prepare` returned."""
        maps = self.model.forward_intermediates(
            slices, indices=self.depths, norm=False, output_fmt="NCHW", intermediates_only=True
        )
        if self._normalizes:  # timm would normalize all maps of a plain transformer
            maps[-1] = self.model.norm(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return maps

    @property
    def unused(self) -> frozenset[str]:
        """Names of what the timm model has and this encoder has not: its head, and all behind the last of `depths`."""
        return self._pruned

    def uses(self, name: str) -> bool:
        """Tell whether a tensor in timm's names is neither of `unused` nor of a classifier."""
        heads = tuple(f"{head}." for head in ensure_tuple(self.model.pretrained_cfg.get("classifier") or ()))
        return name not in self._pruned and not name.startswith(heads)

    def resize_planar(self, state_dict: Mapping[str, Tensor], keep_unused: bool = False) -> dict[str, Tensor]:
        """Fit a 2D checkpoint to this image size, as timm does when it loads pretrained weights.

        Tables of positions, absolute and relative, are resampled by the rules of the transformer's family. The patch
        embedding keeps its colour channels: inflating it is another step.

        Args:
            state_dict: a checkpoint of the same timm model, made for square images of any size, with timm's names.
            keep_unused: whether heads are returned too, under timm's names, and what timm does not know.

        Raises:
            CheckpointError: if it is of another model, or has positions that timm cannot resample.
        """
        # timm would look for the layers that the tables of positions in `unused` belong to
        planar = {name: tensor for name, tensor in state_dict.items() if name not in self._pruned}
        subject, remedy = f"2D weights for {self.name}", "give a checkpoint of this timm model, for square images"
        # each family has its own function of this name, beside the class of the model; timm gives no other access
        adapt = getattr(sys.modules[type(self.model).__module__], "checkpoint_filter_fn", None)
        if adapt is not None:
            try:
                planar = adapt(planar, self.model)
            except Exception as error:  # foreign code on a foreign file raises a dozen classes
                found = str(error).partition("\n")[0] or type(error).__name__
                raise CheckpointError(subject, found, "tensors that timm can resample", remedy) from error
        for name, tensor in self.model.state_dict().items():
            if name in planar and name != KERNEL and planar[name].shape != tensor.shape:
                found, wanted = (" × ".join(map(str, shape)) for shape in (planar[name].shape, tensor.shape))
                raise CheckpointError(subject, f"{name} of {found}", wanted, remedy)
        return {name: tensor for name, tensor in planar.items() if keep_unused or self.uses(name)}


class InflatedSegmenter(nn.Module):
    """A 2D transformer and a 2D decoder that segment the centre slice of windows of neighbouring slices.

    Windows `(B, C, H, W, D)` become logits `(B, K, H, W)` of slice `D // 2`.

    Args:
        encoder: a model name of timm, see `InflatedEncoder`.
        decoder: `unetr`, `upernet`, `setr_pup` or `transposed`; each works with plain and hierarchical transformers.
        in_channels: channels of the volume.
        out_channels: classes K, background included.
        img_size: height and width of the slices in pixels, or one number for both.
        num_slices: slices D of a window, odd; 1 is the 2D baseline.
        decoder_channels: width of the decoder; 256 by default, or for `unetr` 16 at full resolution.
        norm: normalization in the decoder: `group`, `batch` or `instance`.
        drop_path_rate: share of residual branches dropped in training in the last block, less in those before.
        dropout_rate: share of channels dropped in training in front of the last layer; 0.1 in TransSeg's UPerNet.
        depths: blocks or stages that the decoder reads, counted from 0; those of the decoder's paper by default.
        use_checkpoint: compute the blocks again for the gradients, to need less memory.
        encoder_options: more arguments for the timm model.

    Raises:
        ConfigValueError: if a name is unknown or a value does not fit; at run time if windows have another shape.
    """

    def __init__(
        self,
        encoder: str = "vit_small_patch14_dinov2",
        decoder: str = "unetr",
        in_channels: int = 1,
        out_channels: int = 2,
        img_size: Sequence[int] | int = (224, 224),
        num_slices: int = 5,
        decoder_channels: int | None = None,
        norm: str = "group",
        drop_path_rate: float = 0.0,
        dropout_rate: float = 0.0,
        depths: Sequence[int] | None = None,
        use_checkpoint: bool = False,
        encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if decoder not in DECODERS:
            raise ConfigValueError("decoder", repr(decoder), f"one of {', '.join(DECODERS)}", "correct it")
        kind = DECODERS[decoder]
        if depths is None:
            depths = kind.choose_depths([stage.stride for stage in list_stages(encoder, encoder_options)])
        self.encoder = InflatedEncoder(
            encoder, in_channels, num_slices, img_size, depths, drop_path_rate, use_checkpoint, encoder_options
        )
        plan = Plan(
            channels=self.encoder.channels,
            strides=self.encoder.strides,
            in_channels=in_channels * num_slices,
            out_channels=out_channels,
            width=kind.default_width if decoder_channels is None else decoder_channels,
            norm=norm,
            dropout_rate=dropout_rate,
        )
        self.decoder = kind(plan)

    def forward(self, windows: Tensor) -> Tensor:
        """Map windows `(B, C, H, W, D)` to logits `(B, K, H, W)` of their centre slices."""
        slices = self.encoder.prepare(windows)
        logits = self.decoder(self.encoder.encode(slices), slices)
        height, width = self.encoder.img_size
        return resize(logits, self.encoder.padded_size)[..., :height, :width]

    def __prepare_scriptable__(self) -> TracedNetwork:
        """Stand in for this network in `torch.jit.script`, which cannot compile timm's `forward_intermediates`."""
        encoder = self.encoder
        return TracedNetwork(self, (encoder.in_channels, *encoder.img_size, encoder.num_slices))


def flatten_slices(windows: Tensor) -> Tensor:
    """Turn `(B, C, H, W, D)` into `(B, C * D, H, W)`, the D slices of a channel next to each other.

    A 3D kernel `(E, C, p, p, D)` becomes the 2D kernel that does the same to windows flattened like this.
    """
    return windows.permute(0, 1, 4, 2, 3).flatten(1, 2)


def list_stages(name: str, options: Mapping[str, Any] | None = None) -> list[Stage]:
    """Describe the blocks or stages of a transformer of timm, without giving it memory.

    Raises:
        ConfigValueError: if timm has no such model, or it is none that can be inflated.
    """
    import timm  # takes 2 s, and the other networks do without

    if not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        remedy = f"try {', '.join(nearest)}" if nearest else "look it up in timm.list_models()"
        raise ConfigValueError("encoder", repr(name), f"a model of timm {timm.__version__}", remedy)
    with torch.device("meta"):
        model = _create_model(name, options, in_chans=3)
    projection = getattr(getattr(model, "patch_embed", None), "proj", None)
    reads_image = isinstance(projection, nn.Conv2d) and projection.in_channels == 3  # not so behind a stem
    if not reads_image or not hasattr(model, "prune_intermediate_layers"):
        raise ConfigValueError(
            "encoder",
            f"{name}, whose first layer is no patch embedding by one convolution",
            "a transformer such as vit_small_patch14_dinov2, beit_base_patch16_224 or swin_tiny_patch4_window7_224",
            "choose one of these families",
        )
    return [Stage(int(stage["num_chs"]), int(stage["reduction"])) for stage in model.feature_info]


def _create_model(name: str, options: Mapping[str, Any] | None, **arguments: Any) -> Any:
    """Create a model of timm without head and weights; its refusal becomes a `ConfigValueError`."""
    import timm

    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **arguments, **(options or {}))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigValueError(
            f"encoder {name}",
            f"that timm refuses to build it ({error})",
            "arguments that it takes",
            "choose another encoder or correct its options",
        ) from error


def _read_img_size(img_size: Sequence[int] | int) -> list[int]:
    """Return height and width in pixels."""
    try:
        sizes = [int(size) for size in ensure_tuple_rep(img_size, 2)]
    except ValueError as error:
        raise ConfigValueError("img_size", str(img_size), "one number or two", "give height and width") from error
    if min(sizes) < 1:
        raise ConfigValueError("img_size", str(sizes), "positive numbers", "give height and width in pixels")
    return sizes
