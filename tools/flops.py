# SPDX-License-Identifier: Apache-2.0
"""Operations of a network in one forward pass, for the tables of the docs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from tools.networks import InflatedSegmenter
from tools.tables import format_table

_PRODUCTS = frozenset({"mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__", "__imul__"})
_ATTENTION = frozenset({F.scaled_dot_product_attention, F.multi_head_attention_forward})


@dataclass(frozen=True)
class FlopCount:
    """Operations of one forward pass; a multiply-add is two.

    Attributes:
        matmul: of linear layers, matrix products and convolutions.
        published: by the convention of the published numbers, which `count_flops` describes.
    """

    matmul: int
    published: int


def count_flops(network: nn.Module, inputs: Tensor | Sequence[Tensor]) -> FlopCount:
    """Return the operations of `network(inputs)` in eval mode, as they are run and not as they are planned.

    The publications on inflated transformers give twice what torchprofile calls MACs: the multiply-adds of linear
    layers, matrix products and convolutions, one for each output element of an affine LayerNorm, and one for each
    output element of an element-wise product. In a BEiT these products are q times its scale, and two LayerScales a
    block; fused attention hides the first inside its kernel, and it is counted all the same. Additions, activations
    and softmax are free. So are, unlike in torchprofile, the other norms, pooling and interpolation of a decoder.

    Args:
        network: any module. It is left in the mode it was in, without gradients. If it and `inputs` are on the device
            `meta`, shapes alone are computed: a count of 200 GFLOPs takes a tenth of a second and no memory.
        inputs: what `network` takes as its one argument.

    Source: torchprofile 0.0.4, `handlers.py`; src/compute_flops.py of TransSeg (Zhang et al., ML4H 2022).
    """
    was_training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),  # not every version of torch counts in every fused kernel
            FlopCounterMode(display=False) as matmul,
            _ElementwiseMode() as elementwise,
        ):
            network(inputs)
    finally:
        for module in was_training:
            module.training = True
    total = matmul.get_total_flops()
    return FlopCount(matmul=total, published=total + 2 * elementwise.num_outputs)


def tabulate(network_parts: Mapping[str, tuple[nn.Module, Tensor | Sequence[Tensor]]]) -> str:
    """Return a table of parameters and operations, a row for each part of a network.

    Args:
        network_parts: module and inputs by name, such as `encoder` and `decoder`.
    """
    rows = []
    for name, (network, inputs) in network_parts.items():
        count = count_flops(network, inputs)
        num_parameters = sum(parameter.numel() for parameter in network.parameters())
        rows.append([name, num_parameters, count.matmul, count.published])
    return format_table(["part", "parameters", "matmul FLOPs", "published FLOPs"], rows)


class _ElementwiseMode(TorchFunctionMode):
    """Counts the elements that affine LayerNorms and element-wise products of floating-point numbers put out.

    It sees the functions that a module calls, as tracing does. What these call in turn (the kernel of an attention,
    which scales q and k by a square root each) it does not see.
    """

    num_outputs = 0

    def __torch_function__(
        self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in _ATTENTION:  # q times its scale
            self.num_outputs += (args[0] if args else kwargs["query"]).numel()
        elif func is F.layer_norm:
            affine = inspect.signature(func).bind(*args, **kwargs).arguments.get("weight") is not None
            self.num_outputs += output.numel() if affine else 0
        elif getattr(func, "__name__", "") in _PRODUCTS and output.is_floating_point():
            self.num_outputs += output.numel()
        return output


def tabulate_segmenter(encoder: str, decoder: str, image_size: int, num_slices: int, num_classes: int = 14) -> str:
    """Return a table of an inflated 2D transformer that reads one slice and `num_slices`, alone and with its decoder.

    Args:
        encoder: a model name of timm.
        decoder: a name of `tools.networks.decoders.DECODERS`.
        image_size: edge of the slices in pixels.
        num_slices: slices of a window.
        num_classes: channels of the logits.

    Raises:
        ConfigValueError: if the network cannot be built.
    """
    parts: dict[str, tuple[nn.Module, Tensor]] = {}
    for depth in (1, num_slices):
        with torch.device("meta"):
            network = InflatedSegmenter(encoder, decoder, 1, num_classes, image_size, depth)
            windows = torch.empty(1, 1, image_size, image_size, depth)
        slices = "1 slice" if depth == 1 else f"{depth} slices"
        parts[f"{encoder}, {slices}"] = (network.encoder, windows)
        parts[f"{encoder} + {decoder}, {slices}"] = (network, windows)
    return tabulate(parts)
