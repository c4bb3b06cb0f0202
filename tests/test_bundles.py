# SPDX-License-Identifier: Apache-2.0
"""Commands reach MONAI as they were meant: every value with its type, the output where it was asked for."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path
from typing import Any

import fire
import pytest
from monai.bundle import ConfigParser

from tools import bundles
from tools.bundles import choose_model, make_command, run_bundle
from tools.errors import ConfigValueError


def read_by_fire(overrides: dict[str, Any]) -> dict[str, Any]:
    """Return what MONAI's program gets to see of overrides."""
    settings: dict[str, Any] = {}
    words = make_command([Path("train.yaml")], overrides)[4:]
    fire.Fire(lambda **values: settings.update(values), command=words)
    del settings["config_file"]
    return settings


@pytest.mark.parametrize(
    "value",
    [
        True,
        False,
        3,
        -1,
        0.25,
        -1e-05,
        "",
        "text",
        "-x",
        "--resume",
        "0.5",
        "0035",
        "True",
        "[1, 2]",
        'it\'s "so"',
        "$@bundle_root + '/models/model.pt'",
        "@seed",
        "../data/a b.nii.gz",
        [16, 16, 16],
        ["0035", "pt_1"],
        {"_target_": "RandFlipd", "keys": ["image", "label"], "prob": 0.5, "lazy": False},
        [{"_target_": "Identityd", "keys": "image"}],
        [],
        {},
    ],
)
def test_every_override_keeps_its_value_and_type(value):
    (read,) = read_by_fire({"train#key": value}).values()
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("value", ["/data/scans#2", "/it's#here/\\x", Path("/a#b#c")])
def test_a_path_with_the_separator_of_ids_reaches_the_config_as_it_is(value):
    parser = ConfigParser({})
    parser.update(read_by_fire({"place": value, "places": [value]}))
    assert parser.get_parsed_content("place") == str(value)
    assert parser.get_parsed_content("places") == [str(value)]


def test_what_the_command_line_would_lose_becomes_an_expression():
    values = {"a": None, "b": -float("inf"), "c": [1, None, {"d": float("inf")}], "e": Path("/data")}
    assert read_by_fire(values) == {
        "a": "$None",
        "b": "$float('-inf')",
        "c": [1, "$None", {"d": "$float('inf')"}],
        "e": "/data",
    }


@pytest.mark.parametrize(("key", "value"), [("a-b", 1), ("+labels", ["x"]), ("day", date(2026, 1, 1))])
def test_what_it_cannot_carry_is_refused(key, value):
    with pytest.raises(ConfigValueError, match="config file"):
        make_command([], {key: value})


@pytest.mark.costs(processes=1)
def test_output_goes_to_the_file_with_the_command_in_front(tmp_path, monkeypatch):
    program = "import sys; print('said'); print('warned', file=sys.stderr); sys.exit(3)"
    monkeypatch.setattr(bundles, "make_command", lambda *_: [sys.executable, "-c", program])
    with (tmp_path / "log.txt").open("ab") as log:
        assert run_bundle([], {}, log) == 3
    first, *others = (tmp_path / "log.txt").read_text().splitlines()
    assert first.startswith("$ python -c")
    assert sorted(others) == ["said", "warned"]


@pytest.mark.parametrize(
    ("models", "chosen"), [(["word"], "word"), (["acdc", "msd04_hippocampus", "word"], "msd04_hippocampus")]
)
def test_the_only_model_of_a_bundle_is_the_default_and_of_several_that_of_the_demo(
    models, chosen, tmp_path, monkeypatch
):
    monkeypatch.setattr(bundles, "BUNDLES", make_models(tmp_path, models))
    assert choose_model("mine", "--card") == chosen


@pytest.mark.parametrize(
    ("models", "found"),
    [([], "no committed model in mine"), (["acdc", "word"], "2 committed models \\(acdc, word\\) in")],
)
def test_without_a_default_the_model_must_be_named(models, found, tmp_path, monkeypatch):
    monkeypatch.setattr(bundles, "BUNDLES", make_models(tmp_path, models))
    with pytest.raises(ConfigValueError, match=rf"--card: found none, and {found}.* give --card\."):
        choose_model("mine", "--card")


def make_models(folder: Path, names: list[str]) -> Path:
    for name in ("configs/metadata.json", *(f"models/{model}.yaml" for model in names)):
        file = folder / "mine" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return folder
