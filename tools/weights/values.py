# SPDX-License-Identifier: Apache-2.0
"""What the numbers of a tensor must be to stand for weights: real ones, finite, of a kind that can be converted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from tools.errors import CheckpointError

REMEDY = "give the file as it was trained, or save it again in float32"


def check_kind(name: str, tensor: Tensor) -> None:
    """Refuse tensors that are no plain arrays of real numbers.

    Raises:
        CheckpointError: if it is complex, quantized, sparse or without data.
    """
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_meta or tensor.layout != torch.strided:
        found = "without data" if tensor.is_meta else f"that is {str(tensor.layout).removeprefix('torch.')}"
        raise CheckpointError(name, f"a tensor {found}", "a plain one", REMEDY)
    if tensor.is_complex() or tensor.is_quantized:
        raise CheckpointError(name, f"{kind} numbers", "floating-point ones", REMEDY)


def check_floats(name: str, tensor: Tensor) -> None:
    """Refuse whole numbers where weights belong: converting them would hide that something went wrong before.

    Raises:
        CheckpointError: if they are whole numbers or truth values by their type.
    """
    check_kind(name, tensor)
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(name, f"{kind} numbers", "floating-point ones, as weights are", REMEDY)


def convert_kind(name: str, tensor: Tensor, wanted: Tensor) -> Tensor:
    """Return a tensor in the type of the network's own, if that keeps its meaning.

    Floating-point numbers may lose digits, as in half-precision files; whole numbers stay what they are.

    Args:
        name: of the tensor, for messages.
        tensor: from the file, in the network's shape.
        wanted: the network's own.

    Raises:
        CheckpointError: if the numbers are of another kind, or not finite.
    """
    check_kind(name, tensor)
    if wanted.is_floating_point():
        check_floats(name, tensor)
        converted = tensor.to(wanted.dtype)
        if not torch.isfinite(converted).all() and torch.isfinite(wanted).all():
            count = int((~torch.isfinite(converted)).sum())
            raise CheckpointError(
                name,
                f"{count} of {converted.numel()} numbers that are infinite or none (NaN)",
                "finite ones",
                "give a file of before the training diverged",
            )
        return converted
    converted = tensor.to(wanted.dtype)
    if not torch.equal(converted.to(tensor.dtype), tensor):
        found = f"{str(tensor.dtype).removeprefix('torch.')} numbers"
        raise CheckpointError(name, found, f"whole ones ({str(wanted.dtype).removeprefix('torch.')})", REMEDY)
    return converted


def list_casts(tensors: Iterable[Tensor]) -> Iterator[str]:
    """Yield a sentence if there are numbers of 8 bits, which mean nothing without the scales that belong to them."""
    narrow = [x.dtype for x in tensors if x.dtype.is_floating_point and x.dtype.itemsize == 1]
    if narrow:
        kind = str(narrow[0]).removeprefix("torch.")
        yield f"{len(narrow)} tensors are {kind}: they are cast as they are, a scale that belongs to them is unknown"
