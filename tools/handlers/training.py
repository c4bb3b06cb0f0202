# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers for training: seeds, record and progress, checkpoints."""

from __future__ import annotations

import logging
import math
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.handlers import from_engine
from torch.utils.data import Dataset
from tqdm import tqdm

from tools.errors import CheckpointError, DivergedTrainingError
from tools.files import write_json
from tools.hardware import describe_hardware, is_main_process
from tools.reports import plot_learning_curve
from tools.weights import fill, read_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

LAST, BEST = "last.pt", "best.pt"
STATE_KEYS = [
    "model",
    "optimizer",
    "lr_scheduler",
    "scaler",
    "random_state",
    "epoch",
    "max_epochs",
    "iteration",
    "best_metric",
    "record",
]


class EpochSeed:
    """Make the random numbers of an epoch a function of the seed, the epoch and the rank alone.

    A run that is resumed at an epoch's start therefore draws what the unbroken run drew, whatever happened
    before, without storing the state of each generator in each process.

    Args:
        seed: the seed of the run.
        dataset: its transforms own generators of their own, which are seeded too; or several data sets. Loader workers
            take their seed from torch's generator at the start of the epoch.
    """

    def __init__(self, seed: int, dataset: Dataset | Sequence[Dataset]) -> None:
        self.seed = seed
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed every generator for the epoch that starts."""
        sequence = np.random.SeedSequence([self.seed, engine.state.epoch, int(os.environ.get("RANK", "0"))])
        epoch_seed = int(sequence.generate_state(1)[0])
        random.seed(epoch_seed)
        np.random.seed(epoch_seed)  # MONAI and third-party transforms use the global generator
        torch.manual_seed(epoch_seed)
        set_rnd(self.dataset, epoch_seed)


class TrainingRecord:
    """Keep what an epoch cost and reached, show progress, and draw the learning curve when training ends.

    An epoch's entry holds `epoch, loss, learning_rate, seconds`, the metrics of the trainer, if it has any (a loss of
    several terms gives them as `loss/<term>`), and, where there was a validation, `dice` (mean over volumes and
    foreground classes) and `dice/<label>`, or another metric, and further ones of the validator, named without `val_`.

    Args:
        output_dir: folder of `learning_curve.png` and `training.json`.
        labels: names of the classes, background first; empty if the metric is one number.
        optimizer: read for its learning rate.
        validator: the evaluator whose key metric is recorded, for Dice that without background; None for no validation.
        seed: noted in `training.json`.
        metric: name of the validator's key metric in the entries.
        lower_is_better: whether the best epoch is that of the lowest metric.
    """

    def __init__(
        self,
        output_dir: str | Path,
        labels: Sequence[str],
        optimizer: torch.optim.Optimizer,
        validator: Any = None,
        seed: int | None = None,
        metric: str = "dice",
        lower_is_better: bool = False,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.labels = list(labels)
        self.optimizer = optimizer
        self.validator = validator
        self.seed = seed
        self.metric = metric
        self.lower_is_better = lower_is_better
        self.epochs: list[dict[str, float]] = []
        self._bar: tqdm | None = None
        self._losses: list[float] = []
        self._epoch_start = 0.0
        self._validations = 0
        self._num_cases = 0

    def attach(self, engine: Engine) -> None:
        """Register with the trainer; `TrainingCheckpoint` does it, after the validation of the epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._note_iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._close_epoch)
        engine.add_event_handler(Events.COMPLETED, self._report)
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, self._count_validation)

    @property
    def best(self) -> dict[str, float] | None:
        """The epoch with the best validation metric so far, the first one if several share it."""
        validated = [epoch for epoch in self.epochs if self.metric in epoch]
        choose = min if self.lower_is_better else max
        return choose(validated, key=lambda epoch: epoch[self.metric]) if validated else None

    def _count_validation(self, _: Engine) -> None:
        self._validations += 1

    def _start_epoch(self, engine: Engine) -> None:
        self._losses, self._validations, self._epoch_start = [], 0, time.monotonic()
        loader = engine.state.dataloader
        self._num_cases = len(getattr(loader, "dataset", loader))
        if self._bar is None and is_main_process():
            length = engine.state.epoch_length
            self._bar = tqdm(
                total=engine.state.max_epochs * length,
                initial=(engine.state.epoch - 1) * length,
                unit="step",
                mininterval=0.5 if sys.stderr.isatty() else 30,  # a log file wants a line now and then
                dynamic_ncols=True,
            )

    def _note_iteration(self, engine: Engine) -> None:
        loss = float(from_engine("loss", first=True)(engine.state.output))
        if not math.isfinite(loss):
            self._close_bar()  # it would be drawn again below the message
            raise DivergedTrainingError(
                f"epoch {engine.state.epoch}, step {engine.state.iteration}",
                f"a loss of {loss}",
                "a finite number",
                "lower --learning_rate, or train without mixed precision (--amp False)",
            )
        self._losses.append(loss)
        if self._bar is not None:
            self._bar.set_description(f"epoch {engine.state.epoch}/{engine.state.max_epochs}", refresh=False)
            self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self._bar.update()

    def _close_epoch(self, engine: Engine) -> None:
        entry: dict[str, float] = {
            "epoch": engine.state.epoch,
            "loss": float(np.mean(self._losses)),
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "seconds": time.monotonic() - self._epoch_start,
        }
        entry |= {name: float(value) for name, value in engine.state.metrics.items()}
        if self._validations:
            name = self.validator.state.key_metric_name
            others = {key: value for key, value in self.validator.state.metrics.items() if key != name}
            entry |= {key.removeprefix("val_"): float(value) for key, value in others.items()}
            entry[self.metric] = float(self.validator.state.metrics[name])
            if self.labels:
                per_class = torch.nanmean(self.validator.state.metric_details[name].float(), dim=0).tolist()
                entry |= {f"{self.metric}/{label}": x for label, x in zip(self.labels[1:], per_class, strict=True)}
        self.epochs.append(entry)
        if self.metric in entry and (best := self.best) and is_main_process():
            classes = ", ".join(f"{label} {entry[f'{self.metric}/{label}']:.3f}" for label in self.labels[1:])
            reached = f"{self.metric.capitalize()} {entry[self.metric]:.4f}{f' ({classes})' if classes else ''}"
            with_best = f"best {best[self.metric]:.4f} in epoch {best['epoch']:.0f}"
            logger.info("epoch %d: %s; %s", entry["epoch"], reached, with_best)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _report(self, engine: Engine) -> None:
        self._close_bar()
        if not is_main_process():
            return
        plot_learning_curve(self.epochs, self.output_dir / "learning_curve.png", self.metric, self.lower_is_better)
        write_json(
            self.output_dir / "training.json",
            {
                "seed": self.seed,
                "training_cases": self._num_cases,
                "steps": engine.state.iteration,
                "seconds": sum(epoch["seconds"] for epoch in self.epochs),
                "best": self.best,
                "hardware": describe_hardware(),
                "torch": torch.__version__,
                "epochs": self.epochs,
            },
        )
        logger.info("learning curve in %s", self.output_dir / "learning_curve.png")


