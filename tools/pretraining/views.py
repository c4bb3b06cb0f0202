# SPDX-License-Identifier: Apache-2.0
"""What goes into a network in pre-training: corrupted views of crops, the same ones in each validation."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset
from monai.transforms import Compose, MapTransform
from torch import Tensor

VIEWS = ("view_1", "view_2")


def skip_labels(transforms: Sequence[MapTransform]) -> list[MapTransform]:
    """Return copies of `transforms` that pass over keys which are not there, as `label` of an unlabelled scan.

    The cards of data sets crop image and label alike; pre-training uses the same cards.
    """
    copies = [copy.copy(transform) for transform in transforms]
    for transform in copies:
        transform.allow_missing_keys = True
    return copies


def stack_views(
    batch: Mapping[str, Tensor], device: str | torch.device | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Return the views and what they should become, both `(2B, C, X, Y, Z)`: the first views, then the second ones.

    It is the `prepare_batch` of an engine.

    Args:
        batch: `image`, the clean crops, and `view_1` and `view_2`, each `(B, C, X, Y, Z)`.
        device: where to move them.
        non_blocking: whether the copy to a GPU may overlap with computation.
        kwargs: further arguments of `Tensor.to`.
    """
    image, *views = (
        batch[key].as_subclass(Tensor).to(device, non_blocking=non_blocking, **kwargs) for key in ("image", *VIEWS)
    )
    return torch.cat(views), torch.cat([image] * len(views))


class RepeatableDataset(CacheDataset):
    """A `CacheDataset` whose random transforms do the same to an item whenever and in whichever process it is read.

    Validation on random crops then compares epochs, not draws. Nothing is taken from the generators of the training,
    neither from the global ones nor from those of its transforms.

    Args:
        data: as of `CacheDataset`.
        transform: is copied, so that its generators are not shared with the training.
        seed: another seed gives other crops and corruptions.
        options: as of `CacheDataset`.
    """

    def __init__(self, data: Sequence[Any], transform: Compose, seed: int = 0, **options: Any) -> None:
        self.seed = seed
        super().__init__(data, copy.deepcopy(transform), **options)

    def _transform(self, index: int) -> Any:
        sequence = np.random.SeedSequence([self.seed, index % len(self)])
        self.transform.set_random_state(seed=int(sequence.generate_state(1)[0]))
        return super()._transform(index)
