# SPDX-License-Identifier: Apache-2.0
"""A hint at the patch merging of weights of unknown origin. It decides nothing.

In the original form blocks 2 and 5, and blocks 3 and 6, read the same voxel. They receive the same gradient, so that
training moves both alike, while all other pairs part. But a network that was trained in one form and then in the other,
or hardly trained, or started from weights other than those of `nn.Linear`, has numbers of either kind.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

from torch import Tensor

REDUCTION = re.compile(r"(?:.*\.)?layers(\d)\.0\.(?:0\.)?downsample\.reduction\.weight")
PAIRS = list(itertools.combinations(range(8), 2))
TWINS = ((2, 5), (3, 6))  # blocks that read the same voxel in the original form


def describe_numbers(state_dict: Mapping[str, Tensor]) -> str:
    """Return how far apart the blocks lie that would be twins in the original form, for a person to weigh."""
    sums = {True: 0.0, False: 0.0}
    for name, tensor in state_dict.items():
        if REDUCTION.fullmatch(name) and tensor.ndim == 2 and tensor.shape[1] % 8 == 0:
            blocks = tensor.detach().double().unflatten(1, (8, -1)).movedim(1, 0)
            for a, b in PAIRS:
                sums[(a, b) in TWINS] += float((blocks[a] - blocks[b]).square().sum())
    twins, others = sums[True] / len(TWINS), sums[False] / (len(PAIRS) - len(TWINS))
    share = f"{twins / others:.0%}" if others > 0 else "-"
    return (
        f"a hint, no proof: blocks that the original form trains alike lie {share} as far apart as others, where much "
        "less than 100% speaks for original and about 100% for neither"
    )
