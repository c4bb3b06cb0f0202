# SPDX-License-Identifier: Apache-2.0
"""Faults that people make, planted one at a time: each is found and told in one clear sentence."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tools.__main__ import lint
from tools.bundles import BUNDLES
from tools.errors import MissingFileError
from tools.linting import Finding, lint_bundle

OWN = sorted(path.parent.parent.name for path in BUNDLES.glob("*/configs/metadata.json"))
INFERENCE, TRAIN, EVALUATE = (f"configs/{name}.yaml" for name in ("inference", "train", "evaluate"))
METADATA, OVERLAY, LARGE = "configs/metadata.json", "models/msd04_hippocampus.yaml", "large_files.yml"
WEIGHTS = "models/msd04_hippocampus.safetensors"
Plant = Callable[[Path], None]


def replace(name: str, old: str, new: str) -> Plant:
    def plant(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text, f"{name} has no {old!r}"
        (root / name).write_text(text.replace(old, new, 1))

    return plant


def add(name: str, text: str) -> Plant:
    def plant(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with (root / name).open("a") as file:
            file.write(text)

    return plant


def remove(name: str) -> Plant:
    return lambda root: (root / name).unlink()


def change_json(place: str, value: Any, name: str = METADATA) -> Plant:
    """Set a value, or remove the key if it is `...`."""

    def plant(root: Path) -> None:
        content = json.loads((root / name).read_text())
        *path, last = place.split("#")
        node = content
        for part in path:
            node = node[part]
        if value is ...:
            del node[last]
        else:
            node[last] = value
        (root / name).write_text(json.dumps(content))

    return plant


def change_weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Plant:
    def plant(root: Path) -> None:
        tensors = change(load_file(root / WEIGHTS))
        (root / WEIGHTS).unlink()
        save_file(tensors, root / WEIGHTS)

    return plant


def write_other_network(root: Path) -> None:
    torch.save({"model": torch.nn.Linear(3, 2).state_dict()}, root / "models" / "model.pt")


def first_renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    first = next(iter(tensors))
    return {("renamed" if name == first else name): tensor for name, tensor in tensors.items()}


def with_nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    first = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    return tensors | {first: torch.full_like(tensors[first], float("nan"))}


# a fault, and what its sentence must say: file, what was found, what is wanted
FAULTS: dict[str, tuple[Plant, tuple[str, ...]]] = {
    # files
    "no licence": (remove("LICENSE"), ("LICENSE", "no such file")),
    "empty licence": (lambda root: (root / "LICENSE").write_text(""), ("LICENSE", "an empty file")),
    "no readme": (remove("docs/README.md"), ("docs/README.md", "no such file")),
    "no metadata": (remove(METADATA), (METADATA, "no such file")),
    "no inference": (remove(INFERENCE), (INFERENCE, "no such file")),
    "no evaluate": (remove(EVALUATE), (EVALUATE, "no such file")),
    "byte code": (add("configs/__pycache__/x.pyc", "x"), ("configs/__pycache__", "left-over")),
    "other json": (
        lambda root: (root / "configs/evaluate.json").write_text('{"mirroring": true}'),
        ("configs/evaluate.json, key mirroring", "found true", "wanted false, as in configs/evaluate.yaml"),
    ),
    "missing file in readme": (
        add("docs/README.md", "\nsee `configs/finetune.yaml`\n"),
        ("docs/README.md", "configs/finetune.yaml, which is not there"),
    ),
    "code in logging.conf": (
        replace("configs/logging.conf", "args=(sys.stdout,)", "args=(open('x', 'w'),)"),
        ("configs/logging.conf", "open('x', 'w')", "literals"),
    ),
    # syntax
    "no yaml": (add(TRAIN, "\n  a: [1\n"), (TRAIN, "cannot be parsed", "valid YAML")),
    "no json": (add(METADATA, "}"), (METADATA, "cannot be parsed", "valid JSON")),
    "list as config": (lambda root: (root / EVALUATE).write_text("- 1\n"), (EVALUATE, "a list", "a mapping")),
    "duplicate key": (add(INFERENCE, "\npixdim: [1.5, 1.5, 2.0]\n"), (INFERENCE, "key pixdim", "duplicate key")),
    "nested duplicate key": (
        replace(TRAIN, "  stem: false", "  stem: true\n  stem: false"),
        (TRAIN, "key network_def#stem", "duplicate key"),
    ),
    "duplicate json key": (
        replace(METADATA, '"version": "0.1.0",', '"version": "0.2.0", "version": "0.1.0",'),
        (METADATA, "key version", "duplicate key"),
    ),
    # metadata
    "missing metadata key": (change_json("task", ...), (METADATA, "no key task", "the schema requires")),
    "wrong metadata type": (change_json("authors", 3), (METADATA, "key authors", "found 3", "string")),
    "version not in changelog": (change_json("version", "0.0.9"), (METADATA, "no version 0.0.9", "0.1.0")),
    "version with local part": (
        change_json("pytorch_version", "2.15.0+cpu"),
        (METADATA, "pytorch_version", "2.15.0+cpu", "without a local part"),
    ),
    "other monai": (change_json("monai_version", "1.5.2"), (METADATA, "monai_version", "found 1.5.2", "1.6.1")),
    "unknown package": (
        change_json("required_packages_version#einopps", "0.8.2"),
        (METADATA, "einopps 0.8.2, which is not installed"),
    ),
    "number of classes": (
        change_json("network_data_format#outputs#pred#num_channels", 13),
        (METADATA, "num_channels", "found 13", "14, the out_channels"),
    ),
    "label missing in metadata": (
        change_json("network_data_format#outputs#pred#channel_def#13", ...),
        (METADATA, "channel_def", "found 13 labels", "wanted 14"),
    ),
    "label renamed in metadata": (
        change_json("network_data_format#outputs#pred#channel_def#1", "milt"),
        (METADATA, "milt for label 1", "spleen"),
    ),
    "input not called image": (
        change_json("network_data_format#inputs", {"scan": {}}),
        (METADATA, "the first key scan", "wanted image"),
    ),
    "spatial shape": (
        change_json("network_data_format#inputs#image#spatial_shape", [96, 96, 64]),
        (METADATA, "spatial_shape", "[96, 96, 64]", "[96, 96, 96]"),
    ),
    "value range": (
        change_json("network_data_format#inputs#image#value_range", [-1, 1]),
        (METADATA, "value_range", "[-1, 1]", "[0.0, 1.0]"),
    ),
    # keys
    "missing key": (replace(INFERENCE, "\ninferer:", "\ninfererr:"), (INFERENCE, "no key inferer", "MONAI")),
    "missing run": (replace(INFERENCE, "\nrun:", "\nruns:"), (INFERENCE, "no key run", "monai.bundle run")),
    "misspelt initialize": (
        replace(TRAIN, "\ninitialize:", "\ninitialise:"),
        (TRAIN, "no key initialize", "rename initialise"),
    ),
    "no max_epochs": (
        replace(TRAIN, '    max_epochs: "@epochs"\n', ""),
        (TRAIN, "no key train#trainer#max_epochs", "MONAI"),
    ),
    "no dataset data": (
        replace(TRAIN, '    data: "$datasets.take_share', '    date: "$datasets.take_share'),
        (TRAIN, "no key train#dataset#data", "MONAI Label"),
    ),
    "property elsewhere": (
        replace(INFERENCE, '  postprocessing: "@postprocessing"', '  postprocessing: "@preprocessing"'),
        (INFERENCE, "key evaluator#postprocessing", "found @preprocessing", "wanted @postprocessing"),
    ),
    "run without $": (
        replace(INFERENCE, '"$@evaluator.run()"', '"evaluator.run()"'),
        (INFERENCE, "key run#0", "evaluator.run()", "a $ expression"),
    ),
    "expression for MONAI Label": (
        replace(INFERENCE, "overlap: 0.5, mirroring", 'overlap: "$1 / 2", mirroring'),
        (INFERENCE, "displayable_configs#overlap", "$1 / 2", "a plain value"),
    ),
    "stock Spacingd": (
        replace(INFERENCE, "tools.transforms.PlainSpacingd", "Spacingd"),
        (INFERENCE, "Spacingd of MONAI", "tools.transforms.PlainSpacingd", "500"),
    ),
    "argument that is passed on, with a typing error": (
        replace("configs/train.yaml", "allow_smaller: true", "allow_smallr: true"),
        ("configs/train.yaml", "the argument allow_smallr", "write allow_smaller"),
    ),
    "spacing of two axes": (
        replace("models/msd04_hippocampus.yaml", "pixdim: [1.0, 1.0, 1.0]", "pixdim: [1.0, 1.0]"),
        ("models/msd04_hippocampus.yaml", "pixdim", "3 numbers"),
    ),
    "foreign saver": (
        replace(INFERENCE, "tools.inference.SaveSegmentationd", "SaveClassificationd"),
        (INFERENCE, "SaveClassificationd", "SaveImaged"),
    ),
    "inversion of another chain": (
        replace(INFERENCE, 'keys: pred, transform: "@preprocessing"', 'keys: pred, transform: "@geometry"'),
        (INFERENCE, "found @geometry", "wanted @preprocessing"),
    ),
    "keys that inference does not have": (
        replace(INFERENCE, "AsDiscreted, keys: pred", "AsDiscreted, keys: prediction"),
        (INFERENCE, "key postprocessing", "keys prediction of AsDiscreted", "wanted pred"),
    ),
    "no argmax": (replace(INFERENCE, ", argmax: true", ""), (INFERENCE, "argmax null of AsDiscreted")),
    "overlap": (
        replace(INFERENCE, "overlap: 0.5", "overlap: 1.5"),
        (INFERENCE, "key window_inferer#overlap", "1.5", "less than 1"),
    ),
    "tensor without range": (
        change_json("network_data_format#inputs#image#value_range", ...),
        (METADATA, "key network_data_format#inputs#image", "no key value_range"),
    ),
    # references
    "unresolved reference": (
        replace(INFERENCE, 'roi_size: "@roi_size", sw_b', 'roi_size: "@roi_sise", sw_b'),
        (INFERENCE, "key window_inferer#roi_size", "no key roi_sise", "write roi_size"),
    ),
    "unresolved reference in an expression": (
        replace(TRAIN, "len(@train#dataloader)", "len(@train#loader)"),
        (TRAIN, "key lr_scheduler#warmup_steps", "no key train#loader", "train#dataloader"),
    ),
    "unresolved reference in an overlay": (
        replace(EVALUATE, "@validate#window_inferer", "@validate#windows"),
        (EVALUATE, "key validate#inferer#inferer", "no key validate#windows"),
    ),
    "circle": (
        replace(INFERENCE, "in_channels: 1 ", 'in_channels: "@network_def#in_channels" '),
        (INFERENCE, "the circle", "in_channels"),
    ),
    "unknown macro": (
        replace(INFERENCE, "orientation: RAS", 'orientation: "%oriantation"'),
        (INFERENCE, "%oriantation"),
    ),
    "overlay of nothing": (
        add("configs/multi_gpu_train.yaml", "\ntrain#dataloder#shuffle: true\n"),
        ("configs/multi_gpu_train.yaml", "key train#dataloder#shuffle", "write train#dataloader"),
    ),
    "misspelt key of an overlay": (
        add(OVERLAY, "\npixdimm: [1, 1, 1]\n"),
        (OVERLAY, "key pixdimm", "which nothing reads", "pixdim"),
    ),
    # components
    "unknown target": (
        replace(INFERENCE, "EnsureChannelFirstd", "EnsureChanelFirstd"),
        (INFERENCE, "key geometry#1#_target_", "EnsureChanelFirstd", "write EnsureChannelFirstd"),
    ),
    "unknown target in tools": (
        replace(TRAIN, "tools.handlers.EpochSeed", "tools.handlers.EpochSeeds"),
        (TRAIN, "tools.handlers.EpochSeeds", "write EpochSeed"),
    ),
    "unknown module": (
        replace(TRAIN, "torch.optim.AdamW", "torch.optimizers.AdamW"),
        (TRAIN, "key optimizer#_target_", "torch.optimizers.AdamW"),
    ),
    "unknown argument": (
        replace(INFERENCE, "axcodes:", "axcode:"),
        (INFERENCE, "key geometry#3#axcode", "the argument axcode", "write axcodes"),
    ),
    "missing argument": (
        replace(TRAIN, '    network: "@network"\n    loss_function', "    loss_function"),
        (TRAIN, "SupervisedTrainer without network", "add network"),
    ),
    "component that runs a program": (
        add(INFERENCE, "\nextra: {_target_: os.system, command: ls}\n"),
        (INFERENCE, "os.system", "does nothing outside the run"),
    ),
    # expressions
    "program in an expression": (
        add(INFERENCE, "\nextra: \"$__import__('os').system('touch planted')\"\n"),
        (INFERENCE, "key extra", "__import__", "only reads its config"),
    ),
    "eval": (add(TRAIN, "\nextra: \"$eval('1 + 1')\"\n"), (TRAIN, "eval in $eval('1 + 1')")),
    "file read": (add(TRAIN, "\nextra: \"$open('/etc/hostname').read()\"\n"), (TRAIN, "open in $open")),
    "deletion": (add(TRAIN, "\nextra: \"$os.remove('x')\"\n"), (TRAIN, "os.remove")),
    "escape by attributes": (
        add(TRAIN, '\nextra: "$().__class__.__bases__[0].__subclasses__()"\n'),
        (TRAIN, "__subclasses__"),
    ),
    "import of subprocess": (
        replace(TRAIN, '"$import os"', '"$import subprocess"'),
        (TRAIN, "key imports#0", "the module subprocess"),
    ),
    "expression without end": (
        replace(INFERENCE, '"$len(@labels)"', '"$len(@labels"'),
        (INFERENCE, "key num_classes", "which is no Python"),
    ),
    "name that is not imported": (
        replace(INFERENCE, '"$len(@labels)"', '"$math.floor(len(@labels))"'),
        (INFERENCE, "the name math", "$import math"),
    ),
    "import of nothing": (
        replace(INFERENCE, '"$import tools.checks as checks"', '"$import tools.cheks as checks"'),
        (INFERENCE, "tools.cheks, which is not there", "write checks"),
    ),
    "function that is not there": (
        replace(INFERENCE, "checks.check_device", "checks.check_devices"),
        (INFERENCE, "checks.check_devices", "write check_device"),
    ),
    "keyword of a call": (
        replace(TRAIN, "num_channels=@in_channels", "num_chanels=@in_channels"),
        (TRAIN, "the argument num_chanels", "write num_channels"),
    ),
    # labels
    "label missing in inference": (
        replace(INFERENCE, "right adrenal gland, left adrenal gland]", "right adrenal gland]"),
        ("found 14 labels", "wanted 13, as in configs/inference.yaml"),
    ),
    "labels in another order": (
        replace(TRAIN, "spleen, right kidney", "right kidney, spleen"),
        (TRAIN, "key labels", "right kidney for label 1", "spleen, as in configs/inference.yaml"),
    ),
    "label twice": (
        replace(INFERENCE, "gallbladder", "Liver"),
        (INFERENCE, "liver for label 6 and label 4", "names that differ in lower case"),
    ),
    "number of labels in an overlay": (
        replace(OVERLAY, "label_map: {0: 0, 1: 1, 2: 2}", "label_map: {0: 0, 1: 1, 2: 3}"),
        (OVERLAY, "the classes 0, 1, 3", "each of 0 to 2"),
    ),
    "label missing in an overlay": (
        replace(OVERLAY, ", posterior hippocampus]", "]"),
        (OVERLAY, "key labels", "found 2 labels", "3, as in the card"),
    ),
    # preprocessing and network
    "spacing": (
        replace(INFERENCE, "pixdim: [1.5, 1.5, 2.0]", "pixdim: [1.5, 1.5, 1.5]"),
        (INFERENCE, "key pixdim", "[1.5, 1.5, 1.5]", "[1.5, 1.5, 2.0], as in configs/train.yaml"),
    ),
    "orientation": (
        replace(TRAIN, "orientation: RAS", "orientation: LPS"),
        ("found RAS", "wanted LPS, as in configs/train"),
    ),
    "intensity": (replace(INFERENCE, "a_max: 250", "a_max: 240"), (INFERENCE, "key intensity", "240", "250")),
    "interpolation": (
        replace(INFERENCE, 'pixdim: "@pixdim", mode: bilinear', 'pixdim: "@pixdim", mode: nearest'),
        (INFERENCE, "mode nearest of PlainSpacingd", "mode bilinear, as in train#preprocessing"),
    ),
    "step left out": (
        replace(INFERENCE, "  - {_target_: tools.transforms.FillNonFinited, keys: image}\n", ""),
        (INFERENCE, "key preprocessing", "FillNonFinited, Orientationd", "as in train#preprocessing"),
    ),
    "window": (replace(INFERENCE, "roi_size: [96, 96, 96]", "roi_size: [96, 96, 64]"), (INFERENCE, "[96, 96, 64]")),
    "network argument": (
        replace(INFERENCE, "feature_size: 16", "feature_size: 32"),
        (INFERENCE, "key network_def#feature_size", "found 32", "wanted 16, as in configs/train.yaml"),
    ),
    "blending": (replace(INFERENCE, "mode: gaussian", "mode: constant"), (INFERENCE, "constant", "gaussian")),
    "impossible network": (
        replace(OVERLAY, "network_def#num_heads: 6", "network_def#num_heads: 7"),
        ("configs/inference.yaml + models/msd04_hippocampus.yaml", "arguments that do not fit", "7"),
    ),
    # weights
    "weights of another network": (
        write_other_network,
        ("models/model.pt", "that are missing", "configs/inference.yaml"),
    ),
    "weights of another size": (
        replace(OVERLAY, "network_def#hidden_size: 192", "network_def#hidden_size: 96"),
        (WEIGHTS, "shape", "as the network of"),
    ),
    "tensor renamed": (change_weights(first_renamed), (WEIGHTS, "the tensor renamed", "only the")),
    "weights with NaN": (change_weights(with_nan), (WEIGHTS, "NaN or infinite values")),
    "other weights than the card's": (change_weights(with_nan), (WEIGHTS, "SHA-256", "msd04_hippocampus.md")),
    "no weights": (remove(WEIGHTS), (OVERLAY, "msd04_hippocampus.safetensors", "a file in models/")),
    "weights that are a web page": (add("models/model.pt", "<html>"), ("models/model.pt", "<html>")),
    "further .pt": (add("models/last.pt", "x"), ("models/last.pt", "only model.pt")),
    # large_files.yml
    "absolute path": (
        replace(LARGE, "path: models/UNETR_model_best_acc.pth", "path: /home/me/UNETR.pth"),
        (LARGE, "the absolute path /home/me/UNETR.pth", "a path inside the bundle"),
    ),
    "path that leaves": (
        replace(LARGE, "path: models/UNETR_model_best_acc.pth", "path: ../UNETR.pth"),
        (LARGE, "../UNETR.pth, which leaves the bundle"),
    ),
    "no address": (replace(LARGE, "url: https://dev", "url: dev"), (LARGE, "key large_files#0#url", "http")),
    "missing url": (replace(LARGE, "    url: https://dev", "    link: https://dev"), (LARGE, "no url")),
    "short hash": (
        replace(LARGE, "    layout: vit_2d", "    hash_type: sha256\n    hash_val: abc123\n    layout: vit_2d"),
        (LARGE, "abc123", "64 hexadecimal digits of sha256"),
    ),
    "same path twice": (
        replace(LARGE, "path: models/UNETR_model_best_acc.pt\n", "path: models/UNETR_model_best_acc.pth\n"),
        (LARGE, "as in entry 1"),
    ),
    # paths
    "path of a machine": (
        replace(TRAIN, "dataset_dir: null", "dataset_dir: /home/me/btcv"),
        (TRAIN, "key dataset_dir", "the absolute path /home/me/btcv"),
    ),
}


def find(findings: list[Finding], words: tuple[str, ...]) -> list[Finding]:
    return [finding for finding in findings if all(word in str(finding) for word in words)]


@pytest.mark.parametrize("name", OWN)
def test_bundles_of_this_repository_have_no_faults(name: str):
    assert [str(finding) for finding in lint_bundle(BUNDLES / name)] == []


def test_a_copy_has_no_faults(unetr: Path):
    assert [str(finding) for finding in lint_bundle(unetr)] == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_told_in_a_sentence(fault: str, unetr: Path):
    plant, words = FAULTS[fault]
    plant(unetr)
    findings = lint_bundle(unetr)
    assert find(findings, words), "\n".join(map(str, findings)) or "nothing was found"
    for finding in findings:
        assert finding.found
        assert finding.wanted
        assert finding.remedy


def test_what_a_card_sets_for_another_config_is_no_fault_but_the_same_in_a_recipe_is(voco: Path):
    """Pre-training cuts crops of `crop_size`; the cards' `roi_size` is for train.yaml."""
    assert not find(lint_bundle(voco), ("roi_size",))
    recipe = "configs/recipes/openkbp_hn_pretrain.yaml"
    add(recipe, "\nroi_size: [64, 64, 64]\n")(voco)
    assert find(lint_bundle(voco), (recipe, "roi_size", "which nothing reads", "crop_size"))


