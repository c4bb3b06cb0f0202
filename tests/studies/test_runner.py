# SPDX-License-Identifier: Apache-2.0
"""A study is done in order and once, survives interruptions and failures, and never mixes old results with new."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.errors import ConfigValueError, MissingFileError
from tools.studies import runner
from tools.studies.jobs import StaleRunError
from tools.studies.runner import FailedRunsError

ALL = [
    "scratch/seed0",
    "scratch/seed0/evaluation",
    "pretrain/seed0",
    "pretrained/seed0",
    "pretrained/seed0/evaluation",
]


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.costs(processes=2)
@pytest.mark.usefixtures("commands_in_forks")
def test_real_commands_train_and_evaluate(real_workshop):
    text = real_workshop.run(runs="scratch")
    folder = real_workshop.output / "scratch" / "seed0"
    result = read(folder / "result.json")
    assert result["dice"] == {"mean": 0.5, "per_class": {"liver": 0.1, "spleen": 0.25}, "cases": 2}
    assert result["final"] == {"epoch": 2, "loss": 0.5}
    assert result["iterations"] == 20
    assert result["steps"]["training"]["seconds"] > 0
    assert text.splitlines()[-1].split() == ["scratch/seed0", text.split()[-3], "0.5000", "0.5000"]
    log = (folder / "log.txt").read_text()
    assert result["steps"]["training"]["exact_command"].replace(sys.executable, "python") in log
    assert result["steps"]["training"]["command"].startswith("python -m monai.bundle run --config_file")
    assert "--dataset_dir DATASET" in result["steps"]["evaluation"]["command"]
    assert "--checkpoint RUNS/scratch/seed0/last.pt" in result["steps"]["evaluation"]["command"]


def test_what_is_needed_comes_first_and_its_folder_replaces_the_reference(workshop):
    workshop.run()
    assert sorted(workshop.started) == sorted(ALL)
    assert workshop.started.index("pretrain/seed0") < workshop.started.index("pretrained/seed0")
    overrides = workshop.overrides[workshop.started.index("pretrained/seed0")]
    assert overrides["pretrained"] == str(workshop.output / "pretrain" / "seed0" / "last.pt")
    assert overrides["share"] == 0.1


def test_each_seed_uses_what_was_made_with_the_same_seed(workshop):
    workshop.change(seeds=[0, 7])
    workshop.run()
    overrides = workshop.overrides[workshop.started.index("pretrained/seed7")]
    assert overrides["pretrained"] == str(workshop.output / "pretrain" / "seed7" / "last.pt")
    assert overrides["seed"] == 7


def test_what_is_done_is_not_repeated(workshop, caplog):
    caplog.set_level("INFO")
    first = workshop.run()
    workshop.started.clear()
    assert workshop.run() == first
    assert workshop.started == []
    assert "scratch/seed0 (1 of 3): done before" in caplog.text


def test_chosen_runs_bring_what_they_need(workshop):
    workshop.change(seeds=[0, 1])
    workshop.run(runs=["pretrained"], seeds=1)
    assert workshop.started == ["pretrain/seed1", "pretrained/seed1", "pretrained/seed1/evaluation"]


@pytest.mark.parametrize(("choice", "words"), [({"runs": "scrath"}, "scratch"), ({"seeds": [3]}, "one of 0")])
def test_a_choice_that_the_study_does_not_have_is_refused(workshop, choice, words):
    with pytest.raises(ConfigValueError, match=words):
        workshop.run(**choice)


def test_a_data_set_that_is_not_there_is_refused(workshop):
    with pytest.raises(MissingFileError, match="no such folder"):
        runner.run_study(workshop.study, workshop.data / "none", workshop.output)


def test_an_interrupted_run_continues_and_its_seconds_add_up(workshop):
    workshop.interrupted = {"scratch/seed0"}
    with pytest.raises(KeyboardInterrupt):
        workshop.run()
    folder = workshop.output / "scratch" / "seed0"
    assert not (folder / "result.json").exists()
    state = read(folder / "state.json")
    assert state["parts"][0]["status"] is None
    state["parts"][0]["seconds"] = 1000.0
    (folder / "state.json").write_text(json.dumps(state))
    workshop.interrupted = set()
    workshop.run()
    assert [overrides.get("resume") for overrides in workshop.overrides[:2]] == [None, True]
    step = read(folder / "result.json")["steps"]["training"]
    assert step["starts"] == 2
    assert 1000 < step["seconds"] < 1001
    assert "--resume" not in step["command"]


def test_a_run_whose_runner_was_killed_lasted_until_its_last_output(workshop):
    workshop.interrupted = {"scratch/seed0"}
    with pytest.raises(KeyboardInterrupt):
        workshop.run()
    folder = workshop.output / "scratch" / "seed0"
    state = read(folder / "state.json")
    state["parts"][0]["seconds"] = None
    (folder / "state.json").write_text(json.dumps(state))
    os.utime(folder / "log.txt", (state["parts"][0]["started"] + 500,) * 2)
    workshop.interrupted = set()
    workshop.run()
    assert 500 < read(folder / "result.json")["steps"]["training"]["seconds"] < 501


def test_a_run_that_left_no_checkpoint_starts_anew(workshop):
    workshop.failing = {"scratch/seed0"}
    with pytest.raises(FailedRunsError):
        workshop.run(runs="scratch")
    workshop.failing = set()
    workshop.change_run("scratch", overrides={"share": 0.2})  # there is nothing to mix yet
    workshop.run(runs="scratch")
    assert "resume" not in workshop.overrides[1]
    assert read(workshop.output / "scratch" / "seed0" / "result.json")["steps"]["training"]["starts"] == 1


def test_a_finished_training_is_kept_when_its_evaluation_fails(workshop):
    workshop.failing = {"scratch/seed0/evaluation"}
    with pytest.raises(FailedRunsError, match="evaluation"):
        workshop.run(runs="scratch")
    workshop.failing = set()
    workshop.started.clear()
    workshop.run(runs="scratch")
    assert workshop.started == ["scratch/seed0/evaluation"]


def test_an_evaluation_that_is_deleted_is_made_again_alone(workshop):
    workshop.run()
    shutil.rmtree(workshop.output / "scratch" / "seed0" / "evaluation")
    workshop.started.clear()
    workshop.run()
    assert workshop.started == ["scratch/seed0/evaluation"]


def test_an_evaluation_that_is_added_later_needs_no_new_training(workshop):
    workshop.run()
    workshop.change_run("pretrain", evaluate=["configs/evaluate.yaml"])
    workshop.started.clear()
    workshop.run()
    assert workshop.started == ["pretrain/seed0/evaluation"]
    assert read(workshop.output / "pretrain" / "seed0" / "result.json")["dice"]["cases"] == 2


@pytest.mark.parametrize("kind", ["override", "config", "data"])
def test_results_of_other_inputs_are_refused_before_anything_starts(workshop, kind):
    workshop.run()
    workshop.started.clear()
    if kind == "override":
        workshop.change_run("pretrain", overrides={"epochs": 5})
        words = "epochs 4, now 5"
    elif kind == "config":
        config = workshop.bundle / "configs" / "train.yaml"
        config.write_text(config.read_text().replace("share: 1.0", "share: 0.5"))
        words = "share 1.0, now 0.5"
    else:
        (workshop.data / "dataset.json").write_text('{"training": [1]}')
        words = "data set"
    with pytest.raises(StaleRunError, match=f"[(]{words}") as caught:
        workshop.run()
    assert str(workshop.output) in str(caught.value)
    assert "delete or move the folder" in str(caught.value)
    assert workshop.started == []


def test_a_changed_evaluation_makes_only_its_own_folder_stale(workshop):
    workshop.run()
    config = workshop.bundle / "configs" / "evaluate.yaml"
    config.write_text(config.read_text().replace("mean: 0.5", "mean: 0.6"))
    with pytest.raises(StaleRunError, match=r"scratch/seed0/evaluation: .*report#mean 0\.5, now 0\.6"):
        workshop.run()
    for name in ("scratch", "pretrained"):
        shutil.rmtree(workshop.output / name / "seed0" / "evaluation")
    workshop.started.clear()
    workshop.run()
    assert workshop.started == ["scratch/seed0/evaluation", "pretrained/seed0/evaluation"]


def test_an_interrupted_run_does_not_continue_with_other_inputs(workshop):
    workshop.interrupted = {"scratch/seed0"}
    with pytest.raises(KeyboardInterrupt):
        workshop.run()
    workshop.change_run("scratch", overrides={"share": 0.2})
    with pytest.raises(StaleRunError, match=re.escape("share 0.1, now 0.2")):
        workshop.run()


def test_what_was_made_of_a_run_is_stale_once_that_run_is_made_again(workshop):
    workshop.run()
    shutil.rmtree(workshop.output / "pretrain")
    with pytest.raises(StaleRunError, match=r"pretrained/seed0: .*\{pretrain\}"):
        workshop.run()


def test_a_comment_in_a_config_changes_nothing(workshop):
    workshop.run()
    config = workshop.bundle / "configs" / "train.yaml"
    config.write_text(f"# a remark\n{config.read_text()}")
    workshop.started.clear()
    workshop.run()
    assert workshop.started == []


def test_a_checkpoint_of_unknown_origin_is_not_continued(workshop):
    folder = workshop.output / "scratch" / "seed0"
    folder.mkdir(parents=True)
    (folder / "last.pt").write_text("somebody's")
    with pytest.raises(StaleRunError, match="outside of this study"):
        workshop.run()


def test_a_failure_leaves_out_only_what_needs_it(workshop, caplog):
    workshop.failing = {"pretrain/seed0"}
    with pytest.raises(FailedRunsError) as caught:
        workshop.run()
    message = str(caught.value)
    assert "2 of 3 runs not done" in message
    assert "exit status 1 of the training (ValueError: too toy)" in message
    assert str(workshop.output / "pretrain" / "seed0" / "log.txt") in message
    assert "pretrained/seed0 [needs pretrain]" in message
    assert sorted(workshop.started) == sorted(ALL[:3])
    assert (workshop.output / "scratch" / "seed0" / "result.json").is_file()
    workshop.failing = set()
    workshop.started.clear()
    workshop.run()
    assert workshop.started == ["pretrain/seed0", "pretrained/seed0", "pretrained/seed0/evaluation"]


def test_an_evaluation_without_a_report_is_a_failure(workshop, monkeypatch):
    monkeypatch.setattr(runner, "run_bundle", lambda *_: 0)
    with pytest.raises(FailedRunsError, match="look at its log"):
        workshop.run(runs="scratch")


@pytest.mark.costs(processes=1)
def test_a_folder_stays_locked_as_long_as_the_command_lives(workshop, monkeypatch):
    commands = []

    def start_and_die(_files, _overrides, output):
        commands.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=output))
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_bundle", start_and_die)
    with pytest.raises(KeyboardInterrupt):
        workshop.run(runs="scratch")
    monkeypatch.setattr(runner, "run_bundle", workshop.start)
    with pytest.raises(FailedRunsError, match="another process at work; wait until it has ended"):
        workshop.run()
    assert workshop.started == ["pretrain/seed0", "pretrained/seed0", "pretrained/seed0/evaluation"]
    commands[0].communicate(b"\n", timeout=60)
    workshop.run()
    assert workshop.started[3:] == ["scratch/seed0", "scratch/seed0/evaluation"]


def test_the_result_says_how_it_came_about(workshop):
    start = time.time()
    workshop.run()
    result = read(workshop.output / "pretrain" / "seed0" / "result.json")
    step = result["steps"]["training"]
    assert result["final"] == {"epoch": 2, "loss": 0.25, "loss/contrast": 0.125}
    assert (result["run"], result["seed"], result["dice"]) == ("pretrain", 0, None)
    assert result["hardware"] == "toy processor, 2 threads"
    assert 0 <= step["seconds"] <= time.time() - start
    assert set(step["versions"]) == {"python", "monai", "torch", "numpy", "nibabel", "pytorch-ignite"}
    assert re.fullmatch("[0-9a-f]{64}", step["inputs_sha256"])
    assert all(commit is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", commit) for commit in step["commits"])


def test_the_command_of_a_bundle_in_the_repository_is_for_its_root(workshop, monkeypatch):
    monkeypatch.setattr(runner, "REPOSITORY", workshop.bundle.parent)
    workshop.run(runs="pretrain")
    step = read(workshop.output / "pretrain" / "seed0" / "result.json")["steps"]["training"]
    assert step["command"] == (
        "python -m monai.bundle run --config_file '[\"toy/configs/train.yaml\"]' --bundle_root toy"
        " --dataset_dir DATASET --seed 0 --epochs 4 --output_dir RUNS/pretrain/seed0"
    )


def test_the_commit_is_that_of_the_code_and_marked_when_the_code_differs(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "REPOSITORY", tmp_path)
    assert runner._find_commit() is None
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "a.py").write_text("a")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init"], ["add", "."], [*identity, "commit", "--message", "a"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)
    commit = runner._find_commit()
    assert re.fullmatch("[0-9a-f]{40}", commit)
    (tmp_path / "notes.md").write_text("of no account")
    assert runner._find_commit() == commit
    (tmp_path / "tools" / "a.py").write_text("b")
    assert runner._find_commit() == f"{commit}-dirty"
    monkeypatch.setattr(runner, "REPOSITORY", tmp_path / "tools")  # a copy in somebody else's checkout
    assert runner._find_commit() is None
