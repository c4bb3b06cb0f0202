# SPDX-License-Identifier: Apache-2.0
"""Weights of a timm model made ready for an encoder that is one: converted by timm, each tensor followed, inflated."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tools.errors import ConfigValueError
from tools.weights.inflation import Inflation, inflate_patch_embedding
from tools.weights.layouts import TIMM
from tools.weights.planar import BIAS, KERNEL, Part, can_inflate, check_colours

BEHIND = "a head, or behind the last map that the decoder reads"
# of DINOv3's own code; timm's models have them without gradient and compute them
PERIODS = re.compile(r"(rope|rope_embed)\.periods")
INDEX = re.compile(r"(.*\.)?relative_position_index")
UNKNOWN = "unknown."  # before the names of what timm has no place for


def takes_timm(network: nn.Module) -> bool:
    """Tell whether the encoder of a network is a model of timm, see `tools.networks.InflatedEncoder`."""
    return hasattr(getattr(network, "encoder", None), "resize_planar")


def inflate_encoder(
    parts: dict[str, Part], network: nn.Module, inflation: Inflation
) -> tuple[dict[str, Part], dict[str, str]]:
    """Inflate the weights of a timm model to those of the encoder of `network`, an `InflatedSegmenter`.

    Names are changed and tables resized as timm does it for pre-trained weights. That leaves things out silently, so
    each tensor is followed: what is in no result must have a reason.

    Returns:
        The parts by their names in the encoder, those without a place under names that it has not; and the reasons of
        what is left out.

    Raises:
        CheckpointError: if timm cannot convert the weights.
        ConfigValueError: if the network has no such encoder, or computes something else with the weights.
    """
    if not takes_timm(network):
        raise ConfigValueError(
            "network", type(network).__name__, "an InflatedSegmenter, for weights of timm", "use another layout"
        )
    encoder: Any = network.get_submodule("encoder")
    if KERNEL in parts and (parts[KERNEL].tensor.ndim != 4 or len(set(parts[KERNEL].tensor.shape[2:])) > 1):
        shape = " × ".join(map(str, parts[KERNEL].tensor.shape))
        raise ConfigValueError(KERNEL, f"a kernel of {shape}", "square patches of an image", "give another file")
    parts = _fold_bias_masks(parts)
    _check_constants({name: part.tensor for name, part in parts.items()}, encoder.model)
    # a view each: tensors that share their memory are told apart
    state = {name: part.tensor.view_as(part.tensor) for name, part in parts.items() if name not in encoder.unused}
    converted: dict[str, Tensor] = encoder.resize_planar(state, keep_unused=True)
    origins = _follow(state, converted, encoder)
    inflated = {}
    for name, tensor in converted.items():
        if encoder.uses(name):
            first, *others = [parts[origin] for origin in origins[name]] or [Part(tensor, ())]
            same = tensor.shape == first.tensor.shape and bool(torch.equal(tensor, first.tensor))
            inflated[name] = first if same else first.change(tensor, "converted as timm does", *others)
    dropped = {name: BEHIND for name in parts if name in encoder.unused}
    arrived = {origin: name for name, found in origins.items() for origin in found}
    for name, part in parts.items():
        if name in dropped or (name in arrived and encoder.uses(arrived[name])):
            continue
        reason = BEHIND if name in arrived else _find_reason(name, part)
        if reason is None:
            inflated[UNKNOWN + name] = part
        else:
            dropped |= dict.fromkeys(part.sources, reason)
    return _inflate_kernel(inflated, encoder, inflation), dropped


def _find_reason(name: str, part: Part) -> str | None:
    """Return why a tensor that timm does without may be left out."""
    if name.endswith("bias") and not part.tensor.any():
        return "zeros, and the model has no such bias"
    return TIMM.find_drop(name)


def _follow(state: Mapping[str, Tensor], converted: Mapping[str, Tensor], encoder: Any) -> dict[str, list[str]]:
    """Return for each result the names that it is made of: the same tensor, or of the same name, or found by trial."""
    by_identity = {id(tensor): name for name, tensor in state.items()}
    origins = {name: [by_identity[id(tensor)]] for name, tensor in converted.items() if id(tensor) in by_identity}
    followed = {name for found in origins.values() for name in found}
    for name in converted:
        if name not in origins and name in state and name not in followed:
            origins[name] = [name]
            followed.add(name)
    open_results = [name for name in converted if name not in origins]
    origins |= {name: [] for name in open_results}
    for name in (name for name in state if name not in followed):
        if not open_results or TIMM.find_drop(name) is not None:
            continue
        changed = encoder.resize_planar({**state, name: state[name] + 1}, keep_unused=True)
        for result in open_results:
            if result not in changed or not torch.equal(changed[result], converted[result]):
                origins[result].append(name)
    return origins


def _fold_bias_masks(parts: dict[str, Part]) -> dict[str, Part]:
    """Multiply DINOv3's `bias_mask` into its bias, which its authors' code does in each pass."""
    folded = dict(parts)
    for name, mask in parts.items():
        bias = parts.get(name.removesuffix("_mask"))
        if name.endswith(".bias_mask") and bias is not None and bias.tensor.shape == mask.tensor.shape:
            folded[name.removesuffix("_mask")] = bias.change(bias.tensor * mask.tensor, "mask folded in", mask)
            del folded[name]
    return folded


def _check_constants(tensors: Mapping[str, Tensor], model: Any) -> None:
    """Refuse tables of positions that timm computes by itself, and other than the file has them.

    Raises:
        ConfigValueError: if there is one.
    """
    periods = getattr(getattr(model, "rope", None), "periods", None)
    for name, tensor in tensors.items():
        fits = True
        if INDEX.fullmatch(name):
            fits = _is_standard_index(tensor)
        elif PERIODS.fullmatch(name) and periods is not None:
            # the authors keep them in bfloat16, with 8 bits
            fits = tensor.shape == periods.shape and torch.allclose(tensor, periods.cpu(), rtol=2**-7)
        elif name.endswith("attn.qkv.bias") and "storage_tokens" in tensors:
            fits = not tensor.chunk(3)[1].any()  # of the keys
        if not fits:
            raise ConfigValueError(
                name,
                "other values than the model's own",
                f"the constants of {type(model).__name__} in timm",
                "give weights that were trained with them",
            )


def _is_standard_index(index: Tensor) -> bool:
    from timm.layers.pos_embed_rel import gen_relative_position_index  # takes 2 s, and most networks do without

    side = math.isqrt(len(index)) if index.ndim == 2 else 0
    if side < 1 or tuple(index.shape) not in ((side**2,) * 2, (side**2 + 1,) * 2):
        return False
    wanted = gen_relative_position_index((side, side), class_token=len(index) > side**2)
    return bool(torch.equal(index, wanted.to(index.dtype)))


def _inflate_kernel(parts: dict[str, Part], encoder: Any, inflation: Inflation) -> dict[str, Part]:
    config = encoder.model.pretrained_cfg
    normalization = (config["mean"], config["std"]) if inflation.normalization == "auto" else inflation.normalization
    kernel, bias = parts.get(KERNEL), parts.get(BIAS)
    if encoder.model.patch_embed.proj.bias is None and kernel is not None:
        if inflation.normalization != "none":
            raise ConfigValueError(
                f"patch embedding of {encoder.name}",
                "no bias, into which the mean intensity could be folded",
                "volumes scaled as the 2D network expects",
                "set normalization of the inflation to none",
            )
        bias = Part(kernel.tensor.new_zeros(len(kernel.tensor)), ())
    if kernel is None or bias is None or not can_inflate(kernel.tensor, bias.tensor):
        return parts  # told as missing, or of another shape
    check_colours(kernel.tensor, normalization)
    inflated = dict(parts)
    patch_size = (*kernel.tensor.shape[2:], encoder.num_slices)
    channels = encoder.model.patch_embed.proj.in_channels // encoder.num_slices
    weight3d, bias3d = inflate_patch_embedding(
        kernel.tensor, bias.tensor, patch_size, channels, inflation.method, normalization
    )
    name = "its own" if inflation.normalization == "auto" else inflation.normalization
    folded = "" if normalization == "none" else f", {name} normalization folded in"
    # a kernel over all slices of a window is a 2D kernel whose channels are those of the first slice, the second, ...
    stacked = weight3d.movedim(-1, 2).flatten(1, 2)
    inflated[KERNEL] = kernel.change(stacked, f"inflated ({inflation.method}) to {encoder.num_slices} slices{folded}")
    if folded:
        inflated[BIAS] = bias.change(bias3d, folded.removeprefix(", "))
    return inflated
