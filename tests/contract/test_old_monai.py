# SPDX-License-Identifier: Apache-2.0
"""Swin UNETRs made by MONAI 1.4.0 and 1.3.2, with the patch merging of all public weights, compute the same here.

The old packages are installed beside the environment, without their dependencies, and run in processes of their own.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from comparisons import assert_equal_to_scale
from monai.bundle import ConfigParser, ckpt_export
from torch import Tensor, nn

from tools.archives import name_bundle, unpack
from tools.bundles import CARDS, run_bundle
from tools.errors import CheckpointError
from tools.networks import ScriptableSwinUNETR
from tools.networks.patch_merging import read_form
from tools.pretraining import SwinSSL, SwinUNETREncoder
from tools.release import export
from tools.weights import load, read_checkpoint
from tools.weights.conversion import convert

VERSIONS = ("1.4.0", "1.3.2")
SIZES = {"f12": 12, "f24": 24, "f48": 48}
NETWORKS = {
    f"{size}_{form}": {"feature_size": f, "use_v2": form == "v2"} for size, f in SIZES.items() for form in ("v1", "v2")
}
OUT_CHANNELS = 14
exhaustive = pytest.mark.exhaustive
pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def make_old(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give a function that returns the folder of what each network of an old MONAI holds and computes."""

    @functools.cache
    def make(version: str) -> Path:
        folder = tmp_path_factory.mktemp(f"monai_{version}")
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "packages")]
        subprocess.run([*install, f"monai=={version}"], check=True)
        networks = [{"name": name, "out_channels": OUT_CHANNELS, **options} for name, options in NETWORKS.items()]
        script = Path(__file__).with_name("old_monai.py")
        environment = os.environ | {"PYTHONPATH": str(folder / "packages"), "PYTHONWARNINGS": "ignore"}
        subprocess.run([sys.executable, str(script), str(folder), json.dumps(networks)], env=environment, check=True)
        assert (folder / "version.txt").read_text() == version
        return folder

    return make


@pytest.fixture(params=[VERSIONS[0], pytest.param(VERSIONS[1], marks=exhaustive)])
def old(request: pytest.FixtureRequest, make_old: Callable[[str], Path]) -> Path:
    return make_old(request.param)


@pytest.fixture
def last_old(make_old: Callable[[str], Path]) -> Path:
    """The last release with the original form, for what takes long and does not depend on the release."""
    return make_old(VERSIONS[0])


def read(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / f"{name}.pt", weights_only=True)


def name_like_swinvit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        name: name.removeprefix("swinViT.").replace("mlp.linear", "mlp.fc")
        for name in state
        if name.startswith("swinViT.")
    }
    return {f"module.{new}": state[name] for name, new in names.items()} | {"module.norm.weight": torch.ones(2)}


def name_like_ssl_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    kept = {f"module.{name}": tensor for name, tensor in state.items() if name.startswith("swinViT.")}
    return kept | {"module.rotation_head.weight": torch.ones(4, 2)}


def name_like_voco(state: dict[str, Tensor]) -> dict[str, Tensor]:
    kept = {name: tensor for name, tensor in state.items() if name.startswith(("swinViT.", "encoder"))}
    return {f"module.backbone.{name}": tensor for name, tensor in kept.items()} | {
        "student.layer1.0.weight": torch.ones(2)
    }


