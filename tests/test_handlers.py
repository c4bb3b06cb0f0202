# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import math
import os
import signal
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparisons import assert_equal_to_scale
from ignite.engine import Engine, Events
from ignite.metrics import Average
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, MeanDice, ValidationHandler, from_engine
from monai.losses import DiceCELoss
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import AsDiscreted, Compose, RandFlipd, RandGaussianNoised, RandSpatialCropd
from torch import nn

from tools.datasets import DiskDataset
from tools.errors import CheckpointError, DivergedTrainingError
from tools.handlers import (
    DiceReport,
    EpochSeed,
    ModelReplacement,
    ReconstructionPreview,
    SwinTransformerExport,
    TrainingCheckpoint,
    TrainingRecord,
    pretraining,
)
from tools.handlers.evaluation import measure_offset_mm
from tools.weights import read_checkpoint, read_state_dict

LABELS = ["background", "ball", "shell"]


class Interruption(BaseException):
    """Stands for the end of a process: nothing catches it."""


def make_data(count: int = 4) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(0, 3, (1, 4, 4, 4), generator=generator).repeat_interleave(2, 1) for _ in range(count)]
    return [
        {"image": label + 0.3 * torch.randn(label.shape, generator=generator), "label": label.float()}
        for label in labels
    ]


class Training:
    """A tiny training run made of new objects, as each process makes its own."""

    def __init__(self, folder: Path, resume: bool = False, epochs: int = 4, seed: int = 7, **changes) -> None:
        torch.manual_seed(99 if resume else 1)  # what resuming does not restore shall show
        self.network = nn.Sequential(
            nn.Conv3d(1, changes.get("width", 4), 3, padding=1),
            nn.Dropout(0.2),
            nn.Conv3d(changes.get("width", 4), 3, 1),
        )
        transform = Compose(
            [RandFlipd(["image", "label"], prob=0.5, spatial_axis=0), RandGaussianNoised("image", prob=0.5, std=0.5)]
        )
        dataset = CacheDataset(make_data(changes.get("cases", 4)), transform, progress=False)
        loader = DataLoader(dataset, batch_size=changes.get("batch_size", 2), shuffle=True)
        optimizer = changes.get("make_optimizer", partial(torch.optim.AdamW, lr=0.02))(self.network.parameters())
        scheduler = WarmupCosineSchedule(optimizer, warmup_steps=2, t_total=epochs * len(loader))
        self.validator = SupervisedEvaluator(
            device="cpu",
            val_data_loader=DataLoader(Dataset(make_data(2)), batch_size=1),
            network=self.network,
            postprocessing=AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=3),
            key_val_metric={
                "mean_dice": MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))
            },
        )
        self.record = TrainingRecord(folder, LABELS, optimizer, self.validator, seed)
        self.checkpoint = TrainingCheckpoint(
            folder,
            self.network,
            optimizer,
            scheduler,
            self.record,
            seed,
            interval=changes.get("interval", 1),
            resume=resume,
        )
        self.trainer = SupervisedTrainer(
            device="cpu",
            max_epochs=epochs,
            train_data_loader=loader,
            network=self.network,
            optimizer=optimizer,
            loss_function=changes.get("loss") or DiceCELoss(to_onehot_y=True, softmax=True),
            train_handlers=[
                EpochSeed(seed, dataset),
                LrScheduleHandler(scheduler, print_lr=False, epoch_level=False),
                ValidationHandler(interval=changes.get("val_interval", 2), validator=self.validator),
                self.checkpoint,
            ],
        )

    def run(self) -> Training:
        self.trainer.run()
        return self

    def run_until(self, epoch: int) -> None:
        """Break off in the first step of `epoch`."""

        def interrupt(engine: Engine) -> None:
            if engine.state.epoch == epoch:
                raise Interruption

        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, interrupt)
        with pytest.raises(Interruption):
            self.trainer.run()