def test_a_bundle_of_the_zoo_has_no_errors_and_is_not_run(foreign: Path):
    assert [str(finding) for finding in lint_bundle(foreign) if finding.severity == "error"] == []
    assert not (foreign / "scripts" / "was_imported").exists()
    assert "scripts" not in sys.modules


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("scripts.steps.Halved", "scripts.steps.Halfed", ("scripts.steps.Halfed", "write Halved")),
        ('"factor"', '"faktor"', ("the argument faktor", "write factor")),
        ('"batch_size"', '"dataset"', ("configs/inference.json, key dataset", "duplicate key")),
        ('"out_channels": 2', '"out_channels": 3', ("models/model.pt", "shape")),
        ('"@output_dir"', '"@outputs"', ("no key outputs",)),
        ("$import scripts", "$import script", ("script, which is not there",)),
    ],
)
def test_a_fault_in_a_bundle_of_the_zoo_is_told(old: str, new: str, words: tuple[str, ...], foreign: Path):
    replace("configs/inference.json", old, new)(foreign)
    assert find(lint_bundle(foreign), words)


@pytest.mark.parametrize(
    "text",
    [
        "$__import__('pathlib').Path('planted').touch()",
        "$pathlib.Path('planted').write_text('x')",
        "$[m.system('touch planted') for m in [os]]",
        "$getattr(os, 'sys' + 'tem')('touch planted')",
        "$torch.hub.load('a/b', 'c')",
        "$(lambda f: f('touch planted'))(os.system)",
        "$np.load('x', allow_pickle=True)",
    ],
)
def test_nothing_is_executed(text: str, foreign: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(foreign)
    replace("configs/inference.json", '"$import os"', '"$import os", "$import pathlib"')(foreign)
    change_json("extra", text, "configs/inference.json")(foreign)
    findings = lint_bundle(foreign)
    assert any(f.severity == "error" and "key extra" in f.where for f in findings), list(map(str, findings))
    assert not (foreign / "planted").exists()


def test_modules_in_the_current_folder_are_not_imported(foreign: Path, monkeypatch: pytest.MonkeyPatch):
    """`python -m` puts the current folder, here the bundle, on the path of imports."""
    (foreign / "own_network.py").write_text("from pathlib import Path\nPath('was_imported').touch()\nclass Net: ...\n")
    monkeypatch.chdir(foreign)
    monkeypatch.syspath_prepend(foreign)
    change_json("network_def", {"_target_": "own_network.Net"}, "configs/inference.json")(foreign)
    assert find(lint_bundle(Path()), ("models/model.pt", "weights that were not compared", "own_network.Net"))
    assert not (foreign / "was_imported").exists()
    assert "own_network" not in sys.modules


def test_command_prints_sentences_and_ends_with_a_status(unetr: Path, capsys: pytest.CaptureFixture[str]):
    lint.callback(str(unetr))
    assert "no errors" in capsys.readouterr().out
    remove("LICENSE")(unetr)
    with pytest.raises(SystemExit) as ended:
        lint.callback(str(unetr))
    assert ended.value.code == 1
    assert "LICENSE: found no such file" in capsys.readouterr().out
    with pytest.raises(MissingFileError, match="unetr_btcv"):
        lint.callback("unetr")
