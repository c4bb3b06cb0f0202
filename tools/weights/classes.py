# SPDX-License-Identifier: Apache-2.0
"""Classes of a network's output by their names: weights know which channel is which structure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tools.configs import read_running
from tools.configs.files import find_overlay, read_config
from tools.errors import CheckpointError
from tools.weights.files import read_weights

FACTS = "facts"  # key of a checkpoint, and of the header of a safetensors file: JSON
# the last layer of UNETR and Swin UNETR, and that of the 2D decoders
HEAD = re.compile(r"(out\.conv\.conv|decoder\.classifier(\.conv\.conv)?)\.(weight|bias)")


@dataclass(frozen=True)
class Classes:
    """Names of the classes of a file and of a network, background first."""

    old: Sequence[str]
    new: Sequence[str]

    def find_sources(self) -> list[int | None]:
        """Return for each class of the network its channel in the file, None for one that the file does not have."""
        places = {_fold(name): number for number, name in enumerate(self.old)}
        return [places.get(_fold(name)) for name in self.new]

    @property
    def are_same(self) -> bool:
        """Whether the channels mean the same in the same order."""
        return list(map(_fold, self.old)) == list(map(_fold, self.new))

    def describe(self) -> str:
        """Tell which classes of the network come from the file."""
        known = [source is not None for source in self.find_sources()]
        kept, fresh = ([name for name, k in zip(self.new, known, strict=True) if k is side] for side in (True, False))
        return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in (("by name", kept), ("new", fresh)) if names)


def find_class_axis(shape: Sequence[int]) -> int:
    """Return the axis of the classes of an output layer; a transposed convolution, of kernel 2, has them second."""
    return 1 if len(shape) > 2 and shape[-1] == 2 else 0


def reorder(tensor: Tensor, wanted: Tensor, classes: Classes) -> Tensor:
    """Return an output layer for the classes of a network; those that the file lacks keep their first values.

    Args:
        tensor: of the file.
        wanted: of the network.
        classes: of both.
    """
    axis = find_class_axis(wanted.shape)
    result = wanted.detach().clone().to(tensor.dtype)
    for number, source in enumerate(classes.find_sources()):
        if source is not None:
            result.select(axis, number).copy_(tensor.select(axis, source))
    return result


def read_facts(path: Path) -> dict[str, Any]:
    """Return what a checkpoint of a training says of itself, nothing where it says nothing."""
    return _parse_facts(path, read_weights(path)[1])


def _parse_facts(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    text = content.get(FACTS)
    if not isinstance(text, str):
        return {}
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        remedy = "save it again, or leave out that key"
        raise CheckpointError(
            path, f"{FACTS} that are no JSON object ({error})", "what it was trained with", remedy
        ) from error


def read_labels(path: Path, facts: Mapping[str, Any]) -> list[str] | None:
    """Return the names of the classes that weights were trained for: from the file, else from the overlay beside it.

    Args:
        path: the file.
        facts: what stands in it beside its tensors.
    """
    labels = _parse_facts(path, facts).get("labels")
    if isinstance(labels, list):
        return [str(name) for name in labels]
    overlay = find_overlay(path)
    labels = read_config(overlay).get("labels") if overlay else None
    return [str(name) for name in labels] if isinstance(labels, list) else None


def compare_classes(path: Path, facts: Mapping[str, Any], complete: bool) -> Classes | None:
    """Return the classes of weights and of the config that runs, None where they are the same or one is not known.

    Args:
        path: the file of the weights.
        facts: what stands in it beside its tensors.
        complete: whether the network is applied as it is: then its classes must be those of the config.

    Raises:
        CheckpointError: if they must be the same and are not.
    """
    running = read_running()
    new = running.values.get("labels") if running else None
    old = read_labels(path, facts)
    if old is None or not isinstance(new, list):
        return None
    classes = Classes(old, [str(name) for name in new])
    if classes.are_same:
        return None
    if complete:
        found, wanted = (f"the classes {', '.join(names)}" for names in (classes.old, classes.new))
        raise CheckpointError(path, found, f"{wanted} (labels)", "give the labels that the weights were trained for")
    return classes


def _fold(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())
