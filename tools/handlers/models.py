# SPDX-License-Identifier: Apache-2.0
"""Ignite handler that makes the result of a training the model of its bundle."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from ignite.engine import Engine, Events

from tools.files import write_atomically
from tools.handlers.training import BEST, TrainingRecord
from tools.hardware import is_main_process
from tools.weights import read_state_dict, save_checkpoint

logger = logging.getLogger(__name__)


def replace_model(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write the weights of a network to `path`; what was there is kept beside it as `<name>_previous`."""
    if path.is_file():
        with write_atomically(path.with_stem(f"{path.stem}_previous")) as temporary:
            shutil.copyfile(path, temporary)
    save_checkpoint(weights, path)


class ModelReplacement:
    """Replace `models/model.pt` of a bundle by what its training gave, for MONAI Label, which looks there only.

    These are the weights of the epoch with the best Dice, or of the last one where nothing was validated. The model
    that was there is kept beside it as `model_previous.pt`; MONAI Label offers both.

    Args:
        path: the model to replace.
        output_dir: folder with the `best.pt` of this training.
        network: the network itself, not a distributed wrapper.
        record: knows whether an epoch of this training was validated.
    """

    def __init__(
        self, path: str | Path, output_dir: str | Path, network: torch.nn.Module, record: TrainingRecord
    ) -> None:
        self.path = Path(path)
        self.output_dir = Path(output_dir)
        self.network = network
        self.record = record

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the file."""
        if not is_main_process():
            return
        best = self.record.best
        weights = self.network.state_dict() if best is None else read_state_dict(self.output_dir / BEST)
        replace_model(self.path, weights)
        epoch = engine.state.epoch if best is None else best["epoch"]
        logger.info("%s now has the weights of epoch %d", self.path, epoch)
