# SPDX-License-Identifier: Apache-2.0
"""The bundle as people use it: started from VoCo's weights in any layout, trained, evaluated and used for inference.

Its recipe of BTCV: test_btcv_recipes.py; its own pre-training: test_voco_finetune_pretrain.py.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.networks.nets import SwinUNETR
from torch import Tensor, nn

from tools.bundles import BUNDLES, CARDS
from tools.pretraining.voco import ProjectionHead
from tools.release import export
from tools.weights.swin_transformer import name_like_swinvit

CONFIGS = BUNDLES / "voco_finetune" / "configs"
TINY = {"feature_size": 12, "window_size": [2, 2, 2]}
SMALL = TINY | {
    "labels": ["background", "ball", "shell"],
    "label_map": {0: 0, 205: 1, 420: 2},  # as in MM-WHS
    "pixdim": [1.0, 1.0, 2.0],
    "roi_size": [32, 32, 64],  # the smallest one: deeper than 1 x 1 x 2 there is nothing to normalize over
    "overlap": 0.0,
    "epochs": 2,
    "val_interval": 2,
    "checkpoint_interval": 1,
    "num_workers": 0,
    "learning_rate": 0.001,
    "warmup_epochs": 1,
    "batch_size": 2,
    "num_samples": 1,
}


@pytest.fixture
def bundle(make_bundle):
    return make_bundle("voco_finetune", SMALL)


@pytest.fixture
def dataset(dataset: Path) -> Path:
    """The small data set with label values that are no class numbers."""
    for path in (dataset / "labelsTr").iterdir():
        image = nib.load(path)
        values = np.array([0, 205, 420], np.int16)[np.asanyarray(image.dataobj)]
        nib.save(nib.Nifti1Image(values, image.affine), path)
    return dataset


# ---- what the files say


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("amos22", {"epochs": 1000, "num_samples": 16, "num_classes": 16}),
        ("word", {"epochs": 200, "num_samples": 4, "num_classes": 17}),
        ("flare22", {"epochs": 3000, "num_samples": 16, "num_classes": 14}),
        ("mmwhs", {"epochs": 1000, "num_samples": 4, "num_classes": 8, "learning_rate": 0.001}),
        ("cvpr", {"epochs": 3000, "num_samples": 16, "num_classes": 14, "amp": False}),
    ],
)
def test_a_published_recipe_and_its_card_give_a_network_and_its_schedule(recipe, changes):
    files = [CONFIGS / "train.yaml", CARDS / f"{recipe}.yaml", CONFIGS / "recipes" / f"{recipe}.yaml"]
    parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in files if file.is_file()]))
    found = {key: parser.get_parsed_content(key) for key in changes}
    assert found == changes
    parser.update(TINY)
    network = parser.get_parsed_content("network_def")
    assert network.out.conv.conv.out_channels == changes["num_classes"]


# ---- weights to start from


def make_network(out_channels: int = 14, **options: Any) -> SwinUNETR:
    torch.manual_seed(1)
    return SwinUNETR(1, out_channels, **({"feature_size": 12, "window_size": 2, "use_v2": True} | options))


def take_encoder(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in network.state_dict().items() if name.startswith(("swinViT.", "encoder"))}


def name_as_training(network: nn.Module) -> dict[str, Any]:
    """Name tensors as VoCo_{B,L,H}_SSL_head.pt: a step's checkpoint of several GPUs, with both heads."""
    head = ProjectionHead(288, 16).state_dict()
    tensors = {f"module.backbone.{name}": tensor for name, tensor in take_encoder(network).items()}
    tensors |= {f"module.{part}.{name}": tensor for part in ("student", "teacher") for name, tensor in head.items()}
    return {"global_step": 250_000, "state_dict": tensors}


def name_as_voco_10k(network: nn.Module) -> dict[str, Tensor]:
    tensors = take_encoder(network).items()
    return {f"module.{name.replace('swinViT', 'swin_vit')}": tensor for name, tensor in tensors}


STARTS: Mapping[str, tuple[Any, int, int, int]] = {  # with the classes of the file, those of the run, what matches
    "VoCo_B_SSL_head.pt": (name_as_training, 14, 3, 145),
    "VoCo_10k.pt": (name_as_voco_10k, 14, 3, 145),
    "VoComni_B.pt": (lambda network: {"state_dict": network.state_dict()}, 21, 21, 167),
    "VoComni_B.pt for other classes": (lambda network: {"state_dict": network.state_dict()}, 21, 3, 165),
}


