# SPDX-License-Identifier: Apache-2.0
"""The patch merging of weights of unknown origin, told from the weights themselves.

In the original form blocks 2 and 5, and blocks 3 and 6, read the same voxel. They receive the same gradient, so that
training moves both by the same amount: how far they lie apart stays what it was at the start, while all other pairs
part. In the corrected form they part as all others do. `tools.studies.merging_forms` has measured how often that is
told rightly, see the docs of swin_unetr_ssl.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

REDUCTION = re.compile(r"(?:.*\.)?layers(\d)\.0\.(?:0\.)?downsample\.reduction\.weight")
PAIRS = list(itertools.combinations(range(8), 2))
TWINS = ((2, 5), (3, 6))  # blocks that read the same voxel in the original form
# how far the other pairs must have parted, in standard errors of the twins' distance at the start
LEAST_PARTED = 5
# how far the twins have parted, as a share of that: about 0 in the original form, about 1 in the corrected one
MOST_ORIGINAL, LEAST_CORRECTED = 0.35, 0.65
# where weight decay has drawn all blocks together: how many deviations of the other pairs the twins lie below them
SHRUNK, LEAST_GAP = 0.95, 2.5


@dataclass(frozen=True)
class Verdict:
    """The form that weights were trained with, None if they do not tell, and why."""

    form: str | None
    reason: str


def judge(state_dict: Mapping[str, Tensor]) -> Verdict:
    """Tell the form from the weights of all patch mergings together.

    `v2` cannot be told from `corrected`: its blocks are the same in another order.
    """
    return judge_distances(measure_distances(state_dict))


def measure_distances(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, list[float]]]:
    """Return for each patch merging its inputs and how far its eight blocks lie apart, by the stage's number.

    The distance of two blocks is the mean square of their difference, in the order of `PAIRS`, divided by what it is
    at the start of a training.
    """
    measures = {}
    for name, tensor in state_dict.items():
        match = REDUCTION.fullmatch(name)
        if match is None or tensor.ndim != 2 or tensor.shape[1] % 8:
            continue
        inputs = tensor.shape[1]
        blocks = tensor.detach().to(torch.float64).unflatten(1, (8, -1)).movedim(1, 0).flatten(1)
        # nn.Linear draws weights from -1/sqrt(inputs) to 1/sqrt(inputs): the difference of two has this mean square
        start = 2 / (3 * inputs)
        distances = [float((blocks[a] - blocks[b]).square().mean()) / start for a, b in PAIRS]
        measures[match[1]] = (inputs, [round(distance, 5) for distance in distances])
    return measures


def judge_distances(measures: Mapping[str, tuple[int, Sequence[float]]]) -> Verdict:
    """Tell the form from what `measure_distances` returns."""
    if not measures:
        return Verdict(None, "it has none")
    inputs, distances = (torch.tensor(side, dtype=torch.float64) for side in zip(*measures.values(), strict=True))
    sizes = inputs.square() / 32  # weights of a block
    shares = sizes / sizes.sum()
    are_twins = torch.tensor([pair in TWINS for pair in PAIRS])
    twins = float(shares @ distances[:, are_twins].mean(dim=1))
    others = float(shares @ distances[:, ~are_twins].mean(dim=1))
    spread = float(shares @ distances[:, ~are_twins].std(dim=1))
    if not math.isfinite(twins + others + spread):
        return Verdict(None, "they are not all finite")
    # the square of the difference of two uniform numbers has the variance 1.4 times its squared mean
    error = math.sqrt(1.4 / float(sizes.sum()) / len(TWINS))
    start = min(1.0, twins)
    parted = others / start - 1
    if parted < LEAST_PARTED * error:
        return Verdict(None, f"its blocks have parted by {parted:.1%}, it takes {LEAST_PARTED * error:.1%}")
    share = (twins - start) / (others - start)
    account = f"other blocks have parted by {parted:.1%}, those that would be twins by {share * parted:.1%}"
    told = f"told by the numbers: {account}"
    if share <= MOST_ORIGINAL and (start > SHRUNK or others - twins > LEAST_GAP * spread):
        return Verdict("original", told)
    if share >= LEAST_CORRECTED:
        return Verdict("corrected", told)
    return Verdict(None, account)
