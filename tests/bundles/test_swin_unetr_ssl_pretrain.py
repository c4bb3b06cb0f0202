# SPDX-License-Identifier: Apache-2.0
"""What is its own in Swin UNETR's pre-training: its tasks, several channels, what segmentation starts from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from bundle_runs import make_image, read_epochs, read_weights, write_scan
from comparisons import assert_equal_to_scale
from monai.bundle import ConfigParser
from monai.networks.nets import SwinUNETR
from table import PRETRAININGS

from tools.bundles import BUNDLES, CARDS

ROOT = BUNDLES / "swin_unetr_ssl"
CONFIGS = ROOT / "configs"


@pytest.fixture
def bundle(make_bundle):
    return make_bundle("swin_unetr_ssl", PRETRAININGS["swin_unetr_ssl"].small)


# ---- what the files say


def test_it_pretrains_the_transformer_that_train_has():
    parsers = [
        ConfigParser(ConfigParser.load_config_file(str(CONFIGS / f"{name}.yaml"))) for name in ("pretrain", "train")
    ]
    source, target = (
        {name: tensor.shape for name, tensor in parser.get_parsed_content("network_def").swinViT.state_dict().items()}
        for parser in parsers
    )
    assert source == target
    assert len(source) == 126


@pytest.mark.parametrize("recipe", sorted((CONFIGS / "recipes").glob("*_pretrain.yaml")), ids=lambda path: path.stem)
def test_a_recipe_pretrains_the_transformer_of_its_segmentation_and_fits_its_card(recipe: Path):
    name = recipe.stem.removesuffix("_pretrain")
    parsers = [
        ConfigParser(ConfigParser.load_config_files([str(CONFIGS / config), str(CARDS / f"{name}.yaml"), str(overlay)]))
        for config, overlay in (("pretrain.yaml", recipe), ("train.yaml", recipe.with_stem(name)))
    ]
    shapes = [
        {name: tensor.shape for name, tensor in parser.get_parsed_content("network_def").swinViT.state_dict().items()}
        for parser in parsers
    ]
    assert shapes[0] == shapes[1]
    parsers[0].get_parsed_content("proxy_tasks")  # refuses a turn that changes the shape of the crop


# ---- what goes in


def test_mr_of_several_channels_and_of_mixed_sizes_is_trained_on(bundle, tmp_path):
    for number, shape in enumerate([(40, 36, 30, 2), (20, 50, 70, 2), (33, 33, 20, 2)]):
        image = make_image(number, shape) * [1, 30] + 300
        write_scan(tmp_path / "scans" / f"scan_{number}.nii.gz", image.astype(np.float32))
    write_scan(tmp_path / "scans" / "single.nii.gz", make_image(9).astype(np.int16))
    overlay = tmp_path / "mr.yaml"
    normalization = {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
    overlay.write_text(yaml.safe_dump({"in_channels": 2, "intensity": [normalization], "fill_range": "crop"}))
    folder = tmp_path / "run"
    bundle.run("pretrain", overlay, dataset_dir=str(tmp_path / "scans"), output_dir=str(folder), epochs=1)
    assert np.isfinite(read_epochs(folder)[0]["loss"])
    assert json.loads((folder / "training.json").read_text())["training_cases"] == 2
    assert read_weights(folder / "last.pt", "swinViT.")["swinViT.patch_embed.proj.weight"].shape == (12, 2, 2, 2, 2)
    assert (folder / "reconstruction" / "epoch_0001.png").is_file()


# ---- training


@pytest.mark.parametrize("tasks", [["reconstruction"], ["rotation", "contrast"], ["contrast"], "rotation"], ids=str)
def test_tasks_can_be_switched_off(tasks, bundle, scans, tmp_path):
    folder = tmp_path / "run"
    bundle.run("pretrain", dataset_dir=str(scans), output_dir=str(folder), tasks=tasks, epochs=1)
    (epoch,) = read_epochs(folder)
    names = [tasks] if isinstance(tasks, str) else tasks
    assert {key for key in epoch if key.startswith("loss/")} == {f"loss/{task}" for task in names}
    factors = PRETRAININGS["swin_unetr_ssl"].terms
    assert epoch["loss"] == pytest.approx(sum(factors[task] * epoch[f"loss/{task}"] for task in names), rel=1e-5)
    restored = "reconstruction" in tasks
    assert [("reconstruction" in epoch), (folder / "best.pt").exists(), (folder / "reconstruction").exists()] == [
        restored
    ] * 3
    assert len(read_weights(folder / "last.pt", "swinViT.")) == 126


@pytest.mark.numeric
def test_volumes_on_disk_that_were_prepared_in_another_way_are_not_used(bundle, scans, tmp_path):
    options = {"dataset_dir": str(scans), "output_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache")}
    crops = []
    for lowest in (-1000, -300):
        workflow = bundle.make_workflow("pretrain", "disk_cache", **options, **{"intensity#0#a_min": lowest})
        dataset = workflow.parser.get_parsed_content("validate#dataset")
        crops.append(torch.stack([crop["image"].as_tensor() for crop in dataset[0]]))
    assert len(list((tmp_path / "cache").glob("*.pt"))) == 2
    hu = [crop * (1000 - lowest) + lowest for crop, lowest in zip(crops, (-1000, -300), strict=True)]
    assert not torch.allclose(*crops, atol=0.1)
    assert_equal_to_scale(*hu)  # the same voxels


# ---- what comes out


@pytest.mark.parametrize("pretrained", ["swin_unetr_ssl"], indirect=True)
def test_each_validation_draws_a_picture_of_the_reconstruction(pretrained):
    pictures = [path.name for path in sorted((pretrained.folder / "reconstruction").iterdir())]
    assert pictures == ["epoch_0001.png", "epoch_0002.png"]


@pytest.mark.parametrize(("use_v2", "entries"), [(False, 126), (True, 134)])
def test_segmentation_starts_from_its_transformer(use_v2, entries, bundle, scans, tmp_path):
    folder = tmp_path / "run"
    bundle.run("pretrain", dataset_dir=str(scans), output_dir=str(folder), epochs=1, use_v2=use_v2)
    wanted = read_weights(folder / "best.pt", "swinViT.")
    assert len(wanted) == entries
    for name in ("best.pt", "model_swinvit.pt"):
        parser = bundle.parse("train")
        parser.update({"pretrained": str(folder / name), "use_v2": use_v2, "output_dir": str(tmp_path / name)})
        found = parser.get_parsed_content("network").state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
        report = json.loads((tmp_path / name / "weights.json").read_text())
        assert report["accepted"]
        assert report["counts"]["matched"] == entries
    if not use_v2:
        unetr = SwinUNETR(1, 14, feature_size=12, window_size=2)
        unetr.load_from(torch.load(folder / "model_swinvit.pt", weights_only=True))
        assert all(torch.equal(unetr.state_dict()[key], tensor) for key, tensor in wanted.items())