class TrainingCheckpoint:
    """Save the state of a training run after epochs, and continue from it exactly.

    `last.pt` and `best.pt` hold the network (`model`), what trains with it (`auxiliary`, if there is any), optimizer,
    scheduler, scaler, epoch, step, best metric, the record of all epochs and the random state, that is the seed (see
    `EpochSeed`). They are tensors and plain containers, load with `weights_only=True`, and replace the previous file in
    one step.

    Args:
        output_dir: folder of the two files.
        network: the network itself, not a distributed wrapper, so that names carry no `module.`.
        optimizer: its state is saved and restored.
        lr_scheduler: likewise.
        record: likewise; it also knows the best epoch. It is attached here, so that it is complete when it is saved.
        seed: the seed of the run; a resumed run must have the same.
        interval: epochs between two writings of `last.pt`; the last epoch is always written.
        resume: continue from `last.pt` if there is one, else start anew.
        auxiliary: heads of a second task and the like, which training needs to go on and the network's users do not.
    """

    def __init__(
        self,
        output_dir: str | Path,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
        record: TrainingRecord,
        seed: int,
        interval: int = 1,
        resume: bool = False,
        auxiliary: torch.nn.Module | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.network = network
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.record = record
        self.seed = seed
        self.interval = interval
        self.resume = resume
        self.auxiliary = auxiliary

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, the record first; must stand after the ValidationHandler."""
        self.record.attach(engine)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _start(self, engine: Engine) -> None:
        path = self.output_dir / LAST
        if self.resume and path.is_file():
            self._restore(engine, path)
        elif self.resume:
            logger.info("no %s yet, training starts from the beginning", path)
        elif path.is_file() and is_main_process():
            logger.warning("%s is of an earlier run and will be replaced; --resume true would continue it", path)

    def _restore(self, engine: Engine, path: Path) -> None:
        state = read_checkpoint(path)
        wanted = STATE_KEYS if self.auxiliary is None else [*STATE_KEYS, "auxiliary"]
        if absent := [key for key in wanted if key not in state]:
            raise CheckpointError(
                path, f"no {', '.join(absent)}", "a checkpoint of a training run", "start anew with --resume False"
            )
        if state["random_state"]["seed"] != self.seed:
            logger.warning("%s was trained with seed %s, now %s", path, state["random_state"]["seed"], self.seed)
        if state["max_epochs"] != engine.state.max_epochs:
            logger.warning(
                "%s was planned for %d epochs, now %d; the learning rate keeps to the old plan, even after its end",
                path,
                state["max_epochs"],
                engine.state.max_epochs,
            )
        fill(self.network, state["model"], path)
        if self.auxiliary is not None:
            fill(self.auxiliary, state["auxiliary"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        scaler = getattr(engine, "scaler", None)
        if scaler is not None and state["scaler"]:  # empty when mixed precision was off
            scaler.load_state_dict(state["scaler"])
        self.record.epochs = state["record"]
        engine.state.epoch = state["epoch"]
        engine.state.iteration = state["iteration"]
        logger.info("resumed from %s after epoch %d of %d", path, state["epoch"], engine.state.max_epochs)

    def _save(self, engine: Engine) -> None:
        if not is_main_process():
            return
        epoch = engine.state.epoch
        best = self.record.best
        is_best = best is not None and best["epoch"] == epoch
        is_due = epoch % self.interval == 0 or epoch == engine.state.max_epochs
        if not (is_best or is_due):
            return
        scaler = getattr(engine, "scaler", None)
        state = {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "epoch": epoch,
            "max_epochs": engine.state.max_epochs,
            "iteration": engine.state.iteration,
            "best_metric": best[self.record.metric] if best else None,
            "record": self.record.epochs,
            "random_state": {"seed": self.seed},
        }
        if self.auxiliary is not None:
            state["auxiliary"] = self.auxiliary.state_dict()
        if is_best:
            save_checkpoint(state, self.output_dir / BEST)
        if is_due:
            save_checkpoint(state, self.output_dir / LAST)
