# SPDX-License-Identifier: Apache-2.0
"""An ignite handler that writes the state of a training, and goes on from it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from ignite.engine import Engine, Events

from tools.configs import read_running
from tools.configs.models import collect_facts
from tools.errors import CheckpointError
from tools.handlers.training import TrainingRecord
from tools.hardware import is_main_process
from tools.weights import fill, read_checkpoint, save_checkpoint
from tools.weights.classes import FACTS, read_labels

logger = logging.getLogger(__name__)

LAST, BEST = "last.pt", "best.pt"
_STATE = ("model", "optimizer", "lr_scheduler", "scaler", "random_state", "epoch", "max_epochs", "iteration", "record")
# of a scheduler: where it stands; all else is its plan
_MOVING = {"last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step", "_is_initial", "base_lrs"}
_SPEED_FLAGS = {"foreach", "fused", "capturable", "differentiable"}  # of an optimizer: how, not what, it computes
_TERMINATED = 128 + signal.SIGTERM


class TrainingCheckpoint:
    """Save the state of a training run after epochs, and continue from it exactly.

    `last.pt` and `best.pt` hold the network (`model`), what trains with it (`auxiliary`, if there is any), optimizer,
    scheduler, scaler, epoch, steps, best metric, the record of all epochs and the random state, that is the seed (see
    `EpochSeed`). They are tensors and plain containers, load with `weights_only=True`, and replace the previous file in
    one step.

    A run may be resumed with another batch size, number of cases or of processes, learning rate, optimizer setting or
    number of epochs: its position is the epoch, and what has changed is told. The learning rate is planned anew then.
    A run that is told to end (SIGTERM) writes `last.pt` after the step that it is in.

    Args:
        output_dir: folder of the two files.
        network: the network itself, not a distributed wrapper, so that names carry no `module.`.
        optimizer: its state is saved and restored.
        lr_scheduler: its state is saved and restored; it steps once a step of training.
        record: saved and restored; it also knows the best epoch. It is attached here, so that it is complete when it is
            saved.
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
        self._in_step = self._terminated = False
        running = read_running()
        self.facts = collect_facts(running.values) if running and "labels" in running.values else None

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, the record first; must stand after the ValidationHandler."""
        self.record.attach(engine)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._enter_step)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._leave_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save_epoch)

    def _start(self, engine: Engine) -> None:
        path = self.output_dir / LAST
        if self.resume and path.is_file():
            self._restore(engine, path)
        elif self.resume:
            logger.info(
                "no %s yet, training starts from the beginning, from random weights unless others were loaded", path
            )
        elif path.is_file() and is_main_process():
            logger.warning("%s is of an earlier run and will be replaced; --resume true would continue it", path)
        if threading.current_thread() is threading.main_thread():
            pid = os.getpid()

            def terminate(_number: int, _frame: FrameType | None) -> None:
                if os.getpid() != pid:  # a process that loads data has inherited this
                    os._exit(_TERMINATED)
                self._terminated = True
                if not self._in_step:  # in validation, or between epochs: the weights stand still
                    self._save_and_exit(engine)

            previous = signal.signal(signal.SIGTERM, terminate)
            engine.add_event_handler(Events.COMPLETED, lambda: signal.signal(signal.SIGTERM, previous))

    def _enter_step(self, engine: Engine) -> None:
        self._in_step = True

    def _leave_step(self, engine: Engine) -> None:
        self._in_step = False
        if self._terminated:
            self._save_and_exit(engine)

    def _save_and_exit(self, engine: Engine) -> None:
        """Write what there is as the state after the last whole epoch, which is the position to go on from."""
        epoch = len(self.record.epochs)
        if is_main_process():
            save_checkpoint(self._collect(engine, epoch), self.output_dir / LAST)
            told = "told to end in epoch %d; %s has the weights of this step, --resume true goes on with epoch %d"
            logger.warning(told, engine.state.epoch, self.output_dir / LAST, epoch + 1)
        sys.exit(_TERMINATED)

    def _restore(self, engine: Engine, path: Path) -> None:
        state = read_checkpoint(path)
        wanted = _STATE if self.auxiliary is None else (*_STATE, "auxiliary")
        if absent := [key for key in wanted if key not in state]:
            raise CheckpointError(
                path, f"no {', '.join(absent)}", "a checkpoint of a training run", "start anew with --resume False"
            )
        old_labels = read_labels(path, state)
        labels = read_labels(path, {FACTS: self.facts})
        if self.facts is not None and old_labels is not None and labels != old_labels:
            found, asked = (f"the classes {', '.join(names)}" for names in (old_labels, labels or []))
            remedy = "restore labels, or start anew with --resume False --pretrained and that file"
            raise CheckpointError(path, found, f"{asked} (labels)", remedy)
        if state["random_state"]["seed"] != self.seed:
            logger.warning("%s was trained with seed %s, now %s", path, state["random_state"]["seed"], self.seed)
        fill(self.network, state["model"], path)
        if self.auxiliary is not None:
            fill(self.auxiliary, state["auxiliary"], path)
        epoch, length = int(state["epoch"]), int(engine.state.epoch_length)
        changes = self._restore_optimizer(state, path)
        old_length = int(state.get("epoch_length") or state["iteration"] / max(1, epoch))
        cases, old_cases = self.record.num_cases, state.get("training_cases", self.record.num_cases)
        if length != old_length or cases != old_cases:
            changes.append(f"an epoch has {length} steps over {cases} cases, it had {old_length} over {old_cases}")
        if state["max_epochs"] != engine.state.max_epochs:
            changes.append(f"{engine.state.max_epochs} epochs, {state['max_epochs']} were planned")
        self._restore_schedule(state, path, changes, epoch, length)
        scaler = getattr(engine, "scaler", None)
        if scaler is not None and state["scaler"]:  # empty when mixed precision was off
            scaler.load_state_dict(state["scaler"])
        self.record.epochs = state["record"]
        self.record.num_steps = state.get("steps", state["iteration"])
        engine.state.epoch = epoch
        engine.state.iteration = epoch * length  # ignite ends a run by its steps
        logger.info("resumed from %s after epoch %d of %d", path, epoch, engine.state.max_epochs)
        if epoch >= engine.state.max_epochs:
            logger.warning("%s has all %d epochs, nothing is trained; give --epochs for more", path, epoch)

    def _restore_optimizer(self, state: Mapping[str, Any], path: Path) -> list[str]:
        """Take over the moments; settings are those of the config. Return what has changed."""
        saved, fresh = state["optimizer"], self.optimizer.state_dict()
        name, old_name = type(self.optimizer).__name__, state.get("optimizer_class", type(self.optimizer).__name__)
        sizes, old_sizes = ([len(group["params"]) for group in side["param_groups"]] for side in (fresh, saved))
        remedy = "restore the setting, or start anew with --resume False --pretrained and that file"
        if name != old_name:
            raise CheckpointError(path, f"the state of {old_name}", f"that of {name}, the optimizer", remedy)
        if sizes != old_sizes:
            raise CheckpointError(path, f"an optimizer of groups of {old_sizes} tensors", f"{sizes}", remedy)
        changes = []
        for group, old in zip(fresh["param_groups"], saved["param_groups"], strict=True):
            for key in group.keys() & old.keys() - {"params", "param_names", "lr"} - _SPEED_FLAGS:
                if group[key] == old[key]:
                    continue
                if isinstance(group[key], bool):  # amsgrad and the like need moments of their own
                    raise CheckpointError(path, f"{key} {old[key]} of {name}", f"{group[key]}", remedy)
                key_name = "learning_rate" if key == "initial_lr" else key
                changes.append(f"{key_name} {group[key]}, it was {old[key]}")
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": fresh["param_groups"]})
        return list(dict.fromkeys(changes))

    def _restore_schedule(
        self, state: Mapping[str, Any], path: Path, changes: list[str], epoch: int, length: int
    ) -> None:
        """Go on as planned where the plan is the same, else plan anew from the position in epochs."""
        scheduler, saved = self.lr_scheduler, state["lr_scheduler"]
        by_epochs = saved["last_epoch"] <= epoch  # it steps once an epoch, not once a step
        position = epoch if by_epochs else epoch * length
        plan, old_plan = ({k: v for k, v in s.items() if k not in _MOVING} for s in (scheduler.state_dict(), saved))
        base, old_base = scheduler.base_lrs, saved.get("base_lrs", scheduler.base_lrs)
        if plan == old_plan and list(base) == list(old_base) and saved["last_epoch"] == position:
            scheduler.load_state_dict(saved)
            for group, old in zip(self.optimizer.param_groups, state["optimizer"]["param_groups"], strict=True):
                group["lr"] = old["lr"]
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that no step of the optimizer goes before
                for _ in range(position - scheduler.last_epoch):
                    scheduler.step()
            rate = self.optimizer.param_groups[0]["lr"]
            if plan != old_plan or list(base) != list(old_base):
                changes.append(f"the learning rate is planned anew, it is {rate:.3g} now")
        if changes and is_main_process():
            logger.warning("%s is resumed with other settings: %s", path, "; ".join(changes))

    def _save_epoch(self, engine: Engine) -> None:
        if not is_main_process():
            return
        epoch, best = engine.state.epoch, self.record.best
        is_best = best is not None and best["epoch"] == epoch
        is_due = epoch % self.interval == 0 or epoch == engine.state.max_epochs
        if not (is_best or is_due):
            return
        state = self._collect(engine, epoch)
        if is_best:
            save_checkpoint(state, self.output_dir / BEST)
        if is_due:
            save_checkpoint(state, self.output_dir / LAST)

    def _collect(self, engine: Engine, epoch: int) -> dict[str, Any]:
        scaler, best = getattr(engine, "scaler", None), self.record.best
        length = int(engine.state.epoch_length)
        state = {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_class": type(self.optimizer).__name__,
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "epoch": epoch,
            "max_epochs": engine.state.max_epochs,
            "epoch_length": length,
            "iteration": epoch * length,
            "steps": self.record.num_steps,
            "training_cases": self.record.num_cases,
            "best_metric": best[self.record.metric] if best else None,
            "record": self.record.epochs,
            "random_state": {"seed": self.seed},
        }
        if self.facts is not None:
            state[FACTS] = self.facts
        return state | ({"auxiliary": self.auxiliary.state_dict()} if self.auxiliary is not None else {})
