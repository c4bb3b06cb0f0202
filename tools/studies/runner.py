# SPDX-License-Identifier: Apache-2.0
"""Doing what is not done yet of a study: each training and each evaluation as the command that a user would type."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from monai.utils import ensure_tuple

from tools.bundles import REPOSITORY, make_command, run_bundle
from tools.errors import MissingFileError, ToolsError
from tools.files import write_json
from tools.handlers.checkpoints import LAST
from tools.hardware import describe_hardware
from tools.studies.definition import read_study
from tools.studies.jobs import EVALUATION, RESULT, STATE, TRAINING, Job, Step, list_jobs
from tools.tables import format_table

logger = logging.getLogger(__name__)

LOG = "log.txt"
PACKAGES = ("monai", "torch", "numpy", "nibabel", "pytorch-ignite")


class FailedRunsError(ToolsError):
    """A run of a study, or some, could not be done; those that do not need them are."""


class FolderInUseError(ToolsError):
    """Another process works in the folder of a run."""


def run_study(
    path: str | Path,
    dataset_dir: str | Path,
    output_dir: str | Path,
    runs: str | Collection[str] | None = None,
    seeds: int | Collection[int] | None = None,
) -> str:
    """Do what is not done yet of a study and return a table of its runs.

    A run that was interrupted continues from its `last.pt`. When a run fails, those that need it are left out and
    the others are done. Several processes may work on one study at a time: each run has a lock.

    Args:
        path: the study, `<bundle>/studies/<name>.yaml`.
        dataset_dir: the data set.
        output_dir: gets `<run>/seed<seed>/` with the files of each run, `log.txt` and `result.json`.
        runs: only these, and those that they need; default: all.
        seeds: only these of the study's seeds; default: all.

    Raises:
        MissingFileError: if the study or the data set does not exist.
        ConfigValueError: if the study, `runs` or `seeds` cannot be understood.
        UnknownOverrideError: if an override is no key of the run's configs.
        StaleRunError: if a folder holds results of other inputs; nothing is started then.
        FailedRunsError: if a run failed or was left out, after all others.
    """
    study, dataset_dir = read_study(path), Path(dataset_dir)
    if not dataset_dir.exists():
        raise MissingFileError(dataset_dir, "no such folder", "the data set of the study", "correct --dataset_dir")
    names = None if runs is None else ensure_tuple(runs)
    jobs = list_jobs(study, output_dir, dataset_dir, names, None if seeds is None else ensure_tuple(seeds))
    for job in jobs:
        job.read_result()  # stale results are found before the first hour is spent
    rows, failures = [], {}
    for number, job in enumerate(jobs, 1):
        label = f"{job.name} ({number} of {len(jobs)})"
        if absent := [name for name in job.run.needs if f"{name}/seed{job.seed}" in failures]:
            failures[job.name] = f"needs {', '.join(absent)}"
            logger.info("%s: left out, it needs %s", label, ", ".join(absent))
            continue
        try:
            result = _finish(job, label)
        except ToolsError as error:
            failures[job.name] = f"{error.found}; {error.remedy}"
            logger.error("%s: failed, %s", label, failures[job.name])
            continue
        minutes = sum(step["seconds"] for step in result["steps"].values()) / 60
        dice = result["dice"]["mean"] if result["dice"] else None
        rows.append([job.name, minutes, result["final"].get("loss"), dice])
    if failures:
        raise FailedRunsError(
            study.path,
            f"{len(failures)} of {len(jobs)} runs not done: "
            + ", ".join(f"{name} [{reason}]" for name, reason in failures.items()),
            "all of them done",
            "correct the cause and start the study again: what is done is kept",
        )
    return format_table(["run", "minutes", "loss", "Dice"], rows)


def _finish(job: Job, label: str) -> dict[str, Any]:
    """Do the steps of a job that are not done, write its result and return it."""
    with _lock(job.folder / LOG) as log:
        if result := job.read_result():
            logger.info("%s: done before", label)
            return result
        (job.folder / RESULT).unlink(missing_ok=True)
        start = time.monotonic()
        for step in job.iterate_steps():
            _finish_step(step, log, label)
        result = _describe_result(job)
        write_json(job.folder / RESULT, result)
        logger.info("%s: done in %.0f s", label, time.monotonic() - start)
        return result


@contextlib.contextmanager
def _lock(log_path: Path) -> Iterator[IO[bytes]]:
    """Open a log file for appending and keep every other process that asks for it out.

    The lock is one of the kernel (flock) on the open file, not a file that a crash would leave behind. Commands whose
    output goes to the log inherit it with the file: were the runner killed, the folder would stay locked until the
    training that it started has ended, too.

    Raises:
        FolderInUseError: if another process has the file open under this lock.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            remedy = "wait until it has ended, or stop it"
            raise FolderInUseError(log_path.parent, "another process at work", "one at a time", remedy) from error
        yield log