def name_like_monai(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


def build(name: str) -> ScriptableSwinUNETR:
    return ScriptableSwinUNETR((64, 32, 32), 1, OUT_CHANNELS, **NETWORKS[name])


def compute_maps(network: nn.Module, image: Tensor) -> list[Tensor]:
    return network.swinViT(image)


def compute_encoders(network: nn.Module, image: Tensor) -> list[Tensor]:
    maps = network.swinViT(image)
    blocks = (network.encoder1, network.encoder2, network.encoder3, network.encoder4, network.encoder10)
    return [block(x) for block, x in zip(blocks, (image, *maps[:3], maps[4]), strict=True)]


def compute_output(network: nn.Module, image: Tensor) -> list[Tensor]:
    return [network(image)]


# how the names are spelled, what the file fills, what is compared
LAYOUTS: dict[str, tuple[Callable, str, Callable]] = {
    "whole": (name_like_monai, "output", compute_output),
    "swinvit": (name_like_swinvit, "maps", compute_maps),
    "ssl_head": (name_like_ssl_head, "maps", compute_maps),
    "voco": (name_like_voco, "encoders", compute_encoders),
}


def assert_same(found: list[Tensor], expected: list[Tensor] | Tensor) -> None:
    expected = [expected] if isinstance(expected, Tensor) else expected
    for one, other in zip(found, expected, strict=True):
        assert other.std() > 1e-3
        assert_equal_to_scale(one, other)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "name", [name if name.startswith("f12") else pytest.param(name, marks=exhaustive) for name in NETWORKS]
)
def test_weights_of_an_old_monai_compute_what_they_did_there(old, name, layout, tmp_path):
    spell, part, compute = LAYOUTS[layout]
    made = read(old, name)
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": spell(made["state"])}, path)
    network = load(build(name).eval(), path, patch_merging="original", report_dir=tmp_path)
    with torch.no_grad():
        assert_same(compute(network, made["image"]), made[part])
        other = load(build(name).eval(), path, patch_merging="corrected")
        with pytest.raises(AssertionError):  # the other form computes something else
            assert_same(compute(other, made["image"]), made[part])
    report = json.loads((tmp_path / "weights.json").read_text())
    assert (report["patch_merging"], report["patch_merging_evidence"]) == ("original", "given as patch_merging")


@pytest.mark.parametrize("name", ["f12_v1", pytest.param("f48_v2", marks=exhaustive)])
def test_pre_training_goes_on_in_the_form_of_its_weights(last_old, name, tmp_path):
    made = read(last_old, name)
    torch.save(made["state"], tmp_path / "weights.pt")
    options = NETWORKS[name]
    networks = [
        SwinSSL(1, (64, 32, 32), **options),
        SwinUNETREncoder(1, (64, 32, 32), **options),
    ]
    for network in networks:
        torch.save(
            name_like_swinvit(made["state"]) if isinstance(network, SwinSSL) else name_like_voco(made["state"]),
            tmp_path / "part.pt",
        )
        load(network.eval(), tmp_path / "part.pt", patch_merging="original")
        with torch.no_grad():
            assert_same(network.swinViT(made["image"]), made["maps"])
        again = type(network)(1, (64, 32, 32), **options).eval()
        again.load_state_dict(network.state_dict())
        assert read_form(again) == "original"


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A data set's card for a network of 12 features that windows of 64 x 32 x 32 voxels feed."""
    content = yaml.safe_load((CARDS / "openkbp_hn.yaml").read_text())
    del content["label_map"], content["validation_cases"], content["mirrored"]  # of other structures
    labels = ["background", *(f"organ {number}" for number in range(1, OUT_CHANNELS))]
    # scans go into the network as they are
    plain = {"pixdim": [1.0, 1.0, 1.0], "intensity": [], "foreground_crop": []}
    content |= {"labels": labels, "roi_size": [64, 32, 32], "feature_size": 12, **plain}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "mine.yaml"


@pytest.mark.parametrize(
    ("bundle", "name", "suffix"),
    [
        ("swin_unetr_ssl", "f12_v1", ".safetensors"),
        pytest.param("swin_unetr_ssl", "f12_v1", ".pt", marks=exhaustive),
        pytest.param("voco_finetune", "f12_v2", ".safetensors", marks=exhaustive),
        pytest.param("voco_finetune", "f12_v2", ".pt", marks=exhaustive),
    ],
)
def test_converted_exported_and_scripted_weights_are_the_old_function_still(
    last_old, bundle, name, suffix, card, tmp_path
):
    made = read(last_old, name)
    torch.save({"state_dict": made["state"]}, tmp_path / "old.pt")
    converted = tmp_path / f"converted{suffix}"
    with pytest.raises(CheckpointError, match=r"old\.pt: .*give --patch_merging original"):
        convert(tmp_path / "old.pt", build(name), converted)
    report = convert(tmp_path / "old.pt", build(name), converted, patch_merging="original")
    assert re.search(r"^merging +original, given as patch_merging$", report, re.MULTILINE)

    network = load(build(name).eval(), converted, complete=True)  # the file tells it
    with torch.no_grad():
        assert_same([network(made["image"])], made["output"])

    path = export(bundle, dataset=str(card), weights=converted, out=tmp_path)
    folder = tmp_path / name_bundle(path)
    unpack(path, folder)
    for file in ("inference.json", "inference.yaml", "train.json", "train.yaml"):
        assert ConfigParser.load_config_file(folder / "configs" / file)["patch_merging"] == "original"
    parser = ConfigParser(ConfigParser.load_config_file(folder / "configs" / "inference.json"))
    parser["bundle_root"] = str(folder)

    as_label_does = parser.get_parsed_content("network_def")  # monailabel/tasks/infer/basic_infer.py
    checkpoint = torch.load(folder / "models" / "model.pt", weights_only=True)
    as_label_does.load_state_dict(checkpoint.get("model", checkpoint), strict=False)
    with torch.no_grad():
        assert_same([as_label_does.eval()(made["image"])], made["output"])

    arguments = {"ckpt_file": str(folder / "models/model.pt"), "meta_file": str(folder / "configs/metadata.json")}
    ckpt_export(
        "network_def",
        str(folder / "models/model.ts"),
        config_file=str(folder / "configs/inference.yaml"),
        bundle_root=str(folder),
        **arguments,
    )
    script = torch.jit.load(folder / "models" / "model.ts")
    with torch.no_grad():
        assert_same([script(made["image"])], made["output"])
    again = load(build(name).eval(), folder / "models" / "model.ts", complete=True)  # TorchScript, read as data
    with torch.no_grad():
        assert_same([again(made["image"])], made["output"])


