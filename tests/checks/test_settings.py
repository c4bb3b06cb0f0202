# SPDX-License-Identifier: Apache-2.0
"""A mistyped override is an error that names the right key; everything that MONAI understands passes."""

from __future__ import annotations

import copy
import json
import sys

import monai.bundle
import pytest
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from processes import run_code

from tools.checks import check_command_line, check_device, check_memory, check_shares
from tools.errors import ConfigValueError, MemoryLimitError, UnknownOverrideError

PROGRAM = f"{monai.bundle.__path__[0]}/__main__.py"
BASE = """
bundle_root: .
overlap: 0.5
device: cpu
labels: {0: background, 1: spleen}
displayable: {level: 1}
nothing: null
network_def: {_target_: UNETR, in_channels: 1}
preprocessing: {_target_: Compose, transforms: [{_target_: LoadImaged, keys: image}]}
train:
  trainer: {_target_: SupervisedTrainer, max_epochs: 1}
  handlers: [{_target_: StatsHandler}, {_target_: LrScheduler}]
run: []
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(BASE)
    return path


@pytest.fixture
def overlay(tmp_path):
    path = tmp_path / "card's overlay.yaml"
    path.write_text("pixdim: [1, 1, 1]\ntrain#trainer#amp: true\n+labels: {2: liver}\n")
    return path


def check(config, *arguments: str, command: str = "run") -> None:
    check_command_line([PROGRAM, command, "--config_file", str(config), *arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--overlap", "0.25"),
        ("--overlap=0.25",),
        ("-overlap", "0.25"),
        ("--overlap", "-1"),
        ("--nothing", "1"),
        ("--displayable#level", "2"),
        ("--train#trainer#max_epochs", "1"),
        ("--train::trainer::max_epochs", "1"),
        ("--train#trainer#max-epochs=1",),
        ("--train#handlers#0#_disabled_", "True"),
        ("--train#handlers#1", "{_target_: StatsHandler}"),
        ("--network_def#_target_", "SwinUNETR"),
        ("--network_def#new_argument", "1"),
        ("--preprocessing#transforms#0#reader", "NibabelReader"),
        ("--+run", "['$print(1)']"),
        ("--_meta_#version", "1"),
        ("--bundle-root", "a folder/it's $HOME"),
        ("--displayable", "{new: 1}", "--displayable#new", "2"),
        ("train", "--overlap", "1"),
        ("--run_id", "run", "--logging_file", "x.conf", "--meta_file", "x.json"),
        ("--workflow_type", "train", "--properties_path", "x.json", "--workflow_name", "ConfigWorkflow"),
        ("--tracking", "mlflow", "--experiment_name", "x", "--output_dir", "x"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("command", ["run", "run_workflow", "run-workflow"])
def test_what_monai_understands_passes(config, arguments, command):
    if arguments[:1] == ("train",) and command != "run":
        arguments = arguments[1:]
    check(config, *arguments, command=command)


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [
        ("--overlpa", "--overlap"),
        ("--devcie", "--device"),
        ("--max_epoch", "--train#trainer#max_epochs"),
        ("--max_epochs", "--train#trainer#max_epochs"),
        ("--trian#trainer#max_epochs", "--train#trainer#max_epochs"),
        ("--trian::trainer::max_epochs", "--train#trainer#max_epochs"),
        ("--train#handlers#2#_disabled_", "--train#handlers#1#_target_"),
        ("--train#tainer", "--train#trainer"),
        ("--displayable#lvel", "--displayable#level"),
        ("--network_def#conv#kernel", "--network_def"),
        ("--labels#2", "--labels#1"),
        ("--overlap#x", "--overlap"),
        ("--experiment_name", None),
        ("--qqqqqq", None),
    ],
)
@pytest.mark.parametrize("form", ["separate", "joined"])
def test_an_unknown_key_is_refused_with_the_nearest_one(config, assert_readable, argument, nearest, form):
    with pytest.raises(UnknownOverrideError) as caught:
        check(config, *([argument, "1"] if form == "separate" else [f"{argument}=1"]))
    remedy = f"did you mean {nearest}" if nearest else "look up the keys"
    assert_readable(caught.value, argument, f"no such key in {config}", remedy)


@pytest.mark.parametrize("text", ["false", "FALSE"])
def test_the_text_false_which_would_count_as_true_is_refused(config, assert_readable, text):
    with pytest.raises(
        ConfigValueError, match=rf"--train#trainer#amp: found '{text}'.*write --train#trainer#amp False"
    ):
        check(config, "--train#trainer#amp", text)
    check(config, "--train#trainer#amp", "False")
    check(config, "--train#trainer#amp", "true")


def test_a_switch_without_value_is_checked_too(config):
    with pytest.raises(UnknownOverrideError, match="--ampp: found no such key"):
        check(config, "--ampp", "--overlap", "1")


def test_all_unknown_keys_are_named(config):
    with pytest.raises(UnknownOverrideError, match=r"--overlpa, --devcie: .* did you mean --overlap, --device\."):
        check(config, "--overlpa", "1", "--device", "cpu", "--devcie", "cuda")


def test_keys_of_every_config_file_are_known(config, overlay):
    files = [str(config), str(overlay)]
    arguments = ("--pixdim", "[2, 2, 2]", "--train#trainer#amp", "False")
    check(files, *arguments)
    check(repr(files), *arguments)
    with pytest.raises(UnknownOverrideError, match="--pixdim: found no such key"):
        check(config, *arguments)
    with pytest.raises(UnknownOverrideError, match=r"train.yaml, .*card's overlay.yaml, .* --pixdim"):
        check(files, "--pixdmi", "1")


def test_keys_of_an_args_file_are_checked(config, tmp_path):
    file = tmp_path / "args.json"
    command = [PROGRAM, "run", "--args_file", str(file)]
    file.write_text(json.dumps({"config_file": str(config), "overlap": 0.25, "run_id": "run"}))
    check_command_line(command)
    check_command_line([*command, "--device", "cuda"])
    # MONAI merges a `+key` neither here nor on the command line: here it adds a key of that name, plus included
    for key in ("overlpa", "+overlap"):
        file.write_text(json.dumps({"config_file": str(config), key: 0.25}))
        with pytest.raises(UnknownOverrideError, match="did you mean --overlap"):
            check_command_line(command)


@pytest.mark.parametrize(
    "argv",
    [
        ["pytest", "run", "--config_file", "{config}", "--overlpa", "1"],
        ["/x/tools/__main__.py", "run", "--config_file", "{config}", "--overlpa", "1"],
        [PROGRAM, "verify_net_in_out", "--config_file", "{config}", "--overlpa", "1"],
        [PROGRAM, "run_workflow", "my.Workflow", "--config_file", "{config}", "--overlpa", "1"],
        [PROGRAM],
        [""],
    ],
)
def test_other_programs_are_left_alone(config, argv):
    check_command_line([part.format(config=config) for part in argv])


def test_the_arguments_of_this_process_are_the_default(config, monkeypatch):
    monkeypatch.setattr(sys, "argv", [PROGRAM, "run", "--config_file", str(config), "--overlpa", "1"])
    with pytest.raises(UnknownOverrideError):
        check_command_line()


def test_the_defaults_of_monai_stay_as_they_are(config):
    before = copy.deepcopy(DEFAULT_EXP_MGMT_SETTINGS)
    check(config, "--tracking", "mlflow", "--run_name", "x")
    assert before == DEFAULT_EXP_MGMT_SETTINGS


def test_a_device_that_is_there_passes():
    check_device("cpu")


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "cpus"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(assert_readable, device):
    with pytest.raises(ConfigValueError) as caught:
        check_device(device)
    assert_readable(caught.value, "--device", device, "cpu")


def test_a_step_that_needs_more_memory_than_is_free_is_refused(assert_readable):
    with pytest.raises(MemoryLimitError) as caught:
        check_memory(3e15, "cpu", "lower it")
    assert_readable(caught.value, "memory", "GB free (cpu)", "lower it")
    assert caught.value.wanted == "at least 3,000,000.0 GB for a step of training"


@pytest.mark.costs(processes=1)
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_a_step_that_needs_more_than_was_thought_ends_in_one_sentence():
    code = """
import torch
from tools.checks import check_memory
from tools.errors import report_plainly
report_plainly()
check_memory(1e6, "cpu", "lower it")
torch.empty(1 << 50)
"""
    done = run_code(code)
    assert done.returncode == 1
    assert done.stderr.strip().startswith("Error: memory: found no room for a further 4503599627370496 bytes, wanted")
    assert "Traceback" not in done.stderr


def test_every_process_needs_a_case_of_each_section(assert_readable):
    check_shares(num_training=2, num_validation=2, num_processes=2)
    with pytest.raises(ConfigValueError) as caught:
        check_shares(num_training=4, num_validation=1, num_processes=2)
    assert_readable(caught.value, "--nproc_per_node", "1 validation", "at most 1")