def collect_crops(
    num_workers: int, seed: int = 3, first_epoch: int = 1, draws: int = 0, kind: Any = Dataset
) -> dict[int, torch.Tensor]:
    """Return the crops of the epochs `first_epoch` to 3 of a run that starts there, after `draws` random numbers."""
    data = [{"image": torch.arange(512.0).reshape(1, 8, 8, 8) + 1000 * case} for case in range(3)]
    dataset = kind(data, Compose([RandSpatialCropd("image", (2, 2, 2), random_size=False)]))
    crops: dict[int, list[torch.Tensor]] = {}
    engine = Engine(lambda engine, batch: crops.setdefault(engine.state.epoch, []).append(torch.Tensor(batch["image"])))
    EpochSeed(seed, dataset).attach(engine)

    @engine.on(Events.STARTED)
    def skip(engine: Engine) -> None:
        engine.state.epoch, engine.state.iteration = first_epoch - 1, 3 * (first_epoch - 1)
        torch.rand(draws)
        np.random.rand(draws)

    engine.run(DataLoader(dataset, batch_size=1, shuffle=True, num_workers=num_workers), max_epochs=3)
    return {epoch: torch.stack(batches) for epoch, batches in crops.items()}


@pytest.mark.costs(processes=5)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_epoch_draws_the_same_crops_whatever_happened_before(num_workers):
    whole = collect_crops(num_workers)
    resumed = collect_crops(num_workers, first_epoch=2, draws=5)
    assert list(resumed) == [2, 3]
    assert all(torch.equal(resumed[epoch], whole[epoch]) for epoch in resumed)


@pytest.mark.costs(processes=12)
@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_the_number_of_loader_workers_changes_no_crop(num_workers):
    alone, shared = collect_crops(0), collect_crops(num_workers)
    assert all(torch.equal(alone[epoch], shared[epoch]) for epoch in (1, 2, 3))


@pytest.mark.parametrize("cache", ["memory", "part", "disk"])
def test_a_cache_changes_no_crop(cache, tmp_path):
    kinds = {
        "memory": partial(CacheDataset, progress=False),
        "part": partial(CacheDataset, progress=False, cache_num=1),
        "disk": partial(DiskDataset, cache_dir=tmp_path),
    }
    plain, cached = collect_crops(0), collect_crops(0, kind=kinds[cache])
    assert all(torch.equal(plain[epoch], cached[epoch]) for epoch in (1, 2, 3))


