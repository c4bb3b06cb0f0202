# SPDX-License-Identifier: Apache-2.0
"""A mistyped override is an error that names the right key; everything that MONAI understands passes."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import re
import sys
from typing import Any

import monai.bundle
import pytest
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from processes import run_code

from tools.bundles import BUNDLES
from tools.checks import check_command_line, check_device, check_memory, check_shares
from tools.checks.settings import _is_light, _iterate_keys
from tools.configs import KEYS
from tools.errors import ConfigValueError, MemoryLimitError, ToolsError, UnknownOverrideError, find_cause

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


class TestRunningSettings:
    """`check_settings`, called as `initialize` does it, with the command line of `python -m monai.bundle run`."""

    @staticmethod
    def run(monkeypatch: pytest.MonkeyPatch, bundle: str, file: str, overrides: dict[str, Any], overlay: Any = None):
        configs = BUNDLES / bundle / "configs"
        arguments = [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
        monkeypatch.setattr(sys, "argv", [PROGRAM, "run", "--config_file", str(configs / f"{file}.yaml"), *arguments])
        parser = ConfigParser(ConfigParser.load_config_file(configs / f"{file}.yaml"))
        parser.update(overlay or {})
        check_command_line()  # MONAI looks for the place of an override before it works out anything
        parser.update({key: DefaultParseValue(str(value)) for key, value in overrides.items()})
        parser["_only_"] = "$checks.check_settings()"
        try:
            parser.get_parsed_content("_only_")
        except RuntimeError as error:  # MONAI wraps what an expression raises
            raise find_cause(error) or error from None

    @pytest.mark.parametrize("file", ["train", "inference", "pretrain"])
    @pytest.mark.parametrize("bundle", ["unetr_btcv", "swin_unetr_ssl", "voco_finetune", "inflated_vit_seg"])
    def test_the_defaults_pass(self, monkeypatch, bundle, file):
        if (BUNDLES / bundle / "configs" / f"{file}.yaml").is_file():
            self.run(monkeypatch, bundle, file, {})

    @pytest.mark.parametrize("seed", range(20))
    def test_random_overrides_end_in_one_sentence(self, monkeypatch, seed, tmp_path):
        """Ten a seed: a key of the table with a value of a wrong type or range, or a key misspelt at any depth."""
        rng = random.Random(seed)
        monkeypatch.chdir(tmp_path)
        wrong = ["text", -1, -0.5, [], {}, [1, "a"], 1e9, "1e-4", "yes", "RAZ", None, [0, 0, 0], True, 2.5]
        for _ in range(10):
            bundle = rng.choice(["unetr_btcv", "swin_unetr_ssl", "voco_finetune", "inflated_vit_seg"])
            file = rng.choice(["train", "inference"])
            config = ConfigParser.load_config_file(BUNDLES / bundle / "configs" / f"{file}.yaml")
            if rng.random() < 0.5:
                known = [name for name in config if name in KEYS and KEYS[name].check and _is_light(name, config)]
                name = rng.choice(known)
                values = [
                    value for value in wrong if KEYS[name].check(DefaultParseValue(str(value))) and value is not None
                ]
                override = {name: rng.choice(values)}
            else:
                place = rng.choice([name for name in _iterate_keys(config) if len(name.rpartition("#")[2]) > 3])
                head, mark, last = place.rpartition("#")
                spot = rng.randrange(len(last) - 1)
                slip = last[:spot] + last[spot + 1] + last[spot] + last[spot + 2 :]
                if slip == last or f"{head}{mark}{slip}" in _iterate_keys(config):
                    continue
                name, override = place, {f"{head}{mark}{slip}": 1}
                parent = ConfigParser(config).get(head) if head else None
                if isinstance(parent, dict) and "_target_" in parent:
                    continue  # an argument: told by the component that does not have it
            try:
                self.run(monkeypatch, bundle, file, override)
            except ToolsError as error:
                caught = error
            else:
                pytest.fail(f"{bundle} {file} {override} passed")
            text = str(caught)
            assert "\n" not in text
            assert "wanted" in text
            assert name.rpartition("#")[2] in text, (name, text)
            assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("overlay", "told"),
        [
            ({"labels": {"background": 0, "posterior": 2, "anterior": 1}}, r"\[background, anterior, posterior\]"),
            ({"labels": {"0": "background", "1": "a"}}, r"\[background, a\]"),
            ({"labels": ["background", "lesion", "Lesion"]}, "lesion stands twice"),
            ({"labels": ["background", False, True]}, "in quotes: YAML reads yes and no as true and false"),
            ({"labels": ["background", "a"], "label_map": {0: 0, 1: 1, 2: 2}}, "found class 2, wanted 0 to 1"),
            ({"labels": ["background", "a", "b"], "label_map": {0: 0, 1: 1}}, "no value for b"),
            ({"learning_rate": "1e-4"}, "write 1.0e-04, which YAML reads as a number"),
            ({"sample_above": "-inf"}, r"-\.inf in a file"),
            ({"amp": "off"}, "write False"),
            ({"output_dir": 7}, """write --output_dir "'7'": without quotes it is read as a number"""),
            ({"epochs": "$1 +"}, "which cannot be worked out .*SyntaxError"),
            ({"epochs": "@epcohs"}, "found @epcohs, a key that it does not have.*write @epochs"),
            ({"loss": {"_target_": "DiceFocolLoss"}}, "found DiceFocolLoss.*write DiceFocalLoss"),
            ({"loss": {"_target_": "tools.inference.Segmenter"}}, "write tools.inference.ScanSegmenter"),
            ({"epoch": 3}, "a key that nothing reads.*did you mean epochs"),
            ({"optimizer::lr": 0.1, "weigth_decay": 0.1}, "did you mean weight_decay"),
        ],
        ids=lambda value: None if isinstance(value, str) else ",".join(value),
    )
    def test_an_overlay_is_held_to_the_table(self, monkeypatch, overlay, told):
        with pytest.raises(ToolsError, match=told):
            self.run(monkeypatch, "unetr_btcv", "train", {}, overlay)

    @pytest.mark.parametrize(
        ("override", "told"),
        [
            ({"optimizer#lr": "text"}, "--optimizer#lr: found the text 'text', wanted a number above 0"),
            ({"optimizer#lr": "1e-4x"}, "wanted a number above 0"),
            ({"train#dataloader#shuffle": 3}, "wanted True or False"),
            ({"network_def#hidden_size": "wide"}, "a number, as the 768 of the config"),
            ({"trian#trainer#max_epochs": 1}, "did you mean --train#trainer#max_epochs"),
        ],
        ids=lambda value: None if isinstance(value, str) else ",".join(value),
    )
    def test_a_value_inside_a_component_is_of_the_type_of_the_one_that_it_replaces(self, monkeypatch, override, told):
        with pytest.raises(ToolsError, match=re.escape(told)):
            self.run(monkeypatch, "unetr_btcv", "train", override)

    def test_what_other_configs_need_passes(self, monkeypatch):
        mine = {
            "labels": ["background", "a"],
            "label_map": {0: 0, 500: 1},
            "mine": [1, 2],
            "pixdim": "$[1.0, 1.0, @mine[0]]",
        }
        self.run(monkeypatch, "unetr_btcv", "train", {"resume": "true"}, mine)

    @pytest.mark.parametrize(
        ("listed", "told"),
        [
            (
                {"0": "background", "1": "posterior", "2": "anterior"},
                "found posterior for the value 1, wanted anterior",
            ),
            ({"background": 0, "Posterior": 1, "anterior": 2}, "found Posterior for the value 1"),
            ({"0": "background", "1": "front", "2": "back"}, None),
            ({"background": 0, "whole": [1, 2]}, None),
            ({"0": "background", "1": "Anterior", "2": "posterior"}, None),
        ],
    )
    def test_names_that_the_data_set_contradicts_are_refused(self, monkeypatch, tmp_path, listed, told):
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": listed, "training": []}))
        overlay = {"labels": ["background", "anterior", "posterior"], "dataset_dir": str(tmp_path)}
        with pytest.raises(ConfigValueError, match=told) if told else contextlib.nullcontext():
            self.run(monkeypatch, "unetr_btcv", "train", {}, overlay)

    @pytest.mark.parametrize(
        ("listed", "told"),
        [
            (
                {"0": "background", "1": "brainstem", "2": "spinal cord"},
                "brainstem (anterior), spinal cord (posterior)",
            ),
            ({"0": "background", "1": "Anterior part", "2": "back"}, None),
        ],
    )
    def test_weights_applied_to_data_of_other_structures_are_told(self, monkeypatch, tmp_path, caplog, listed, told):
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": listed, "training": []}))
        overlay = {
            "labels": ["background", "anterior", "posterior"],
            "dataset_dir": str(tmp_path),
            "checkpoint": "x.pt",
        }
        self.run(monkeypatch, "unetr_btcv", "train", {}, overlay)
        assert (told in caplog.text) if told else "other structures" not in caplog.text

    @pytest.mark.parametrize("bundle", ["unetr_btcv", "swin_unetr_ssl", "voco_finetune", "inflated_vit_seg"])
    def test_torchrun_with_a_config_for_one_process_is_refused(self, monkeypatch, bundle):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("LOCAL_RANK", "0")
        with pytest.raises(ConfigValueError, match=r"2 processes, wanted one.*add configs/multi_gpu_train\.yaml"):
            self.run(monkeypatch, bundle, "train", {})
        monkeypatch.setenv("WORLD_SIZE", "1")
        self.run(monkeypatch, bundle, "train", {})

    @pytest.mark.parametrize(
        "file", sorted(BUNDLES.glob("*/configs/multi_gpu_*train.yaml")), ids=lambda path: path.stem
    )
    def test_a_config_for_several_processes_without_torchrun_is_refused(self, monkeypatch, file):
        monkeypatch.delenv("RANK", raising=False)
        overlay = {"initialize": ConfigParser.load_config_file(file)["initialize"]}
        base = "pretrain" if file.stem.endswith("pretrain") else "train"
        with pytest.raises(ConfigValueError, match=r"found one process, wanted torchrun.*--nproc_per_node=N"):
            self.run(monkeypatch, file.parents[1].name, base, {}, overlay)
