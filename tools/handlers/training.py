# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers for training: seeds, record and progress."""

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

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset
from monai.data.utils import set_rnd
from monai.handlers import from_engine
from tqdm import tqdm

from tools.errors import DivergedTrainingError
from tools.files import write_json
from tools.hardware import describe_hardware, is_main_process
from tools.reports import plot_learning_curve

logger = logging.getLogger(__name__)


class SampleSeed:
    """Prepare a sample of a data set with random numbers that depend on seed, epoch and place in the list alone.

    MONAI seeds the transforms once for each loader worker, so that the crops of an epoch change with their number: the
    losses of a first epoch were 1.8277, 1.8187 and 1.8177 with none, one and two.

    Args:
        dataset: of MONAI; it is called in place of its `_transform`.
    """

    __slots__ = ("dataset", "epoch", "seed")  # without __dict__, or MONAI's search for transforms ran in a circle

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.seed = self.epoch = 0

    def __call__(self, index: int) -> Any:
        """Return the sample of that place in the list."""
        seed = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)
        set_rnd(self.dataset.transform, int(seed[0]))
        return type(self.dataset)._transform(self.dataset, index)


class EpochSeed:
    """Make the random numbers of an epoch a function of the seed, the epoch and the rank alone.

    A run that is resumed at an epoch's start therefore draws what the unbroken run drew, whatever happened
    before, without storing the state of each generator in each process. Transforms draw by the sample, see
    `SampleSeed`: neither caches nor the number of loader workers change what they give.

    Args:
        seed: the seed of the run.
        dataset: the data set whose transforms are seeded; or several.
    """

    def __init__(self, seed: int, dataset: Dataset | Sequence[Dataset]) -> None:
        self.seed = seed
        self.samples = [SampleSeed(each) for each in (dataset if isinstance(dataset, (list, tuple)) else [dataset])]
        for sample in self.samples:
            sample.dataset._transform = sample

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed every generator for the epoch that starts."""
        sequence = np.random.SeedSequence([self.seed, engine.state.epoch, int(os.environ.get("RANK", "0"))])
        epoch_seed = int(sequence.generate_state(1)[0])
        random.seed(epoch_seed)
        np.random.seed(epoch_seed)  # third-party transforms use the global generator
        torch.manual_seed(epoch_seed)
        for sample in self.samples:
            sample.seed, sample.epoch = self.seed, engine.state.epoch


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
        self.num_cases = 0
        self.num_steps = 0

    def attach(self, engine: Engine) -> None:
        """Register with the trainer; `TrainingCheckpoint` does it, after the validation of the epoch."""
        engine.add_event_handler(Events.STARTED, self._count_cases)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._note_iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._close_epoch)
        engine.add_event_handler(Events.COMPLETED, self._report)
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, self._count_validation)

    @property
    def best(self) -> dict[str, float] | None:
        """The epoch with the best validation metric so far, the first one if several share it."""
        validated = [epoch for epoch in self.epochs if not math.isnan(epoch.get(self.metric, math.nan))]
        choose = min if self.lower_is_better else max
        return choose(validated, key=lambda epoch: epoch[self.metric]) if validated else None

    def _count_validation(self, _: Engine) -> None:
        self._validations += 1

    def _count_cases(self, engine: Engine) -> None:
        loader = engine.state.dataloader
        self.num_cases = len(getattr(loader, "dataset", loader))

    def _start_epoch(self, engine: Engine) -> None:
        self._losses, self._validations, self._epoch_start = [], 0, time.monotonic()
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
        self.num_steps += 1
        if self._bar is not None:
            self._bar.set_description(f"epoch {engine.state.epoch}/{engine.state.max_epochs}", refresh=False)
            self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self._bar.update()

    def _close_epoch(self, engine: Engine) -> None:
        entry: dict[str, float] = {
            "epoch": engine.state.epoch,
            "loss": idist.all_reduce(float(np.mean(self._losses))) / idist.get_world_size(),  # of all processes
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
                details = self.validator.state.metric_details[name].float()
                if bool(torch.isnan(details).all()):  # MONAI calls that 0: the first epoch would be the best for ever
                    entry[self.metric] = math.nan
                per_class = torch.nanmean(details, dim=0).tolist()
                entry |= {f"{self.metric}/{label}": x for label, x in zip(self.labels[1:], per_class, strict=True)}
        self.epochs.append(entry)
        if math.isnan(entry.get(self.metric, 0.0)) and is_main_process():
            told = "epoch %d: %s is not defined, no reference has a structure; it chooses no best epoch"
            logger.warning(told, entry["epoch"], self.metric.capitalize())
        elif self.metric in entry and (best := self.best) and is_main_process():
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
                "training_cases": self.num_cases,
                "steps": self.num_steps,
                "seconds": sum(epoch["seconds"] for epoch in self.epochs),
                "best": self.best,
                "hardware": describe_hardware(),
                "torch": torch.__version__,
                "epochs": self.epochs,
            },
        )
        logger.info("learning curve in %s", self.output_dir / "learning_curve.png")
