# SPDX-License-Identifier: Apache-2.0
"""A toy bundle, whose training takes no time, and a stand-in for the process that runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

from tools.studies import runner

TRAIN = """
imports: ["$import json", "$import pathlib"]
bundle_root: .
dataset_dir: null
output_dir: eval
pretrained: null
resume: false
seed: 0
epochs: 2
share: 1.0
network_def: {_target_: torch.nn.Linear, in_features: 2, out_features: 1}
folder: "$pathlib.Path(@output_dir)"
record: {seed: "@seed", steps: "$10 * @epochs", hardware: toy, epochs: [{epoch: "@epochs", loss: "$1 / @epochs"}]}
run:
  - "$@folder.mkdir(parents=True, exist_ok=True)"
  - "$(@folder / 'training.json').write_text(json.dumps(@record))"
  - "$(@folder / 'last.pt').write_text('0.25')"
"""
EVALUATE = """
checkpoint: null
report:
  mean: 0.5
  per_class: {liver: "@share", spleen: "$float(pathlib.Path(@checkpoint).read_text())"}
  per_case: {a: {}, b: {}}
run:
  - "$@folder.mkdir(parents=True, exist_ok=True)"
  - "$(@folder / 'evaluation.json').write_text(json.dumps(@report))"
"""
STUDY: dict[str, Any] = {
    "title": "Pre-training against nothing",
    "seeds": [0],
    "runs": {
        "scratch": {
            "configs": ["configs/train.yaml"],
            "overrides": {"share": 0.1},
            "evaluate": ["configs/evaluate.yaml"],
        },
        # below the run that it needs in no order: `pretrain` stands last
        "pretrained": {"like": "scratch", "overrides": {"pretrained": "{pretrain}/last.pt"}},
        "pretrain": {"configs": ["configs/train.yaml"], "overrides": {"epochs": 4}},
    },
    "table": {"scratch": "random weights", "pretrained": "pre-trained"},
}


class Workshop:
    """A bundle with one study, its data set and its results, and what was started for it.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.bundle, self.data, self.output = folder / "toy", folder / "data", folder / "runs"
        self.study = self.bundle / "studies" / "pretraining.yaml"
        for path in (self.bundle / "configs", self.study.parent, self.data):
            path.mkdir(parents=True)
        for name, text in {"metadata.json": "{}", "train.yaml": TRAIN, "evaluate.yaml": EVALUATE}.items():
            (self.bundle / "configs" / name).write_text(text)
        (self.data / "dataset.json").write_text('{"training": []}')
        self.write(STUDY)
        self.started: list[str] = []
        self.overrides: list[dict[str, Any]] = []
        self.failing: set[str] = set()
        self.interrupted: set[str] = set()

    def write(self, content: Any) -> None:
        self.study.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))

    def change(self, **changes: Any) -> None:
        """Replace keys of the study."""
        self.write({**yaml.safe_load(self.study.read_text()), **changes})

    def change_run(self, name: str, **changes: Any) -> None:
        """Replace keys of one run."""
        runs = yaml.safe_load(self.study.read_text())["runs"]
        self.change(runs={**runs, name: {**runs.get(name, {}), **changes}})

    def run(self, **choice: Any) -> str:
        return runner.run_study(self.study, self.data, self.output, **choice)

    def start(self, files: Sequence[Path], overrides: Mapping[str, Any], output: IO[bytes]) -> int:
        """Stand in for `run_bundle`: leave what a training or an evaluation of the toy leaves."""
        folder = Path(overrides["output_dir"])
        name = folder.relative_to(self.output).as_posix()
        self.started.append(name)
        self.overrides.append(dict(overrides))
        output.write(f"this was {name}\nValueError: too toy\n".encode())
        output.flush()
        if name in self.failing:
            return 1
        folder.mkdir(parents=True, exist_ok=True)
        seed = overrides["seed"]
        if "checkpoint" in overrides:
            assert Path(overrides["checkpoint"]).is_file()
            gain = 0.1 if "pretrained" in overrides else 0.0
            dice = {"liver": 0.6 + gain + 0.01 * seed, "spleen": 0.4 + gain + 0.03 * seed, "absent": None}
            report = {"mean": 0.5 + gain + 0.02 * seed, "per_class": dice, "per_case": {"a": dice, "b": dice}}
            (folder / "evaluation.json").write_text(json.dumps(report))
            return 0
        (folder / "last.pt").write_text("weights")
        if name in self.interrupted:
            raise KeyboardInterrupt
        epochs = [{"epoch": 1, "loss": 0.9}, {"epoch": 2, "loss": 0.25, "loss/contrast": 0.125}]
        record = {"seed": seed, "steps": 20, "hardware": "toy processor, 2 threads", "epochs": epochs}
        (folder / "training.json").write_text(json.dumps(record))
        return 0


@pytest.fixture
def real_workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


@pytest.fixture
def workshop(real_workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setattr(runner, "run_bundle", real_workshop.start)
    return real_workshop
