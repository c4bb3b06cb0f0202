# SPDX-License-Identifier: Apache-2.0
"""What is its own: published recipes, VoCo's weights in any layout, label values that are no class numbers."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.networks.nets import SwinUNETR
from table import TINY_SWIN, TRAININGS
from torch import Tensor, nn

from tools.bundles import BUNDLES, CARDS
from tools.pretraining.voco import ProjectionHead
from tools.release import export
from tools.weights.swin_transformer import name_like_swinvit

CONFIGS = BUNDLES / "voco_finetune" / "configs"


@pytest.fixture
def bundle(make_bundle):
    return make_bundle("voco_finetune", TRAININGS["voco_finetune"].small)


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
    parser.update(TINY_SWIN)
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
    options = {"dataset_dir": str(dataset), "output_dir": str(tmp_path), "label_map": {0: 0, 1: 1, 2: 2}}
    options |= {"pretrained": str(tmp_path / "weights.pt")}
    for content in (name_as_training(source), name_like_swinvit(source.state_dict()), {"model": source.state_dict()}):
        torch.save(content, tmp_path / "weights.pt")
        sentence = bundle.find_error("train", **options)
        assert sentence.startswith(f"{tmp_path}/weights.pt: found ")
        assert "with use_v2=False (here True): set the arguments of network_def so, or give another file" in sentence
    assert "with feature_size=12 (here 24)" in bundle.find_error("train", **options, feature_size=24, use_v2=False)


# ---- what comes out


@pytest.mark.costs(exports=1)
@pytest.mark.parametrize("trained", ["voco_finetune"], indirect=True)
def test_own_weights_for_label_values_that_are_no_class_numbers_are_exported(trained, tmp_path):
    card = {"title": "Phantoms", "modality": "CT", "licence": "none", "source": "here", "citation": "none"}
    small = TRAININGS["voco_finetune"].small
    kept = {key: small[key] for key in ("labels", "label_map", "pixdim", "roi_size", *TINY_SWIN)}
    kept["in_channels"] = TRAININGS["voco_finetune"].channels
    (tmp_path / "phantoms.yaml").write_text(yaml.safe_dump({"card": card} | kept))
    best = trained.folder / "best.pt"
    archive = export("voco_finetune", str(tmp_path / "phantoms.yaml"), str(best), tmp_path / "exports")
    assert archive.name == "voco_finetune_phantoms_v0.1.0.zip"
    with zipfile.ZipFile(archive) as files:
        (model,) = (files.read(name) for name in files.namelist() if name.endswith("/models/model.pt"))
    packed, wanted = torch.load(io.BytesIO(model), weights_only=True), torch.load(best, weights_only=True)["model"]
    torch.testing.assert_close(packed, wanted, rtol=0, atol=0)
