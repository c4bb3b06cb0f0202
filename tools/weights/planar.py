# SPDX-License-Identifier: Apache-2.0
"""2D checkpoints made ready for a 3D network: LayerScale folded, biases joined, embedding and positions inflated."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tools.errors import ConfigValueError
from tools.weights.adaptation import get_sizes, order_as_perceptron
from tools.weights.inflation import Inflation, inflate_patch_embedding, inflate_position_table

KERNEL, BIAS, POSITIONS = "patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed"
FIRST_LAYER = "encoder1.layer.conv1.conv.weight"  # of UNETR; its second dimension are the image's channels


@dataclass(frozen=True)
class Part:
    """A tensor on its way into the network, the keys of the file it is made of, and what was done to it."""

    tensor: Tensor
    sources: tuple[str, ...]
    note: str = ""
    other_projection: bool = False  # the network's patch projection is of MONAI's other kind

    def change(self, tensor: Tensor, note: str, *others: Part) -> Part:
        """Return the part with another tensor, made of this one and `others`."""
        sources = (*self.sources, *(source for other in others for source in other.sources))
        return replace(self, tensor=tensor, sources=sources, note=f"{self.note}, {note}" if self.note else note)


def fold_layer_scale(parts: dict[str, Part]) -> dict[str, Part]:
    """Multiply LayerScale (`ls1.gamma` or `gamma_1`, likewise 2) into the linear layer before it: the same function.

    Source: Touvron et al., "Going deeper with Image Transformers", ICCV 2021, for LayerScale.
    """
    folded = dict(parts)
    for name, gamma in parts.items():
        if not (match := re.fullmatch(r"(blocks\.\d+)\.(?:ls([12])\.gamma|gamma_([12]))", name)):
            continue
        block, number = match[1], match[2] or match[3]
        linear = f"{block}.attn.proj" if number == "1" else f"{block}.mlp.fc2"
        if f"{linear}.weight" not in folded:
            continue  # told as missing afterwards
        scale = gamma.tensor
        weight = folded[f"{linear}.weight"]
        folded[f"{linear}.weight"] = weight.change(weight.tensor * scale[:, None], "LayerScale folded in", gamma)
        if bias := folded.get(f"{linear}.bias"):
            folded[f"{linear}.bias"] = bias.change(bias.tensor * scale, "LayerScale folded in", gamma)
        del folded[name]
    return folded


def join_biases(parts: dict[str, Part]) -> dict[str, Part]:
    """Join BEiT's `q_bias` and `v_bias` to a `qkv.bias`, with zeros for the keys, which have none in BEiT."""
    joined = dict(parts)
    for name in parts:
        if not (match := re.fullmatch(r"(blocks\.\d+\.attn)\.q_bias", name)):
            continue
        query, value = joined.pop(name), joined.pop(f"{match[1]}.v_bias", None)
        if value is not None:
            bias = torch.cat([query.tensor, torch.zeros_like(query.tensor), value.tensor])
            joined[f"{match[1]}.qkv.bias"] = query.change(bias, "query and value biases joined", value)
    return joined


def inflate(parts: dict[str, Part], network: nn.Module, inflation: Inflation, normalization: str) -> dict[str, Part]:
    """Inflate patch embedding and position table to those of `network`, a UNETR.

    Raises:
        ConfigValueError: if the network has no 3D patches, or the table is of no square image.
    """
    patch_size, grid = get_sizes(network, "patch_size"), get_sizes(network, "feat_size")
    if patch_size is None or grid is None or FIRST_LAYER not in network.state_dict():
        raise ConfigValueError(
            "network", type(network).__name__, "a UNETR, for 2D weights", "give weights of this kind of network"
        )
    inflated = dict(parts)
    kernel, bias = parts.get(KERNEL), parts.get(BIAS)
    if kernel is not None and bias is not None:
        wanted = network.state_dict()
        linear = any(name.endswith("patch_embeddings.1.weight") for name in wanted)
        channels = wanted[FIRST_LAYER].shape[1]
        weight3d, bias3d = inflate_patch_embedding(
            kernel.tensor, bias.tensor, patch_size, channels, inflation.method, normalization
        )
        shapes = " -> ".join(" × ".join(map(str, shape)) for shape in (kernel.tensor.shape[2:], patch_size))
        folding = "" if normalization == "none" else f", {normalization} normalization folded in"
        inflated[KERNEL] = kernel.change(
            order_as_perceptron(weight3d) if linear else weight3d, f"inflated ({inflation.method}) {shapes}{folding}"
        )
        if folding:
            inflated[BIAS] = bias.change(bias3d, f"{normalization} normalization folded in")
    if table := parts.get(POSITIONS):
        note = f"{table.tensor.shape[1]} rows -> grid {' × '.join(map(str, grid))}"
        inflated[POSITIONS] = table.change(inflate_position_table(table.tensor, grid), note)
    return inflated


def takes_timm(network: nn.Module) -> bool:
    """Tell whether the encoder of a network is a model of timm, see `tools.networks.InflatedEncoder`."""
    return hasattr(getattr(network, "encoder", None), "resize_planar")


def inflate_encoder(parts: dict[str, Part], network: nn.Module, inflation: Inflation) -> dict[str, Part]:
    """Inflate the weights of a timm model to those of the encoder of `network`, an `InflatedSegmenter`.

    Tables are resized as timm does it for pre-trained weights; what the encoder has no use for is left out.

    Raises:
        ConfigValueError: if the network has no such encoder.
    """
    if not takes_timm(network):
        raise ConfigValueError(
            "network", type(network).__name__, "an InflatedSegmenter, for weights of timm", "use another layout"
        )
    encoder: Any = network.get_submodule("encoder")
    resized: dict[str, Tensor] = encoder.resize_planar({name: part.tensor for name, part in parts.items()})
    inflated = {}
    for name, tensor in resized.items():
        part = parts.get(name, Part(tensor, ()))
        same = tensor.shape == part.tensor.shape and bool(torch.equal(tensor, part.tensor))
        inflated[name] = part if same else part.change(tensor, "resized to this image size")
    kernel, bias = inflated[KERNEL], inflated[BIAS]
    config = encoder.model.pretrained_cfg
    normalization = (config["mean"], config["std"]) if inflation.normalization == "auto" else inflation.normalization
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
