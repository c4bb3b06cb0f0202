# SPDX-License-Identifier: Apache-2.0
"""What tests of bundles share: a small labelled data set, and a bundle that is run as people run it."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from bundle_runs import make_image, read_epochs, write_scan
from filelock import FileLock
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow
from processes import run_fork, run_module
from table import PRETRAININGS, TRAININGS
from torch import Tensor

from tools.bundles import BUNDLES
from tools.errors import ToolsError, find_cause

QUIET = {"PYTHONWARNINGS": "ignore"}


@dataclass
class Bundle:
    """A bundle and one more config file, which makes everything small; configs are named without folder and suffix."""

    root: Path
    small: Path

    def list_files(self, configs: tuple[str | Path, ...]) -> list[str]:
        """Return the files of configs, those in the bundle and others, with the small one at the end."""
        own = [self.root / "configs" / f"{config}.yaml" if isinstance(config, str) else config for config in configs]
        return [str(file) for file in (*own, self.small)]

    def parse(self, *configs: str | Path) -> ConfigParser:
        return ConfigParser(ConfigParser.load_config_files(self.list_files(configs)))

    def make_workflow(self, *configs: str | Path, **overrides: Any) -> ConfigWorkflow:
        metadata = self.root / "configs" / "metadata.json"
        workflow = ConfigWorkflow(self.list_files(configs), str(metadata), logging_file=False, **overrides)
        workflow.initialize()
        return workflow

    def run(self, *configs: str | Path, **overrides: Any) -> None:
        workflow = self.make_workflow(*configs, **overrides)
        workflow.run()
        workflow.finalize()

    def find_error(self, *configs: str | Path, **overrides: Any) -> str:
        """Run what cannot be run and return the sentence that people get to see of it."""
        with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it; the cause is what counts
            self.run(*configs, **overrides)
        cause = find_cause(caught.value)
        assert isinstance(cause, ToolsError), caught.value
        return str(cause)

    def run_in_processes(self, count: int, *configs: str | Path, tell: str, **overrides: Any) -> list[Any]:
        """Run as torchrun does, but in forks of this process: importing everything once more would take most time.

        Returns the value of the expression `tell`, plain lists and numbers, after the training in each process.
        """
        overlay = Path(overrides["output_dir"]).with_name("probe.yaml")
        told = [overlay.with_name(f"rank_{rank}.json") for rank in range(count)]
        write = f"$open('{overlay.parent}/rank_' + os.environ['RANK'] + '.json', 'w').write(str({tell}))"
        overlay.write_text(yaml.safe_dump({"run": ["$@train#trainer.run()", write]}))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(count)}

        def run(rank: str) -> None:
            os.environ.update(common, RANK=rank, LOCAL_RANK=rank)
            self.run(*configs, overlay, **overrides)

        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=run, args=(str(rank),), daemon=True) for rank in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * count
        return [json.loads(path.read_text()) for path in told]

    def make_command(self, *configs: str | Path, **overrides: Any) -> list[str]:
        """Return the command of a user."""
        arguments = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
        files = str(self.list_files(configs))
        return [sys.executable, "-m", "monai.bundle", "run", "--config_file", files, *arguments]

    def run_command(self, *configs: str | Path, **overrides: Any) -> tuple[int, str]:
        """Run the command of a user; return its exit status and all that it wrote."""
        done = run_module(self.make_command(*configs, **overrides), cwd=self.root, environment=QUIET)
        return done.returncode, done.stdout + done.stderr

    def start_from(self, weights: Any, **values: Any) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Save weights and build the network of train.yaml from them; return its tensors and what was counted."""
        folder = self.small.parent
        torch.save(weights, folder / "weights.pt")
        parser = self.parse("train")
        parser.update({"pretrained": str(folder / "weights.pt"), "output_dir": str(folder), **values})
        network = parser.get_parsed_content("network").state_dict()
        report = json.loads((folder / "weights.json").read_text())
        assert report["accepted"]
        return network, report["counts"]

    def check_resuming(self, *configs: str | Path, unbroken: Path, folder: Path, **overrides: Any) -> None:
        """Assert that a run killed in mid-epoch and resumed ends with the weights and records of an unbroken one."""
        self.kill_in_second_epoch(*configs, output_dir=str(folder), **overrides)
        killed = torch.load(folder / "last.pt", weights_only=True)
        assert killed["epoch"] == 1
        assert not (folder / "training.json").exists()
        before = [{**epoch, "seconds": 0} for epoch in (read_epochs(unbroken)[0], killed["record"][0])]
        assert before[0] == before[1], "a seed gives the same epoch in each process"

        torch.rand(7)
        self.run(*configs, output_dir=str(folder), resume=True, **overrides)
        expected, found = (torch.load(result / "last.pt", weights_only=True) for result in (unbroken, folder))
        assert found["epoch"] == expected["epoch"] == 2
        assert found["record"][0] == killed["record"][0], "began anew: the seconds of the first epoch are others"
        torch.testing.assert_close(found["model"], expected["model"], atol=1e-5, rtol=0)
        for resumed, wanted in zip(read_epochs(folder), read_epochs(unbroken), strict=True):
            assert resumed == pytest.approx(wanted, rel=1e-5)

    def kill_in_second_epoch(self, *configs: str | Path, **overrides: Any) -> None:
        """Train in a process that is killed after the first step of the second epoch."""

        def run() -> None:
            workflow = self.make_workflow(*configs, **overrides)
            trainer = workflow.parser.get_parsed_content("train#trainer")

            @trainer.on(Events.ITERATION_COMPLETED)
            def _kill() -> None:
                if trainer.state.epoch == 2:
                    os.kill(os.getpid(), signal.SIGKILL)

            workflow.run()

        run_fork(run, expected=-signal.SIGKILL)