def _finish_step(step: Step, log: IO[bytes], label: str) -> None:
    """Start the command of a step, again if need be, unless it has ended well before."""
    step.check()
    if step.is_finished:
        return
    # what was lost with a start that left no checkpoint is no part of the result
    can_resume = step.name == TRAINING and (step.folder / LAST).is_file()
    parts = step.state["parts"] if can_resume else []
    for part in parts:
        if part["seconds"] is None:  # the runner was killed: the part lasted until its last line in the log
            part["seconds"] = max(0.0, Path(log.name).stat().st_mtime - part["started"])
    part = {"started": time.time(), "seconds": None, "status": None}
    part |= {"commit": _find_commit(), "versions": _list_versions()}
    state = {"inputs": dict(step.inputs), "parts": [*parts, part]}
    write_json(step.folder / STATE, state)
    logger.info("%s: %s %s, output in %s", label, step.name, "continues" if can_resume else "starts", log.name)
    start, status = time.monotonic(), None
    try:
        status = run_bundle(step.files, {**step.overrides, **({"resume": True} if can_resume else {})}, log)
    finally:
        part |= {"seconds": time.monotonic() - start, "status": status}
        write_json(step.folder / STATE, state)
    if status:
        lines = Path(log.name).read_text(encoding="utf-8", errors="replace").splitlines()
        reason = next(line.strip() for line in reversed(lines) if line.strip())
        found = f"exit status {status} of the {step.name} ({reason})"
        raise FailedRunsError(label, found, "0", f"see the end of {log.name}")


def _describe_result(job: Job) -> dict[str, Any]:
    """Return all that a table or a reader could want to know of a finished job."""
    record_path, steps = job.folder / "training.json", list(job.iterate_steps())
    record = json.loads(record_path.read_text(encoding="utf-8")) if record_path.is_file() else {}
    return {
        "run": job.run.name,
        "seed": job.seed,
        "steps": {step.name: _describe_step(step, job) for step in steps},
        "hardware": record.get("hardware") or describe_hardware(),
        "iterations": record.get("steps"),
        "epochs": len(record.get("epochs", [])),
        "final": record["epochs"][-1] if record.get("epochs") else {},
        "training_cases": record.get("training_cases"),
        "dice": _read_dice(steps[-1].folder / "evaluation.json") if steps[-1].name == EVALUATION else None,
    }


def _describe_step(step: Step, job: Job) -> dict[str, Any]:
    parts = step.state["parts"]
    exact = make_command(step.files, step.overrides)
    return {
        "command": shlex.join(_generalize(exact, job)),
        "exact_command": shlex.join(exact),
        "inputs_sha256": hashlib.sha256(json.dumps(step.state["inputs"], sort_keys=True).encode()).hexdigest(),
        "seconds": sum(part["seconds"] for part in parts),
        "starts": len(parts),
        "versions": parts[-1]["versions"],
        # more than one if the code changed between an interruption and the continuation
        "commits": list(dict.fromkeys(part["commit"] for part in parts)),
    }


def _generalize(command: list[str], job: Job) -> list[str]:
    """Return a command without the places of this machine, to be typed in the root of the repository."""
    root = job.study.root
    places = {
        sys.executable: "python",
        str(root): root.relative_to(REPOSITORY).as_posix() if root.is_relative_to(REPOSITORY) else "BUNDLE",
        str(job.dataset_dir): "DATASET",
        str(job.output_dir): "RUNS",
        f"{REPOSITORY}/": "",
    }
    for place in sorted(places, key=len, reverse=True):  # the inner one of two before the outer
        command = [word.replace(place, places[place]) for word in command]
    return command


def _read_dice(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingFileError(path, "no such file", "the report of the evaluation", "look at its log")
    report = json.loads(path.read_text(encoding="utf-8"))
    return {"mean": report["mean"], "per_class": report["per_class"], "cases": len(report["per_case"])}


def _list_versions() -> dict[str, str]:
    packages = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {"python": platform.python_version(), **packages}


def _find_commit() -> str | None:
    """Return the commit of the code, with `-dirty` if tools or bundles differ from it; None outside of a checkout."""
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*words: str) -> str | None:
        answer = subprocess.run([git, "-C", str(REPOSITORY), *words], capture_output=True, text=True, check=False)
        return None if answer.returncode else answer.stdout.strip()

    # the code may be a copy without history inside somebody else's checkout
    if ask("rev-parse", "--show-prefix") != "" or (commit := ask("rev-parse", "HEAD")) is None:
        return None
    return f"{commit}-dirty" if ask("status", "--porcelain", "--", "tools", "bundles/*/configs") else commit
