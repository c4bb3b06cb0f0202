# SPDX-License-Identifier: Apache-2.0
"""What goes into a network in pre-training: corrupted views of crops, the same ones in each validation."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import monai
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

VIEWS = ("view_1", "view_2")


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


class RepeatableDataset(Dataset):
    """A data set whose random transforms do the same to an item whenever and in whichever process it is read.

    Validation on random crops then compares epochs, not draws. Nothing is taken from the generators of the training,
    neither from the global ones nor from those of its transforms.

    Args:
        dataset: MONAI's `CacheDataset`, `PersistentDataset` or another with a `transform`; it gets a copy of that, so
            that its generators are not shared with the training.
        seed: another seed gives other crops and corruptions.
    """

    def __init__(self, dataset: monai.data.Dataset, seed: int = 0) -> None:
        self.dataset = dataset
        self.dataset.transform = copy.deepcopy(dataset.transform)
        self.seed = seed

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Return what the transforms make of an item, always the same."""
        sequence = np.random.SeedSequence([self.seed, index % len(self)])
        self.dataset.transform.set_random_state(seed=int(sequence.generate_state(1)[0]))
        return self.dataset[index]