@dataclass
class Run:
    """A finished training of a small bundle, which tests read and do not change."""

    bundle: Bundle
    name: str
    dataset: Path
    folder: Path

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.folder / "training.json").read_text())


def make_once(place: Path, make: Callable[[Path], None]) -> Path:
    """Return a folder that the first of the processes makes; the others wait for it."""
    place.parent.mkdir(exist_ok=True, parents=True)
    with FileLock(f"{place}.lock"):
        if not place.is_dir():
            unfinished = place.with_name(f"{place.name}.part")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(place)
    return place


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all processes of this session see."""
    base = tmp_path_factory.getbasetemp()
    return (base if worker_id == "master" else base.parent) / "bundles"


def write_case(folder: Path, name: str, seed: int, values: Sequence[int] = (0, 1, 2), channels: int = 1) -> None:
    generator, shape = np.random.default_rng(seed), (22, 20, 12)
    centre = np.array(shape) / 2 + generator.uniform(-2, 2, 3)
    distance = np.linalg.norm((np.indices(shape).T - centre).T * np.array([1, 1, 2])[:, None, None, None], axis=0)
    label = (distance < 7).astype(np.uint8) + (distance < 4).astype(np.uint8)
    image = (label * 60 - 40 + generator.normal(0, 10, shape)).astype(np.int16)  # HU
    if channels > 1:  # as in files of four axes
        image = np.stack([image // (number + 1) for number in range(channels)], axis=-1)
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = [10, -20, 30]
    nib.save(nib.Nifti1Image(image, affine), folder / "imagesTr" / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(np.array(values, np.int16)[label], affine), folder / "labelsTr" / f"{name}.nii.gz")


def write_dataset(folder: Path, values: Sequence[int] = (0, 1, 2), channels: int = 1) -> Path:
    """Write four cases for training and two for validation: a ball in a shell, 22 x 20 x 12 voxels."""
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    names = [f"case_{number}" for number in range(6)]
    for number, name in enumerate(names):
        write_case(folder, name, number, values, channels)
    pairs = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in names]
    (folder / "dataset.json").write_text(json.dumps({"training": pairs[:4], "validation": pairs[4:]}))
    return folder


def write_scans(folder: Path, count: int = 4) -> Path:
    """Write scans without labels, the first one for validation, the third smaller than a crop."""
    for number in range(1, count + 1):
        image = make_image(number, (20, 34, 40)) if number == 3 else make_image(number)
        write_scan(folder / f"scan_{number}.nii.gz", image.astype(np.int16))
    return folder


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no picture at the end of each training: it takes 0.4 s, and the trainings that are shared have theirs."""
    monkeypatch.setattr("tools.handlers.training.plot_learning_curve", lambda *_: None)
    monkeypatch.setattr("tools.handlers.samples.plot_crops", lambda *_: None)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A data set of four cases for training and two for validation, for a test to change."""
    return write_dataset(tmp_path / "data")


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[[str, dict[str, Any]], Bundle]:
    """Give a function that takes a bundle's name and the values that make it small."""

    def make(name: str, small: dict[str, Any]) -> Bundle:
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(dict(small)))
        return Bundle(BUNDLES / name, path)

    return make


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Four scans without labels, for a test to change."""
    return write_scans(tmp_path / "scans")


@pytest.fixture(scope="session", params=TRAININGS)
def trained(request: pytest.FixtureRequest, shared: Path) -> Run:
    """A small bundle, trained for two epochs and validated after the second."""
    name = request.param
    row = TRAININGS[name]

    def make(folder: Path) -> None:
        (folder / "small.yaml").write_text(yaml.safe_dump(dict(row.small) | {"in_channels": row.channels}))
        write_dataset(folder / "data", row.label_values, row.channels)
        options = {"dataset_dir": str(folder / "data"), "output_dir": str(folder / "run")}
        Bundle(BUNDLES / name, folder / "small.yaml").run("train", **options)

    place = make_once(shared / f"{name}_train", make)
    return Run(Bundle(BUNDLES / name, place / "small.yaml"), name, place / "data", place / "run")


@pytest.fixture(scope="session", params=PRETRAININGS)
def pretrained(request: pytest.FixtureRequest, shared: Path) -> Run:
    """A small bundle, pre-trained for two epochs and validated after each."""
    name = request.param

    def make(folder: Path) -> None:
        (folder / "small.yaml").write_text(yaml.safe_dump(dict(PRETRAININGS[name].small)))
        write_scans(folder / "data")
        options = {"dataset_dir": str(folder / "data"), "output_dir": str(folder / "run")}
        Bundle(BUNDLES / name, folder / "small.yaml").run("pretrain", **options)

    place = make_once(shared / f"{name}_pretrain", make)
    return Run(Bundle(BUNDLES / name, place / "small.yaml"), name, place / "data", place / "run")