@pytest.mark.costs(processes=6)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_another_epoch_and_another_seed_draw_other_crops(num_workers):
    crops = collect_crops(num_workers)
    by_case = [{int(crop.flatten()[0]) // 1000: crop for crop in crops[epoch]} for epoch in (1, 2)]
    assert not any(torch.equal(by_case[0][case], by_case[1][case]) for case in range(3)), "but for the order"
    assert not torch.equal(crops[1], crops[2])
    assert not torch.equal(crops[2], crops[3])
    assert not torch.equal(crops[1], collect_crops(num_workers, seed=4)[1])


def test_another_rank_draws_other_crops(monkeypatch):
    crops = collect_crops(0)
    monkeypatch.setenv("RANK", "1")
    assert not torch.equal(crops[1], collect_crops(0)[1])


@pytest.mark.costs(trainings=3)
@pytest.mark.numeric
def test_a_resumed_run_ends_like_an_unbroken_one(tmp_path):
    unbroken = Training(tmp_path / "unbroken").run()
    Training(tmp_path / "broken").run_until(3)
    resumed = Training(tmp_path / "broken", resume=True).run()

    assert resumed.trainer.state.epoch == 4
    assert resumed.trainer.state.iteration == unbroken.trainer.state.iteration == 8
    for name, value in unbroken.network.state_dict().items():
        assert_equal_to_scale(resumed.network.state_dict()[name], value)
    for found, expected in zip(resumed.record.epochs, unbroken.record.epochs, strict=True):
        for key in expected.keys() - {"seconds"}:
            assert found[key] == pytest.approx(expected[key], nan_ok=True), key
    last = [read_checkpoint(tmp_path / name / "last.pt") for name in ("unbroken", "broken")]
    assert last[0]["lr_scheduler"] == last[1]["lr_scheduler"]
    assert last[0]["best_metric"] == pytest.approx(last[1]["best_metric"])


def test_the_two_epochs_after_a_new_start_differ_so_that_resuming_is_what_makes_them_equal(tmp_path):
    unbroken = Training(tmp_path / "unbroken").run()
    other = Training(tmp_path / "other", seed=8).run()
    assert unbroken.record.epochs[-1]["loss"] != pytest.approx(other.record.epochs[-1]["loss"])


def test_a_checkpoint_holds_only_data_and_the_whole_state(tmp_path):
    training = Training(tmp_path, epochs=2).run()
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert {"model", "optimizer", "lr_scheduler", "scaler", "record", "random_state"} < state.keys()
    assert (state["epoch"], state["max_epochs"], state["iteration"]) == (2, 2, 4)
    assert state["random_state"] == {"seed": 7}
    assert state["record"] == training.record.epochs
    assert read_state_dict(tmp_path / "last.pt").keys() == training.network.state_dict().keys()
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".pt") == ["best.pt", "last.pt"]


def test_a_finished_run_that_is_resumed_trains_no_more(tmp_path, caplog):
    Training(tmp_path, epochs=2).run()
    weights = read_state_dict(tmp_path / "last.pt")
    again = Training(tmp_path, epochs=2, resume=True).run()
    assert len(again.record.epochs) == 2
    assert all(torch.equal(value, weights[name]) for name, value in again.network.state_dict().items())
    written = json.loads((tmp_path / "training.json").read_text())
    assert (written["steps"], written["training_cases"]) == (4, 4)
    assert "has all 2 epochs, nothing is trained; give --epochs for more" in caplog.text


def test_resuming_without_a_checkpoint_starts_from_the_beginning(tmp_path, caplog):
    with caplog.at_level("INFO"):
        training = Training(tmp_path, resume=True, epochs=1).run()
    assert "training starts from the beginning" in caplog.text
    assert len(training.record.epochs) == 1


def test_an_earlier_run_in_the_folder_is_told_before_it_is_replaced(tmp_path, caplog):
    Training(tmp_path, epochs=1).run()
    Training(tmp_path, epochs=1).run()
    assert "is of an earlier run and will be replaced" in caplog.text


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"seed": 8}, "was trained with seed 7, now 8"),
        ({"epochs": 3}, "resumed with other settings: 3 epochs, 2 were planned; the learning rate is planned anew"),
        ({"batch_size": 1}, "an epoch has 4 steps over 4 cases, it had 2 over 4; the learning rate is planned anew"),
        ({"cases": 6}, "an epoch has 3 steps over 6 cases, it had 2 over 4"),
        ({"make_optimizer": partial(torch.optim.AdamW, lr=0.01)}, "learning_rate 0.01, it was 0.02"),
        ({"make_optimizer": partial(torch.optim.AdamW, lr=0.02, weight_decay=0.5)}, "weight_decay 0.5, it was 0.01"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_what_makes_a_resumed_run_differ_is_told(tmp_path, caplog, changes, warning):
    Training(tmp_path, epochs=2).run_until(2)
    Training(tmp_path, **{"epochs": 2, "resume": True, **changes}).run()
    assert warning in caplog.text


@pytest.mark.costs(trainings=3)
@pytest.mark.parametrize("changes", [{}, {"batch_size": 1}, {"cases": 6}, {"cases": 3}, {"batch_size": 4, "cases": 2}],
                         ids=str)  # fmt: skip
def test_epochs_stay_whole_whatever_an_epoch_holds(tmp_path, changes):
    Training(tmp_path).run_until(3)
    resumed = Training(tmp_path, resume=True, **changes)
    steps = []
    resumed.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: steps.append(engine.state.epoch))
    resumed.run()
    length = len(resumed.trainer.data_loader)
    assert steps == [3] * length + [4] * length
    assert [epoch["epoch"] for epoch in resumed.record.epochs] == [1, 2, 3, 4]
    written = json.loads((tmp_path / "training.json").read_text())
    assert written["training_cases"] == changes.get("cases", 4)
    assert written["steps"] == 2 * 2 + 2 * length
    # at its end the rate is where the new plan ends, and it never rises after the warm-up
    rates = [epoch["learning_rate"] for epoch in resumed.record.epochs[1:]]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.costs(trainings=3)
def test_a_finished_run_goes_on_by_a_new_plan_that_does_not_rise(tmp_path, caplog):
    Training(tmp_path, epochs=4).run()
    resumed = Training(tmp_path, epochs=10, resume=True).run()
    fresh = Training(tmp_path / "fresh", epochs=10).run()
    rates, planned = ([epoch["learning_rate"] for epoch in run.record.epochs[4:]] for run in (resumed, fresh))
    assert len(rates) == 6
    assert rates == pytest.approx(planned)
    assert rates == sorted(rates, reverse=True)
    assert "10 epochs, 4 were planned; the learning rate is planned anew" in caplog.text