@pytest.fixture
def scan(last_old: Path, tmp_path: Path) -> Path:
    """The image that the old networks have seen, as a file."""
    voxels = read(last_old, "f12_v1")["image"][0, 0].numpy()
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def assert_segmented(path: Path, output: Tensor) -> None:
    """Assert that a segmentation is what the old MONAI's logits say, where they do not tie."""
    top = output[0].topk(2, dim=0).values
    decided = (top[0] - top[1] > 1e-3).numpy()
    found = np.asarray(nib.load(path).dataobj)
    assert decided.mean() > 0.99
    assert np.array_equal(found[decided], output[0].argmax(0).numpy()[decided])


def test_scans_are_segmented_as_the_old_monai_would_by_command_and_in_monai_label(last_old, card, scan, tmp_path):
    made = read(last_old, "f12_v1")
    torch.save({"state_dict": made["state"]}, tmp_path / "old.pt")
    path = export("swin_unetr_ssl", str(card), tmp_path / "old.pt", tmp_path, patch_merging="original")
    folder = tmp_path / name_bundle(path)
    unpack(path, folder)

    overrides = {"bundle_root": folder, "datalist": [str(scan)], "output_dir": tmp_path / "out", "device": "cpu"}
    assert run_bundle([folder / "configs" / "inference.yaml"], overrides) == 0
    assert_segmented(tmp_path / "out" / "scan_seg.nii.gz", made["output"])
    told = json.loads((tmp_path / "out" / "run.json").read_text())["weights"]
    assert told["patch_merging"] == "original"

    if importlib.util.find_spec("monailabel") is None:
        pytest.skip("MONAI Label is not installed: python -m tools label install")
    label = importlib.import_module("monailabel.tasks.infer.bundle").BundleInferTask(str(folder), {})
    result, _ = label({"image": str(scan), "device": "cpu", "result_dtype": "uint8"})
    assert_segmented(Path(result), made["output"])


def test_a_model_of_the_repository_is_scripted_in_the_form_of_its_file(last_old, tmp_path):
    """`ckpt_export` with the bundle's own config, which leaves the form open."""
    made = read(last_old, "f12_v1")
    torch.save({"state_dict": made["state"]}, tmp_path / "old.pt")
    config = CARDS.parents[1] / "bundles" / "swin_unetr_ssl" / "configs" / "inference.yaml"
    options = {"feature_size": 12, "roi_size": [64, 32, 32]}
    parser = ConfigParser(ConfigParser.load_config_file(config))
    parser.update(options)
    convert(
        tmp_path / "old.pt", parser.get_parsed_content("network_def"), tmp_path / "model.pt", patch_merging="original"
    )
    assert read_checkpoint(tmp_path / "model.pt")["patch_merging"] == "original"
    ckpt_export(
        "network_def",
        str(tmp_path / "model.ts"),
        ckpt_file=str(tmp_path / "model.pt"),
        key_in_ckpt="model",
        meta_file=str(config.with_name("metadata.json")),
        config_file=str(config),
        **options,
    )
    with torch.no_grad():
        assert_same([torch.jit.load(tmp_path / "model.ts")(made["image"])], made["output"])
