# SPDX-License-Identifier: Apache-2.0
"""The README's training form, every bundle with every card; tests/bundles has a card of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from card_trainings import NAMES, SMALL, check_training, read_card, shrink, write_dataset

pytestmark = pytest.mark.exhaustive


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each card."""
    folders = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    return {name: write_dataset(folder, name, shrink(read_card(name)["roi_size"])) for name, folder in folders.items()}


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("card", NAMES)
@pytest.mark.parametrize("bundle", SMALL)
def test_every_card_trains_two_epochs_with_every_bundle(bundle, card, batch_size, datasets, tmp_path):
    check_training(bundle, card, batch_size, datasets[card], tmp_path / "run")