@pytest.mark.costs(trainings=4)
def test_what_cannot_be_resumed_is_refused_with_both_values(tmp_path):
    Training(tmp_path, epochs=2).run_until(2)
    for make_optimizer, told in (
        (partial(torch.optim.SGD, lr=0.1), "found the state of AdamW, wanted that of SGD, the optimizer"),
        (partial(torch.optim.AdamW, lr=0.02, amsgrad=True), "found amsgrad False of AdamW, wanted True"),
        (lambda parameters: torch.optim.AdamW(list(parameters)[:2], lr=0.02), r"groups of \[4\] tensors, wanted \[2\]"),
    ):
        with pytest.raises(CheckpointError, match=told):
            Training(tmp_path, epochs=2, resume=True, make_optimizer=make_optimizer).run()


def test_classes_in_another_order_are_not_resumed(tmp_path):
    Training(tmp_path, epochs=2).run_until(2)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert "facts" not in state  # no config runs here
    resumed = Training(tmp_path, epochs=2, resume=True)
    resumed.checkpoint.facts = json.dumps({"labels": ["background", "shell", "ball"]})
    torch.save(state | {"facts": json.dumps({"labels": LABELS})}, tmp_path / "last.pt")
    told = "found the classes background, ball, shell, wanted the classes background, shell, ball"
    with pytest.raises(CheckpointError, match=told):
        resumed.run()


@pytest.mark.costs(trainings=3)
@pytest.mark.parametrize("event", [Events.ITERATION_STARTED, Events.EPOCH_COMPLETED], ids=["step", "validation"])
def test_a_run_that_is_told_to_end_writes_what_it_has_and_goes_on_from_there(tmp_path, event, caplog):
    training = Training(tmp_path, interval=100)

    def tell(engine: Engine) -> None:
        if engine.state.epoch == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    try:
        # after the checkpoint's own handler of the same event
        training.trainer.add_event_handler(event, tell)
        with pytest.raises(SystemExit, match="143"):
            training.run()
    finally:
        signal.signal(signal.SIGTERM, handler)
    done = 2 if event is Events.ITERATION_STARTED else 3
    state = read_checkpoint(tmp_path / "last.pt")
    assert state["epoch"] == done
    assert all(torch.equal(state["model"][name], x) for name, x in training.network.state_dict().items())
    assert f"--resume true goes on with epoch {done + 1}" in caplog.text
    resumed = Training(tmp_path, resume=True).run()
    assert [epoch["epoch"] for epoch in resumed.record.epochs] == [1, 2, 3, 4]
    assert resumed.record.epochs[-1]["learning_rate"] == pytest.approx(0, abs=1e-9)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_the_checkpoint_of_another_network_cannot_be_resumed(tmp_path):
    Training(tmp_path, epochs=2).run_until(2)
    with pytest.raises(CheckpointError, match=r"last\.pt: found 1 of 4 tensors that fit"):
        Training(tmp_path, epochs=2, resume=True, width=5).run()


def test_weights_alone_cannot_be_resumed(tmp_path):
    torch.save({"model": Training(tmp_path).network.state_dict()}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=r"last\.pt: found no optimizer, .*--resume False"):
        Training(tmp_path, resume=True).run()


class ScriptedValidator(Engine):
    """Reaches the given Dice, one after the other."""

    def __init__(self, dice: list[float]) -> None:
        super().__init__(lambda engine, batch: None)
        self.dice = iter(dice)
        self.state.key_metric_name = "mean_dice"

    def validate(self, _: Engine) -> None:
        dice = next(self.dice)
        self.state.metrics = {"mean_dice": dice}
        self.state.metric_details = {"mean_dice": torch.tensor([[dice, math.nan], [dice, 0.5]])}
        self.run([0])


def script_training(folder: Path, dice: list[float], interval: int = 1) -> TrainingRecord:
    """Run epochs that validate to `dice`, in which the only weight is the number of the epoch."""
    network = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    validator = ScriptedValidator(dice)
    record = TrainingRecord(folder, LABELS, optimizer, validator, seed=0)

    def step(engine: Engine, _: int) -> list[dict[str, float]]:
        nn.init.constant_(network.weight, engine.state.epoch)
        return [{"loss": 1 / engine.state.iteration}]

    trainer = Engine(step)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, validator.validate)
    TrainingCheckpoint(folder, network, optimizer, scheduler, record, 0, interval).attach(trainer)
    trainer.run([0, 1], max_epochs=len(dice))
    return record


