# SPDX-License-Identifier: Apache-2.0
"""The patch merging that the weights of a Swin transformer were trained with, and how that is known.

Names, shapes and numbers do not tell it (see `tools.networks.patch_merging`). What does, in the order in which it
counts: the file itself, if this project wrote it, or its hash, if it is a public one; the argument `patch_merging`. The
name of a public file is taken for what it is, and that is said. Where nothing tells it, the weights are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from tools.errors import CheckpointError
from tools.networks.patch_merging import AUTO, SLICES, check_form, name_form
from tools.weights.merging_numbers import REDUCTION, describe_numbers

HEADER = "patch_merging"  # of a safetensors file, and key of a .pt beside its tensors
MARK = re.compile(rf"(?:.*\.)?downsample\.{SLICES}")
REMEDY = (
    "give --patch_merging original (trained with MONAI 0.9.0 to 1.4.0, as all public weights) or --patch_merging "
    "corrected (MONAI 1.5.0 and later)"
)


@dataclass(frozen=True)
class MergingForm:
    """A form and what tells it.

    Args:
        form: a key of `tools.networks.patch_merging.FORMS`.
        evidence: in words.
    """

    form: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.form} ({self.evidence})"


@dataclass(frozen=True)
class Origin:
    """What is known of a file beside its tensors.

    Args:
        certain: by what this project wrote into the file, or by its hash.
        likely: assumed from its name, which is that of a public file.
    """

    certain: MergingForm | None = None
    likely: MergingForm | None = None


def split_marks(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights and, apart from them, the marks that tell which voxels the patch mergings read."""
    marks = {name: tensor for name, tensor in state_dict.items() if MARK.fullmatch(name)}
    return {name: tensor for name, tensor in state_dict.items() if name not in marks}, marks


def find_form(
    weights: Mapping[str, Tensor],
    marks: Mapping[str, Tensor],
    asked: str = AUTO,
    origin: Origin | None = None,
    source: str = "weights",
) -> MergingForm | None:
    """Return the form that weights were trained with; None if they have no patch merging.

    Args:
        weights: tensors by their names, in the file or in the network.
        marks: those that `split_marks` found beside them.
        asked: the form that the user or the network's config names, or `auto`.
        origin: what else is known of the file.
        source: named in messages.

    Raises:
        CheckpointError: if nothing tells the form, or two sources tell different ones.
        ConfigValueError: if the form that is asked for is unknown.
    """
    check_form(asked, AUTO)
    if not any(REDUCTION.fullmatch(name) for name in weights):
        return None
    origin = origin or Origin()
    told = [MergingForm(form, "told by the file") for form in sorted({name_form(mark) for mark in marks.values()})]
    told += [origin.certain] if origin.certain and not told else []
    if asked != AUTO:
        told.append(MergingForm(asked, "given as patch_merging"))
    if told:
        return _agree(told, source)
    if origin.likely is None:
        found = f"a Swin transformer, and nothing that tells its patch merging ({describe_numbers(weights)})"
        raise CheckpointError(source, found, "weights of a known form", REMEDY)
    return origin.likely


def _agree(told: list[MergingForm], source: str) -> MergingForm:
    """Return the first of several that are the same form."""
    other = next((form for form in told if form.form != told[0].form), None)
    if other is not None:
        remedy = "leave out --patch_merging, or give the file that belongs to it"
        raise CheckpointError(source, f"patch merging {told[0]} and {other}", "one form", remedy)
    return told[0]
