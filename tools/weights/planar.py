# SPDX-License-Identifier: Apache-2.0
"""2D checkpoints made ready for UNETR: LayerScale folded, biases joined, embedding and positions inflated.

What cannot be done with a part, because another one is missing or of another shape, leaves it as it is: it has no place
in the network then, and the match report says so.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tools.errors import ConfigValueError
from tools.weights.adaptation import get_sizes, order_as_perceptron
from tools.weights.inflation import NORMALIZATIONS, Inflation, inflate_patch_embedding, inflate_position_table

KERNEL, BIAS, POSITIONS = "patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed"
FIRST_LAYER = "encoder1.layer.conv1.conv.weight"  # of UNETR; its second dimension are the image's channels
# parts that a block of one network has and that of another has not
OPTIONAL = re.compile(r"blocks\.(?P<block>\d+)\.(?P<part>ls[12]\.gamma|gamma_[12]|attn\.(qkv\.bias|[qkv]_bias))")


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


def find_gaps(names: Collection[str]) -> list[str]:
    """Return the names that a 2D transformer lacks in some blocks and has in others: one of them was lost."""
    found = [match for name in names if (match := OPTIONAL.fullmatch(name))]
    blocks = {int(match[1]) for name in names if (match := re.match(r"blocks\.(\d+)\.", name))}
    parts = sorted({match["part"] for match in found})
    wanted = [f"blocks.{block}.{part}" for block in sorted(blocks) for part in parts]
    return [name for name in wanted if name not in names]


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
        weight, bias, scale = folded.get(f"{linear}.weight"), folded.get(f"{linear}.bias"), gamma.tensor
        twice = match[3] is not None and f"{block}.ls{number}.gamma" in parts
        if twice or weight is None or weight.tensor.ndim != 2 or scale.shape != weight.tensor.shape[:1]:
            continue
        if bias is not None and bias.tensor.shape != scale.shape:
            continue
        folded[f"{linear}.weight"] = weight.change(weight.tensor * scale[:, None], "LayerScale folded in", gamma)
        if bias is not None:
            folded[f"{linear}.bias"] = bias.change(bias.tensor * scale, "LayerScale folded in", gamma)
        del folded[name]
    return folded


def join_biases(parts: dict[str, Part]) -> dict[str, Part]:
    """Join BEiT's `q_bias` and `v_bias` to a `qkv.bias`, with zeros for the keys, which have none in BEiT."""
    joined = dict(parts)
    for name, query in parts.items():
        if not (match := re.fullmatch(r"(blocks\.\d+\.attn)\.q_bias", name)):
            continue
        value, bias_name = parts.get(f"{match[1]}.v_bias"), f"{match[1]}.qkv.bias"
        if value is None or value.tensor.shape != query.tensor.shape or query.tensor.ndim != 1 or bias_name in parts:
            continue
        bias = torch.cat([query.tensor, torch.zeros_like(query.tensor), value.tensor])
        joined[bias_name] = query.change(bias, "query and value biases joined", value)
        del joined[name], joined[f"{match[1]}.v_bias"]
    return joined


def inflate(parts: dict[str, Part], network: nn.Module, inflation: Inflation, normalization: str) -> dict[str, Part]:
    """Inflate patch embedding and position table to those of `network`, a UNETR.

    Raises:
        ConfigValueError: if the network has no 3D patches, the table is of no square image, or the colours do not fit.
    """
    patch_size, grid = get_sizes(network, "patch_size"), get_sizes(network, "feat_size")
    wanted = network.state_dict()
    if patch_size is None or grid is None or len(patch_size) != 3 or FIRST_LAYER not in wanted:
        raise ConfigValueError(
            "network", type(network).__name__, "a UNETR, for 2D weights", "give weights of this kind of network"
        )
    inflated = dict(parts)
    kernel, bias = parts.get(KERNEL), parts.get(BIAS)
    if kernel is not None and bias is not None and can_inflate(kernel.tensor, bias.tensor):
        check_colours(kernel.tensor, normalization)
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
    table = parts.get(POSITIONS)
    if table is not None and table.tensor.ndim == 3 and table.tensor.shape[0] == 1:
        note = f"{table.tensor.shape[1]} rows -> grid {' × '.join(map(str, grid))}"
        inflated[POSITIONS] = table.change(inflate_position_table(table.tensor, grid), note)
    return inflated


def can_inflate(kernel: Tensor, bias: Tensor) -> bool:
    """Tell whether kernel `(E, C, h, w)` and bias `(E,)` are those of a patch embedding."""
    return kernel.ndim == 4 and bias.shape == kernel.shape[:1] and all(kernel.shape)


def check_colours(kernel: Tensor, normalization: str | tuple) -> None:
    """Refuse to fold the means and deviations of three colours into a kernel `(E, C, h, w)` that reads other channels.

    Raises:
        ConfigValueError: if that is asked for.
    """
    mean, _ = NORMALIZATIONS[normalization] if isinstance(normalization, str) else normalization
    if normalization != "none" and kernel.shape[1] != len(mean):
        raise ConfigValueError(
            KERNEL,
            f"{kernel.shape[1]} input channels",
            f"{len(mean)}, whose intensity normalization is to be folded in",
            "set normalization of the inflation to none, and scale the volumes as the 2D network expects",
        )
