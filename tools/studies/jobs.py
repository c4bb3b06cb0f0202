# SPDX-License-Identifier: Apache-2.0
"""The runs of a study with their folders: what has been made there, of what, and whether it still holds.

A job is one run with one seed, in `<output_dir>/<run>/seed<seed>/`. It has one step or two, a training and its
evaluation in `evaluation/`, each a command of its own. `state.json` in a step's folder says what the step is made of
and what its parts cost, from before the first part starts; `result.json` is written last and only there while it holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.errors import ToolsError
from tools.files import compute_sha256
from tools.handlers.checkpoints import LAST
from tools.studies.definition import Run, Study, fill_references, merge_configs, require_known

STATE, RESULT = "state.json", "result.json"
TRAINING, EVALUATION = "training", "evaluation"
DATA_SET = "data set"  # among the inputs, which are else keys of the config
_SHOWN_CHANGES, _SHOWN_LENGTH = 3, 60  # in a message, the latter in characters


class StaleRunError(ToolsError):
    """The folder of a run holds what was made of other inputs than those that the study has now."""


@dataclass(frozen=True)
class Step:
    """One command with its folder.

    Args:
        name: `training` or `evaluation`.
        folder: gets everything that the command writes.
        files: the configs, merged in order.
        overrides: keys and values of the command line, without `resume`.
        inputs: what the outcome depends on, each as text: the merged config by key with the seed, the states of the
            runs that are referred to, and the data set if it is known here.
    """

    name: str
    folder: Path
    files: tuple[Path, ...]
    overrides: Mapping[str, Any]
    inputs: Mapping[str, str]

    @property
    def state(self) -> dict[str, Any]:
        """What `state.json` holds: `inputs` and `parts`, the starts so far; new if there is none."""
        path = self.folder / STATE
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"inputs": {}, "parts": []}

    @property
    def is_finished(self) -> bool:
        """Whether a start of the command has ended well."""
        return any(part["status"] == 0 for part in self.state["parts"])

    def check(self) -> None:
        """Raise `StaleRunError` if something worth keeping is in the folder that was made of other inputs."""
        if not (self.is_finished or (self.folder / LAST).is_file()):
            return  # the step starts anew in any case
        made_of = self.state["inputs"]
        wanted = "what the study says now"
        remedy = "delete or move the folder so that it is made again, or take the change back"
        if not made_of:
            raise StaleRunError(self.folder, f"{LAST} of a run outside of this study", wanted, remedy)
        keys = [key for key in {**made_of, **self.inputs} if made_of.get(key) != self.inputs.get(key)]
        if changes := [key for key in keys if key != DATA_SET or key in self.inputs]:
            texts = [f"{key} {_shorten(made_of.get(key))}, now {_shorten(self.inputs.get(key))}" for key in changes]
            shown = "; ".join([*texts[:_SHOWN_CHANGES], *(["..."] if texts[_SHOWN_CHANGES:] else [])])
            raise StaleRunError(self.folder, f"results of other inputs ({shown})", wanted, remedy)


@dataclass(frozen=True)
class Job:
    """A run with a seed.

    Args:
        study: the study it belongs to.
        run: one of its runs.
        seed: one of its seeds.
        output_dir: folder of the study's results.
        dataset_dir: the data set; None where results are only read.
    """

    study: Study
    run: Run
    seed: int
    output_dir: Path
    dataset_dir: Path | None = None

    @property
    def name(self) -> str:
        """The job's name for people, which is its folder's in the results."""
        return f"{self.run.name}/seed{self.seed}"

    @property
    def folder(self) -> Path:
        """The folder of the training; that of the evaluation is inside it."""
        return self.output_dir / self.name

    def iterate_steps(self) -> Iterator[Step]:
        """Yield the commands in order, each with what it is made of at the moment it is asked for.

        The evaluation should therefore be asked for when the training has ended.
        """
        needed = {name: self.output_dir / name / f"seed{self.seed}" for name in self.run.needs}
        inputs = {f"{{{name}}}": _identify_training(folder) for name, folder in needed.items()}
        if self.dataset_dir is not None:
            inputs[DATA_SET] = _identify_data_set(self.dataset_dir)
        common = {"bundle_root": self.study.root, "dataset_dir": self.dataset_dir, "seed": self.seed}
        overrides = {**common, **fill_references(self.run.overrides, needed)}
        yield Step(
            TRAINING,
            self.folder,
            self.run.configs,
            {**overrides, "output_dir": self.folder},
            _describe_config(self.run.configs, self.run.overrides, self.seed) | inputs,
        )
        if self.run.evaluation:
            config = _describe_config(self.run.evaluation, self.run.overrides, self.seed)
            yield Step(
                EVALUATION,
                self.folder / EVALUATION,
                self.run.evaluation,
                {**overrides, "output_dir": self.folder / EVALUATION, "checkpoint": self.folder / LAST},
                config | inputs | {TRAINING: _identify_training(self.folder)},
            )

    def read_result(self) -> dict[str, Any] | None:
        """Return what `result.json` holds, or None if the job is not complete.

        Raises:
            StaleRunError: if the results are of other inputs.
        """
        steps, path = list(self.iterate_steps()), self.folder / RESULT
        for step in steps:
            step.check()
        if not path.is_file() or not all(step.is_finished for step in steps):
            return None
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return result if list(result["steps"]) == [step.name for step in steps] else None


def list_jobs(
    study: Study,
    output_dir: str | Path,
    dataset_dir: str | Path | None = None,
    runs: Collection[str] | None = None,
    seeds: Collection[int] | None = None,
) -> list[Job]:
    """Return the jobs of a study in an order in which they can be done.

    Args:
        study: the study.
        output_dir: folder of its results.
        dataset_dir: the data set.
        runs: only these, and those that they need; default: all.
        seeds: only these of the study's seeds; default: all.

    Raises:
        ConfigValueError: if the study has no such run or seed.
    """
    require_known(runs or (), study.runs, "--runs")
    require_known(seeds or (), study.seeds, "--seeds")
    chosen = set(study.runs if runs is None else runs)
    for name in reversed([*study.runs]):  # the needed stand before those that need them
        chosen |= set(study.runs[name].needs) if name in chosen else set()
    output_dir = Path(output_dir).resolve()
    dataset_dir = None if dataset_dir is None else Path(dataset_dir).resolve()
    return [
        Job(study, run, seed, output_dir, dataset_dir)
        for seed in study.seeds
        if seeds is None or seed in seeds
        for run in study.runs.values()
        if run.name in chosen
    ]


def _describe_config(files: tuple[Path, ...], overrides: Mapping[str, Any], seed: int) -> dict[str, str]:
    """Return the merged config, each value as text by its full key; references to runs keep their braces."""
    return dict(_iterate_leaves(merge_configs(files, {**overrides, "seed": seed})))


def _iterate_leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    if not items:
        yield key, json.dumps(value, ensure_ascii=False, default=str)
    for name, entry in items:
        yield from _iterate_leaves(entry, f"{key}#{name}" if key else str(name))


def _identify_training(folder: Path) -> str:
    """Return a hash that changes when the training of a folder is made again."""
    step = Step(TRAINING, folder, (), {}, {})
    return compute_sha256(folder / STATE) if step.is_finished else "not finished"


def _identify_data_set(dataset_dir: Path) -> str:
    """Return the hash of the list of cases: that of `dataset.json`, else that of the names of the files."""
    listing = dataset_dir if dataset_dir.is_file() else dataset_dir / "dataset.json"
    if listing.is_file():
        return compute_sha256(listing)
    names = sorted(path.relative_to(dataset_dir).as_posix() for path in dataset_dir.rglob("*") if path.is_file())
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _shorten(text: str | None) -> str:
    text = "none" if text is None else text
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}..."
