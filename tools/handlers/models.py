# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers that make a training a model: a folder that names all it needs, or the model of its bundle."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from tools.configs import RUN_OVERLAY, read_config, read_running, select_model, write_overlay
from tools.files import write_atomically
from tools.handlers.checkpoints import BEST, LAST
from tools.handlers.training import TrainingRecord
from tools.hardware import is_main_process
from tools.models import CARD_KEYS, find_config
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


class RunModel:
    """Write `model.yaml` beside the weights: the overlay with which inference, evaluation and an export use them.

    It holds what the config of this training says of the data and of the network, with all overlays and overrides, so
    that nobody types it again: weights that were trained at 0.5 mm are applied at 0.5 mm.

    Args:
        output_dir: folder of the run.
        bundle_root: the bundle, where nothing else tells which one runs.
        validated: whether there will be a `best.pt`.
    """

    def __init__(self, output_dir: str | Path, bundle_root: str | Path, validated: bool) -> None:
        self.output_dir = Path(output_dir)
        self.validated = validated
        self.running = read_running()
        self.root = (self.running and self.running.bundle) or Path(bundle_root).resolve()

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the file, before the first step: an interrupted run is a model, too."""
        if not is_main_process() or self.running is None:
            return
        config = self.running.values
        default = find_config(self.root, "train")
        values = select_model(config, read_config(default) if default else None)
        values["validation_cases"] = ConfigParser(config).get_parsed_content("validation_cases")
        values["card"] = config.get("card") or dict.fromkeys(CARD_KEYS, "not stated")
        weights = self.output_dir.resolve() / (BEST if self.validated else LAST)
        head = (
            f"The model of this training of {self.root.name}: goes after inference.yaml, or after train.yaml and\n"
            "evaluate.yaml. `voxseg segment`, `evaluate`, `export` and `label` take the folder that it is in."
        )
        places = {"bundle_root": str(self.root), "checkpoint": str(weights)}
        write_overlay(self.output_dir / RUN_OVERLAY, values | places, head)