def test_the_best_checkpoint_is_that_of_the_best_epoch(tmp_path):
    record = script_training(tmp_path, [0.2, 0.6, 0.4, 0.6])
    assert record.best is not None
    assert record.best["epoch"] == 2
    best, last = (read_checkpoint(tmp_path / name) for name in ("best.pt", "last.pt"))
    assert (best["epoch"], best["model"]["weight"].item(), best["best_metric"]) == (2, 2, 0.6)
    assert (last["epoch"], last["model"]["weight"].item(), last["best_metric"]) == (4, 4, 0.6)


def test_an_epoch_whose_dice_is_not_defined_is_never_the_best(tmp_path):
    record = script_training(tmp_path, [math.nan, 0.2, math.nan, 0.1])
    assert record.best is not None
    assert record.best["epoch"] == 2
    assert read_checkpoint(tmp_path / "best.pt")["epoch"] == 2
    assert script_training(tmp_path / "none", [math.nan, math.nan]).best is None
    assert not (tmp_path / "none" / "best.pt").exists()


def test_a_validation_without_any_structure_measures_nothing(tmp_path, caplog):
    training = Training(tmp_path, epochs=2)
    for case in training.validator.data_loader.dataset.data:
        case["label"] = torch.zeros_like(case["label"])
    training.run()
    assert math.isnan(training.record.epochs[-1]["dice"])
    assert json.loads((tmp_path / "training.json").read_text())["best"] is None
    assert "epoch 2: Dice is not defined, no reference has a structure" in caplog.text
    assert not (tmp_path / "best.pt").exists()


