# SPDX-License-Identifier: Apache-2.0
"""A study file is read as it is meant, or refused with the file, the entry and the nearest known name."""

from __future__ import annotations

import re

import pytest

from tools.bundles import BUNDLES, CARDS
from tools.errors import ConfigValueError, MissingFileError, UnknownOverrideError
from tools.studies import read_study


@pytest.mark.parametrize("path", sorted(BUNDLES.glob("*/studies/*.yaml")), ids=lambda path: path.stem)
def test_committed_studies_are_sound(path):
    assert read_study(path).root == path.parents[1]


def test_runs_stand_in_an_order_in_which_they_can_be_done(workshop):
    study = read_study(workshop.study)
    assert list(study.runs).index("pretrain") < list(study.runs).index("pretrained")
    assert study.runs["pretrained"].needs == ("pretrain",)


def test_a_run_like_another_differs_in_its_own_keys_only(workshop):
    runs = read_study(workshop.study).runs
    assert runs["pretrained"].configs == runs["scratch"].configs
    assert runs["pretrained"].evaluation == runs["scratch"].evaluation
    assert runs["pretrained"].overrides == {"share": 0.1, "pretrained": "{pretrain}/last.pt"}


def test_evaluation_is_an_overlay_on_the_configs_of_the_run(workshop):
    run = read_study(workshop.study).runs["scratch"]
    assert [path.name for path in run.evaluation] == ["train.yaml", "evaluate.yaml"]


def test_the_card_takes_its_place_among_the_configs(workshop):
    workshop.change(card="msd04_hippocampus")
    workshop.change_run("scratch", configs=["configs/train.yaml", "CARD"])
    assert read_study(workshop.study).runs["scratch"].configs[1] == CARDS / "msd04_hippocampus.yaml"


def test_without_a_table_every_evaluated_run_is_a_row(workshop):
    workshop.write(workshop.study.read_text().partition("table:")[0])
    assert read_study(workshop.study).table == {"scratch": "scratch", "pretrained": "pretrained"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": [0]}, ["'seed'", "did you mean seeds"]),
        ({"title": None}, ["title", "None"]),
        ({"seeds": []}, ["seeds", "[]"]),
        ({"seeds": [0, 0]}, ["seeds", "[0, 0]"]),
        ({"seeds": [True]}, ["seeds", "[True]"]),
        ({"seeds": 3}, ["seeds", "3"]),
        ({"card": "msd04_hipocampus"}, ["card", "did you mean msd04_hippocampus"]),
        ({"runs": {}}, ["runs", "{}"]),
        ({"runs": {"a b": {}}}, ["runs", "'a b'"]),
        ({"runs": {"a": None}}, ["runs.a", "None"]),
        ({"table": {"scrach": "x"}}, ["table", "'scrach'", "did you mean scratch"]),
        ({"against": {"scratch": "pretraind"}}, ["against", "'pretraind'", "did you mean pretrained"]),
        ({"against": ["scratch"]}, ["against", "a mapping from runs to runs"]),
        ({"table": {"pretrain": "x"}}, ["table", "'pretrain'", "one of scratch, pretrained"]),
    ],
)
def test_an_unsound_entry_is_refused(workshop, changes, words):
    workshop.change(**changes)
    with pytest.raises(ConfigValueError) as caught:
        read_study(workshop.study)
    assert all(word in str(caught.value) for word in [str(workshop.study), *words])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": []}, ["runs.scratch", "'config'", "did you mean configs"]),
        ({"configs": []}, ["runs.scratch.configs", "[]"]),
        ({"configs": "configs/train.yaml"}, ["runs.scratch.configs", "a list"]),
        ({"configs": ["configs/trian.yaml"]}, ["runs.scratch.configs", "did you mean configs/train.yaml"]),
        ({"configs": ["configs/train.yaml", "CARD"]}, ["runs.scratch.configs", "CARD", "no card"]),
        ({"configs": ["configs/evaluate.yaml", "configs/odd.yaml"]}, ["runs.scratch.configs", "none", "merged"]),
        ({"evaluate": ["evaluate.yaml"]}, ["runs.scratch.evaluate", "did you mean configs/evaluate.yaml"]),
        ({"like": "pretrained"}, ["runs.scratch.like", "'pretrained'"]),
        ({"overrides": [1]}, ["runs.scratch.overrides", "[1]"]),
        ({"overrides": {"seed": 1}}, ["runs.scratch.overrides", "seed"]),
        ({"overrides": {"pretrained": ["{pretrian}/last.pt"]}}, ["scratch.overrides", "did you mean pretrain"]),
        ({"overrides": {"run": []}}, ["runs.scratch.overrides", "run", "evaluate.yaml leaves alone"]),
    ],
)
def test_an_unsound_run_is_refused(workshop, changes, words):
    (workshop.bundle / "configs" / "odd.yaml").write_text("none#key: 1\n")
    workshop.change_run("scratch", **changes)
    with pytest.raises(ConfigValueError) as caught:
        read_study(workshop.study)
    assert all(word in str(caught.value) for word in [str(workshop.study), *words])


def test_runs_that_wait_for_each_other_are_refused(workshop):
    workshop.change_run("pretrain", overrides={"pretrained": "{pretrained}/last.pt"})
    circle = "(pretrain needs pretrained needs pretrain|pretrained needs pretrain needs pretrained)"
    with pytest.raises(ConfigValueError, match=circle):
        read_study(workshop.study)


def test_a_run_that_needs_itself_is_refused(workshop):
    workshop.change_run("pretrain", overrides={"pretrained": "{pretrain}/last.pt"})
    with pytest.raises(ConfigValueError, match="pretrain needs pretrain"):
        read_study(workshop.study)


def test_an_override_that_no_config_has_is_found_before_anything_runs(workshop):
    workshop.change_run("pretrain", overrides={"epohcs": 3})
    with pytest.raises(UnknownOverrideError, match="did you mean --epochs") as caught:
        workshop.run()
    assert "runs.pretrain.overrides" in str(caught.value)
    assert workshop.started == []


@pytest.mark.parametrize("text", ["a: [", "- a", ""])
def test_a_file_that_is_no_mapping_is_refused(workshop, text):
    workshop.write(text)
    with pytest.raises(ConfigValueError, match=re.escape(str(workshop.study))):
        read_study(workshop.study)


def test_a_study_that_is_not_there_or_in_no_bundle_is_refused(workshop, tmp_path):
    with pytest.raises(MissingFileError, match="no such file"):
        read_study(tmp_path / "none.yaml")
    lonely = workshop.study.rename(tmp_path / "lonely.yaml")
    with pytest.raises(MissingFileError, match="bundle"):
        read_study(lonely)