@pytest.mark.parametrize("start", STARTS)
def test_training_starts_from_published_weights_and_reports_them(start, bundle):
    name, of_file, of_run, count = STARTS[start]
    source = make_network(of_file)
    labels = ["background", *(f"organ {number}" for number in range(1, of_run))]
    network, counts = bundle.start_from(name(source), labels=labels, patch_merging="corrected")
    assert counts["matched"] == count
    source_tensors = source.state_dict() if count > 145 else take_encoder(source)
    expected = {key: tensor for key, tensor in source_tensors.items() if count != 165 or not key.startswith("out.")}
    assert len(expected) == count
    assert all(torch.equal(network[key], tensor) for key, tensor in expected.items())


def test_weights_without_residual_convolutions_are_refused_with_what_to_set(bundle, dataset, tmp_path):
    source = make_network(use_v2=False)
    options = {"dataset_dir": str(dataset), "output_dir": str(tmp_path), "pretrained": str(tmp_path / "weights.pt")}
    for content in (name_as_training(source), name_like_swinvit(source.state_dict()), {"model": source.state_dict()}):
        torch.save(content, tmp_path / "weights.pt")
        sentence = bundle.find_error("train", **options)
        assert sentence.startswith(f"{tmp_path}/weights.pt: found ")
        assert "with use_v2=False (here True): set the arguments of network_def so, or give another file" in sentence
    assert "with feature_size=12 (here 24)" in bundle.find_error("train", **options, feature_size=24, use_v2=False)


# ---- training, evaluation and inference


def test_two_processes_share_the_cases_and_the_first_alone_writes(bundle, dataset, tmp_path):
    torch.save(name_as_training(make_network()), tmp_path / "weights.pt")
    told = "[list(@train#sampler), sum(p.grad.abs().sum().item() for p in @network.parameters())]"
    options = {"dataset_dir": str(dataset), "output_dir": str(tmp_path / "run"), "epochs": 1}
    options |= {"pretrained": str(tmp_path / "weights.pt"), "patch_merging": "corrected", "use_checkpoint": True}
    (first, gradient), (second, other) = bundle.run_in_processes(2, "train", "multi_gpu_train", tell=told, **options)
    assert sorted(first + second) == [0, 1, 2, 3]
    assert gradient == pytest.approx(other)
    assert json.loads((tmp_path / "run" / "weights.json").read_text())["counts"]["matched"] == 145
    assert json.loads((tmp_path / "run" / "training.json").read_text())["best"]["epoch"] == 1
    assert len(list((tmp_path / "run").glob("events*"))) == 2  # trainer and evaluator of rank 0
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state["model"].keys() == make_network().state_dict().keys()


@pytest.mark.numeric
def test_training_then_evaluation_inference_and_export_with_label_values_that_are_no_class_numbers(
    bundle, dataset, tmp_path
):
    bundle.run("train", dataset_dir=str(dataset), output_dir=str(tmp_path / "run"))
    best = str(tmp_path / "run" / "best.pt")
    options = {"dataset_dir": str(dataset), "output_dir": str(tmp_path / "evaluation"), "checkpoint": best}
    bundle.run("train", "evaluate", **options)
    evaluation = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert evaluation["mean"] == pytest.approx(record["best"]["dice"], abs=1e-4)
    assert list(evaluation["per_case"]) == ["case_4.nii.gz", "case_5.nii.gz"]

    scan = dataset / "imagesTr" / "case_4.nii.gz"
    bundle.run("inference", datalist=[str(scan)], output_dir=str(tmp_path / "segmentations"), checkpoint=best)
    label = np.asanyarray(nib.load(dataset / "labelsTr" / "case_4.nii.gz").dataobj)
    image = nib.load(tmp_path / "segmentations" / "case_4_seg.nii.gz")
    segmentation = np.asanyarray(image.dataobj)
    assert segmentation.max() <= 2
    np.testing.assert_array_equal(image.affine, nib.load(scan).affine)
    for number, (name, value) in enumerate({"ball": 205, "shell": 420}.items(), 1):
        found, wanted = segmentation == number, label == value
        overlap = 2 * np.sum(found & wanted) / (np.sum(found) + np.sum(wanted))
        assert overlap == pytest.approx(evaluation["per_case"]["case_4.nii.gz"][name], abs=1e-4)

    card = {"title": "Phantoms", "modality": "CT", "licence": "none", "source": "here", "citation": "none"}
    kept = ("labels", "label_map", "pixdim", "roi_size", *TINY)
    (tmp_path / "phantoms.yaml").write_text(yaml.safe_dump({"card": card} | {key: SMALL[key] for key in kept}))
    archive = export("voco_finetune", str(tmp_path / "phantoms.yaml"), best, tmp_path / "exports")
    assert archive.name == "voco_finetune_phantoms_v0.1.0.zip"
    with zipfile.ZipFile(archive) as files:
        (model,) = (files.read(name) for name in files.namelist() if name.endswith("/models/model.pt"))
    packed, trained = torch.load(io.BytesIO(model), weights_only=True), torch.load(best, weights_only=True)["model"]
    torch.testing.assert_close(packed, trained, rtol=0, atol=0)