def test_the_last_checkpoint_is_written_at_the_interval_and_at_the_end(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(
        "tools.handlers.checkpoints.save_checkpoint", lambda state, path: saved.append((path.name, state["epoch"]))
    )
    script_training(tmp_path, [0.5, 0.4, 0.3, 0.2, 0.6], interval=2)
    assert saved == [("best.pt", 1), ("last.pt", 2), ("last.pt", 4), ("best.pt", 5), ("last.pt", 5)]


def test_the_scale_of_mixed_precision_is_resumed_and_may_be_new(tmp_path):
    def train(resume: bool, scaler: torch.amp.GradScaler) -> float:
        network = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
        record = TrainingRecord(tmp_path, LABELS, optimizer)
        trainer = Engine(lambda engine, batch: [{"loss": 0.5}])
        trainer.scaler = scaler  # where MONAI's trainer keeps it
        TrainingCheckpoint(tmp_path, network, optimizer, scheduler, record, 0, resume=resume).attach(trainer)
        trainer.run([0], max_epochs=1)
        return scaler.get_scale()

    train(False, torch.amp.GradScaler("cpu", init_scale=1024.0))
    assert train(True, torch.amp.GradScaler("cpu", init_scale=8.0)) == 1024
    train(False, torch.amp.GradScaler("cpu", enabled=False))
    assert train(True, torch.amp.GradScaler("cpu", init_scale=8.0)) == 8


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    script_training(tmp_path, [0.5])
    assert not list(tmp_path.iterdir())


def test_the_record_holds_every_epoch_and_a_curve_is_drawn(tmp_path):
    script_training(tmp_path, [0.2, 0.6, 0.4])
    report = json.loads((tmp_path / "training.json").read_text())
    assert [epoch["epoch"] for epoch in report["epochs"]] == [1, 2, 3]
    assert [epoch["loss"] for epoch in report["epochs"]] == pytest.approx(
        [(1 + 1 / 2) / 2, (1 / 3 + 1 / 4) / 2, 11 / 60]
    )
    second = report["epochs"][1]
    assert (second["dice"], second["dice/ball"], second["dice/shell"]) == pytest.approx((0.6, 0.6, 0.5))
    assert report["best"] == second
    assert (report["seed"], report["steps"], report["torch"]) == (0, 6, torch.__version__)
    assert report["training_cases"] == 2
    assert report["seconds"] == pytest.approx(sum(epoch["seconds"] for epoch in report["epochs"]))
    assert (tmp_path / "learning_curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


class ScriptedError(ScriptedValidator):
    """Reaches the given errors; one number without classes, as in pre-training."""

    def validate(self, engine: Engine) -> None:
        super().validate(engine)
        self.state.metric_details = {}
        self.state.metrics["val_other"] = torch.tensor(0.25)


def script_pretraining(folder: Path, errors: list[float]) -> TrainingRecord:
    """Run epochs whose trainer has metrics and whose validation ends with `errors`."""
    network = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    validator = ScriptedError(errors)
    record = TrainingRecord(folder, [], optimizer, validator, metric="reconstruction", lower_is_better=True)
    trainer = Engine(lambda engine, batch: [{"loss": 1 / engine.state.iteration}])
    Average(lambda output: output[0]["loss"] / 2).attach(trainer, "loss/half")
    trainer.add_event_handler(Events.EPOCH_COMPLETED, validator.validate)
    TrainingCheckpoint(folder, network, optimizer, scheduler, record, 0).attach(trainer)
    trainer.run([0, 1], max_epochs=len(errors))
    return record


def test_of_an_error_the_lowest_is_the_best(tmp_path, caplog):
    with caplog.at_level("INFO"):
        record = script_pretraining(tmp_path, [0.6, 0.2, 0.4, 0.2])
    assert record.best is not None
    assert record.best["epoch"] == 2
    best = read_checkpoint(tmp_path / "best.pt")
    assert (best["epoch"], best["best_metric"]) == (2, 0.2)
    assert "epoch 3: Reconstruction 0.4000; best 0.2000 in epoch 2" in caplog.text


def test_all_metrics_of_trainer_and_validator_are_recorded_beside_the_loss(tmp_path):
    script_pretraining(tmp_path, [0.6, 0.2])
    report = json.loads((tmp_path / "training.json").read_text())
    for epoch in report["epochs"]:
        assert list(epoch) == ["epoch", "loss", "learning_rate", "seconds", "loss/half", "other", "reconstruction"]
        assert epoch["other"] == 0.25
        assert epoch["loss/half"] == pytest.approx(epoch["loss"] / 2)
    assert (tmp_path / "learning_curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_epochs_without_validation_have_no_dice(tmp_path):
    training = Training(tmp_path, epochs=3, val_interval=2).run()
    assert ["dice" in epoch for epoch in training.record.epochs] == [False, True, False]
    assert read_checkpoint(tmp_path / "best.pt")["epoch"] == 2


def test_training_without_a_validator_is_recorded_and_has_no_best_checkpoint(tmp_path):
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    record = TrainingRecord(tmp_path, LABELS, optimizer)
    trainer = Engine(lambda engine, batch: [{"loss": 0.5}])
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    TrainingCheckpoint(tmp_path, network, optimizer, scheduler, record, 0).attach(trainer)
    trainer.run([0], max_epochs=2)
    assert json.loads((tmp_path / "training.json").read_text())["best"] is None
    assert (tmp_path / "last.pt").is_file()
    assert not (tmp_path / "best.pt").exists()


def test_a_loss_that_is_no_number_ends_training_and_is_not_saved(tmp_path):
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    calls = []

    def diverge(prediction, label):
        calls.append(1)
        return loss(prediction, label) * (math.nan if len(calls) == 4 else 1)

    with pytest.raises(DivergedTrainingError, match=r"^epoch 2, step 4: found a loss of nan, .*--learning_rate"):
        Training(tmp_path, loss=diverge).run()
    state = read_checkpoint(tmp_path / "last.pt")
    assert state["epoch"] == 1
    assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())


class Recall(nn.Module):
    """Segments perfectly: the image is the wanted label map."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(torch.as_tensor(image)[:, 0].long(), 3).movedim(-1, 1).float()


def evaluate(folder: Path, cases: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict:
    """Return the report on cases `{file: (segmentation, reference)}`."""
    data = [
        {"image": MetaTensor(found[None].float(), meta={"filename_or_obj": name}), "label": wanted[None]}
        for name, (found, wanted) in cases.items()
    ]
    SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(data), batch_size=1),
        network=Recall(),
        postprocessing=AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=3),
        key_val_metric={
            "mean_dice": MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))
        },
        val_handlers=[DiceReport(folder, LABELS, "models/model.pt")],
    ).run()
    return json.loads((folder / "evaluation.json").read_text())


@pytest.fixture
def full():
    label = torch.zeros(4, 4, 4)
    label[:2] = 1  # 32 voxels
    label[2, :2] = 2  # 8 voxels
    return label


def test_dice_is_reported_per_case_and_class_without_background(tmp_path, full, caplog):
    half = full.clone()
    half[1] = 0  # Dice of the ball: 2 × 16 / (16 + 32)
    with caplog.at_level("INFO"):
        report = evaluate(tmp_path, {"data/a.nii.gz": (full, full), "data/b.nii.gz": (half, full)})
    assert report["checkpoint"] == "model.pt"
    assert report["per_case"]["a.nii.gz"] == {"ball": 1, "shell": 1}
    assert report["per_case"]["b.nii.gz"] == pytest.approx({"ball": 2 / 3, "shell": 1})
    assert report["per_class"] == pytest.approx({"ball": 5 / 6, "shell": 1})
    assert report["mean"] == pytest.approx((1 + 5 / 6) / 2)
    assert "a.nii.gz" in caplog.text
    assert "over 2 of 2 cases and 2 of 2 classes" in caplog.text


def test_a_class_that_a_reference_lacks_does_not_count(tmp_path, full):
    ball_only = full.where(full == 1, torch.zeros(()))
    half = ball_only.clone()
    half[1] = 0
    report = evaluate(tmp_path, {"a.nii.gz": (full, full), "b.nii.gz": (half, ball_only)})
    assert report["per_case"]["b.nii.gz"]["shell"] is None
    assert report["per_class"]["shell"] == 1
    assert report["mean"] == pytest.approx((1 + 2 / 3) / 2)  # over volumes, each the mean of its own classes


def test_a_class_that_no_reference_has_is_null(tmp_path, full):
    ball_only = full.where(full == 1, torch.zeros(()))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Mean of empty slice")
        report = evaluate(tmp_path, {"a.nii.gz": (ball_only, ball_only)})
    assert report["per_class"] == {"ball": 1, "shell": None}
    assert report["mean"] == 1


def test_a_mean_says_over_what_it_is_and_of_nothing_is_none(tmp_path, full, caplog):
    empty = torch.zeros_like(full)
    caplog.set_level("INFO")
    both = {"a.nii": (full, full), "b.nii": (full, empty)}
    assert evaluate(tmp_path / "one", both)["mean_over"] == {"cases": 1, "classes": int(full.max())}
    assert "over 1 of 2 cases" in caplog.text
    found = evaluate(tmp_path / "none", {"b.nii": (full, empty)})
    assert found["mean"] is None
    assert found["mean_over"] == {"cases": 0, "classes": 0}
    assert "Dice is not defined: no reference of 1 cases has a structure" in caplog.text


def test_cases_of_the_same_name_are_told_apart(tmp_path, full):
    report = evaluate(tmp_path, {"x/ct.nii.gz": (full, full), "y/ct.nii.gz": (torch.zeros_like(full), full)})
    assert report["per_case"]["x/ct.nii.gz"]["ball"] == 1
    assert report["per_case"]["y/ct.nii.gz"]["ball"] == 0


def test_predictions_that_lie_beside_their_references_are_told(tmp_path, full, caplog):
    caplog.set_level("INFO")
    moved = torch.roll(full, (0, 1), dims=(0, 1))
    moved[:, 0] = 0  # one voxel to the front, a fourth cut off at the back
    report = evaluate(tmp_path, {"a.nii": (full, full), "b.nii": (moved, full)})
    places = [torch.nonzero(label).double().mean(dim=0) for label in (moved, full)]
    shift = (places[0] - places[1]).numpy()
    assert shift[1] > 0.2
    np.testing.assert_allclose(report["offset_mm"]["mean"], shift / 2)
    np.testing.assert_allclose(report["offset_mm"]["standard_error"], np.abs(shift) / 2)  # of 0 and shift
    assert "centres beside those of the references, to the right, front and head: " in caplog.text


def test_the_offset_is_in_mm_along_the_axes_of_the_patient():
    classes = torch.zeros(2, 8, 8, 8)
    classes[1, 2:4, 2:4, 2:4] = 1
    affine = torch.tensor([[0.0, -2, 0, 5], [1.5, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]], dtype=torch.float64)
    moved = torch.roll(classes, (1, 2, 3), dims=(1, 2, 3))  # 1.5 mm to the front, 4 mm to the left, 9 mm to the head
    offset = measure_offset_mm(moved, MetaTensor(classes, affine))
    np.testing.assert_allclose(offset, [-4, 1.5, 9])
    assert measure_offset_mm(torch.zeros(2, 8, 8, 8), classes) is None


def test_one_case_has_no_standard_error(tmp_path, full):
    assert evaluate(tmp_path, {"a.nii": (full, full)})["offset_mm"] is None


@pytest.mark.parametrize(("dice", "epoch"), [([0.5, 0.8, 0.6], 2), ([], 3)], ids=["validated", "not validated"])
def test_the_model_of_the_bundle_is_replaced_and_the_previous_one_kept(dice, epoch, tmp_path):
    record = TrainingRecord(tmp_path, [], torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1))
    record.epochs = [{"epoch": number, "dice": value} for number, value in enumerate(dice, 1)]
    network = torch.nn.Linear(1, 1)
    torch.save({"model": {"weight": torch.full((1, 1), 2.0)}, "epoch": 2}, tmp_path / "best.pt")
    model = tmp_path / "models" / "model.pt"
    trainer = Engine(lambda *_: None)
    trainer.state.epoch = 3
    replacement = ModelReplacement(model, tmp_path, network, record)
    replacement(trainer)
    weight = torch.load(model, weights_only=True)["weight"]
    assert torch.equal(weight, torch.full((1, 1), 2.0) if dice else network.weight)
    assert not model.with_name("model_previous.pt").exists()
    network.weight.data.fill_(7)
    record.epochs = []
    replacement(trainer)
    assert torch.load(model, weights_only=True)["weight"] == 7
    assert torch.equal(torch.load(model.with_name("model_previous.pt"), weights_only=True)["weight"], weight)


def validate_reconstruction(folder: Path, epochs: list[int]) -> None:
    """Validate after `epochs`, two batches each."""

    def step(engine: Engine, batch: int) -> dict[str, object]:
        crops = torch.full((1, 1, 4, 4, 2), float(batch))
        return {"image": crops, "pred": {"reconstruction": crops + 1}, "label": {"reconstruction": crops + 2}}

    evaluator = Engine(step)
    ReconstructionPreview(folder).attach(evaluator)
    for epoch in epochs:
        # as MONAI's evaluators do, which then count the steps of a validation from 1
        evaluator.state.epoch, evaluator.state.max_epochs, evaluator.state.iteration = epoch - 1, epoch, 0
        evaluator.run([10, 20])


def test_each_validation_leaves_a_picture_of_its_first_batch(tmp_path, monkeypatch):
    drawn: list[tuple] = []
    monkeypatch.setattr(pretraining, "plot_reconstruction", lambda *arguments: drawn.append(arguments))
    validate_reconstruction(tmp_path, [2, 4])
    assert [path.name for *_, path, _ in drawn] == ["epoch_0002.png", "epoch_0004.png"]
    for given, restored, wanted, path, title in drawn:
        assert [float(crops.mean()) for crops in (given, restored, wanted)] == [10, 11, 12]
        assert path.parent == tmp_path / "reconstruction"
        assert title == f"epoch {int(path.stem[-4:])}"


def test_pictures_are_files_of_the_first_process(tmp_path, monkeypatch):
    validate_reconstruction(tmp_path, [3])
    assert (tmp_path / "reconstruction" / "epoch_0003.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setenv("RANK", "1")
    validate_reconstruction(tmp_path / "other", [3])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("interval", "written"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_the_transformer_is_exported_at_the_interval_and_at_the_end(interval, written, tmp_path):
    network = nn.ModuleDict({"swinViT": nn.Linear(1, 1, bias=False), "head": nn.Linear(1, 1)})
    path, states = tmp_path / "model_swinvit.pt", []

    def change(engine: Engine, _: int) -> None:
        network["swinViT"].weight.data.fill_(engine.state.epoch)

    trainer = Engine(change)
    SwinTransformerExport(tmp_path, network, interval).attach(trainer)

    @trainer.on(Events.EPOCH_COMPLETED)
    def collect(engine: Engine) -> None:
        if path.exists():
            states.append(torch.load(path, weights_only=True)["state_dict"])
            path.unlink()

    trainer.run([0, 1], max_epochs=5)
    assert all(list(state) == ["module.weight"] for state in states)
    assert [float(state["module.weight"]) for state in states] == written


def test_the_transformer_is_exported_by_the_first_process_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    trainer = Engine(lambda *_: None)
    SwinTransformerExport(tmp_path, nn.ModuleDict({"swinViT": nn.Linear(1, 1)})).attach(trainer)
    trainer.run([0], max_epochs=1)
    assert not list(tmp_path.iterdir())
