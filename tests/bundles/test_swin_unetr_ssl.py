# SPDX-License-Identifier: Apache-2.0
"""What is its own: sizes, weights to start from, both variants, crops that are rounded."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import SwinUNETR
from table import TRAININGS
from torch import Tensor

from tools.bundles import BUNDLES
from tools.networks.patch_merging import choose_form, read_form
from tools.weights.swin_transformer import name_like_swinvit

ROOT = BUNDLES / "swin_unetr_ssl"
CONFIGS = ROOT / "configs"


@pytest.fixture
def bundle(make_bundle):
    return make_bundle("swin_unetr_ssl", TRAININGS["swin_unetr_ssl"].small)


# ---- what the files say


@pytest.mark.parametrize("config", ["train", "inference"])
@pytest.mark.parametrize(("feature_size", "count"), [(48, 62_187_296), (24, 15_703_304), (12, 4_078_220)])
def test_base_small_and_tiny_have_the_published_numbers_of_parameters(config, feature_size, count):
    parser = ConfigParser(ConfigParser.load_config_file(str(CONFIGS / f"{config}.yaml")))
    parser["feature_size"] = feature_size
    assert sum(parameter.numel() for parameter in parser.get_parsed_content("network_def").parameters()) == count


# ---- weights to start from


def make_network(out_channels: int = 3, **options: object) -> SwinUNETR:
    torch.manual_seed(1)
    return SwinUNETR(1, out_channels, **({"feature_size": 12, "window_size": 2} | options))


def name_as_swinvit(network: SwinUNETR) -> dict[str, dict[str, Tensor]]:
    """Name tensors as model_swinvit.pt does; it also has a norm and the heads of an earlier script."""
    content = name_like_swinvit(network.state_dict())
    content["state_dict"] |= {f"module.norm.{part}": torch.ones(192) for part in ("weight", "bias")}
    content["state_dict"]["module.rotation_head.weight"] = torch.rand(4, 192)
    return content


STARTS = {
    # our pre-training is that of test_swin_unetr_ssl_pretrain.py
    "model_swinvit.pt": (name_as_swinvit, {}, "swinViT.", 126),
    "BTCV model of 14 classes": (lambda n: {"state_dict": n.state_dict()}, {"out_channels": 14}, "", 157),
    "own model of as many classes": (lambda n: {"model": n.state_dict()}, {}, "", 159),
    "own model of v2": (lambda n: {"model": n.state_dict()}, {"use_v2": True}, "", 167),
}


@pytest.mark.parametrize("start", STARTS)
def test_training_starts_from_published_weights_and_reports_them(start, bundle):
    name, options, prefix, count = STARTS[start]
    source = make_network(**options)
    use_v2 = options.get("use_v2", False)
    network, counts = bundle.start_from(name(source), use_v2=use_v2, patch_merging="corrected")
    expected = {key: value for key, value in source.state_dict().items() if key.startswith(prefix)}
    equal = [key for key, value in expected.items() if torch.equal(value, network[key]) and "index" not in key]
    assert counts["matched"] == count
    assert len(equal) == count - 8, "all but the tables of positions, which are the same everywhere"


@pytest.mark.costs(large_files=3)
def test_training_goes_on_in_the_patch_merging_of_its_weights_and_so_does_inference(bundle, dataset, tmp_path):
    """The first loading is told the form; the run's checkpoint tells it to all that follow."""
    source = make_network()
    choose_form(source, "original")
    weights = {name: value for name, value in source.state_dict().items() if not name.endswith("slices")}
    torch.save(weights, tmp_path / "public.pt")
    options = {"dataset_dir": str(dataset), "output_dir": str(tmp_path / "run"), "epochs": 1}
    assert "give --patch_merging original" in bundle.find_error(
        "train", pretrained=str(tmp_path / "public.pt"), **options
    )
    bundle.run("train", pretrained=str(tmp_path / "public.pt"), patch_merging="original", **options)
    assert json.loads((tmp_path / "run" / "weights.json").read_text())["patch_merging"] == "original"

    bundle.run("train", resume=True, **(options | {"epochs": 2}))
    parser = bundle.parse("inference")
    parser.update({"checkpoint": str(tmp_path / "run" / "last.pt")})
    network = parser.get_parsed_content("network")
    assert read_form(network) == "original"
    choose_form(source, "original")
    source.load_state_dict(torch.load(tmp_path / "run" / "last.pt", weights_only=True)["model"])
    image = torch.rand(1, 1, 64, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(image), source.eval()(image), rtol=0, atol=1e-5)


def test_weights_of_another_variant_are_refused_with_what_to_set(bundle, dataset, tmp_path):
    torch.save(name_as_swinvit(make_network()), tmp_path / "weights.pt")
    options = {"pretrained": str(tmp_path / "weights.pt"), "dataset_dir": str(dataset), "output_dir": str(tmp_path)}
    assert "with use_v2=False (here True)" in bundle.find_error("train", **options, use_v2=True)
    assert "with feature_size=12 (here 24)" in bundle.find_error("train", **options, feature_size=24)


# ---- training


@pytest.mark.numeric
@pytest.mark.parametrize("trained", ["swin_unetr_ssl"], indirect=True)
def test_activations_that_are_computed_again_give_the_same_loss(trained, tmp_path):
    options = {"dataset_dir": str(trained.dataset), "output_dir": str(tmp_path), "use_checkpoint": True}
    trained.bundle.run("train", **options)
    found = json.loads((tmp_path / "training.json").read_text())["epochs"][0]
    assert found["loss"] == pytest.approx(trained.record["epochs"][0]["loss"], rel=1e-4)


def test_the_residual_variant_trains(bundle, dataset, tmp_path):
    bundle.run("train", dataset_dir=str(dataset), output_dir=str(tmp_path), use_v2=True, epochs=1, training_share=0.5)
    assert np.isfinite(json.loads((tmp_path / "training.json").read_text())["epochs"][0]["loss"])
    assert "swinViT.layers1c.0.layer.conv1.conv.weight" in torch.load(tmp_path / "last.pt", weights_only=True)["model"]


@pytest.mark.parametrize("use_v2", [False, True])
def test_every_parameter_gets_a_gradient_so_that_processes_need_not_search_for_unused_ones(use_v2):
    network = make_network(use_v2=use_v2)
    network(torch.rand(1, 1, 32, 32, 64)).sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


# ---- evaluation and inference


def test_a_crop_that_does_not_fit_is_rounded_up_in_training_evaluation_and_inference_alike(bundle, dataset, tmp_path):
    """Only `roi_size` is given, each time the same, as the card of a data set does."""
    asked = {"roi_size": [20, 24, 40]}
    bundle.run("train", dataset_dir=str(dataset), output_dir=str(tmp_path / "run"), epochs=1, val_interval=1, **asked)
    options = {"dataset_dir": str(dataset), "checkpoint": str(tmp_path / "run" / "last.pt"), **asked}
    bundle.run("train", "evaluate", output_dir=str(tmp_path / "evaluation"), **options)
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    evaluation = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert evaluation["mean"] == pytest.approx(record["epochs"][-1]["dice"], abs=1e-4)
    options["dataset_dir"] = str(dataset / "imagesTr" / "case_4.nii.gz")
    bundle.run("inference", output_dir=str(tmp_path / "segmentations"), **options)
    report = json.loads((tmp_path / "segmentations" / "run.json").read_text())
    assert report["settings"]["feature_size"] == 12
    assert {scan["state"] for scan in report["scans"].values()} == {"done"}
