# SPDX-License-Identifier: Apache-2.0
"""What is its own in UNETR's pre-training: the transformer that UNETR gets, corrupted views, sources of scans."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from table import PRETRAININGS

from tools.bundles import BUNDLES, CARDS

BUNDLE = BUNDLES / "unetr_btcv"
CONFIGS = BUNDLE / "configs"
PRETRAIN = CONFIGS / "pretrain.yaml"
CARD = CARDS / "msd04_hippocampus.yaml"
RECIPES = CONFIGS / "recipes"


def write_scan(path: Path, seed: int, shape: tuple[int, int, int] = (36, 20, 10)) -> None:
    generator = np.random.default_rng(seed)
    distance = np.linalg.norm((np.indices(shape).T - generator.uniform(6, 12, 3)).T, axis=0)
    image = np.where(distance < 6, 100, 20) + generator.normal(0, 20, shape)  # HU
    nib.save(nib.Nifti1Image(image.astype(np.int16), np.diag([-1.0, 1.0, 2.0, 1.0])), path)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Seven scans, the fourth smaller than a crop and the fifth cut off."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(1, 8):
        write_scan(folder / f"scan_{number}.nii.gz", number, (20, 12, 6) if number == 4 else (36, 20, 10))
    cut = folder / "scan_5.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-300])
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(dict(PRETRAININGS["unetr_btcv"].small)))
    return path


def make_workflow(files: list[Path], **overrides: object) -> ConfigWorkflow:
    workflow = ConfigWorkflow(
        [str(file) for file in files], str(CONFIGS / "metadata.json"), logging_file=False, **overrides
    )
    workflow.initialize()
    return workflow


# ---- what the files say


def test_keys_that_train_has_too_are_written_the_same_way():
    train, pretrain = (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("train", "pretrain"))
    order = [key for key in train if key in pretrain]
    assert [key for key in pretrain if key in train] == order
    same = ("bundle_root", "output_dir", "resume", "device", "amp", "seed", "network", "lr_scheduler", "orientation")
    assert {key: pretrain[key] for key in same} == {key: train[key] for key in same}
    image_part = []
    for step in train["validate"]["geometry"]:
        if "image" in step["keys"]:
            image_part.append({**step, "keys": "image"})
    assert pretrain["train"]["geometry"] == image_part


@pytest.mark.parametrize("card", [None, *sorted(CARDS.glob("*.yaml"))], ids=lambda card: card.stem if card else "CT")
def test_network_and_transforms_fit_every_card(card: Path | None, tmp_path):
    write_scan(tmp_path / "scan.nii.gz", 1, (24, 20, 12))
    files = [str(PRETRAIN), *([str(card)] if card else [])]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    assert len(network.state_dict()) == 165 + 4
    roi_size = parser.get_parsed_content("roi_size")
    crops = parser.get_parsed_content("train#preprocessing")({"image": str(tmp_path / "scan.nii.gz")})
    assert [tuple(crop["view_2"].shape) for crop in crops] == [(1, *roi_size)] * 2


def test_the_full_network_is_the_transformer_of_the_full_unetr_with_the_same_projection():
    parsers = [ConfigParser(ConfigParser.load_config_file(str(CONFIGS / f"{n}.yaml"))) for n in ("pretrain", "train")]
    parsers[1]["network_def#proj_type"] = parsers[0]["network_def#proj_type"]
    with torch.device("meta"):
        pretraining, unetr = (parser.get_parsed_content("network_def") for parser in parsers)
    source, target = ({n: t.shape for n, t in x.state_dict().items()} for x in (pretraining, unetr.vit))
    assert {name: shape for name, shape in source.items() if name in target} == target
    assert len(target) == 161


def test_the_hippocampus_recipe_pretrains_what_its_segmentation_recipe_trains():
    networks = []
    for config, recipe in (("pretrain", "msd04_hippocampus_pretrain"), ("train", "msd04_hippocampus")):
        files = [CONFIGS / f"{config}.yaml", CARD, RECIPES / f"{recipe}.yaml"]
        parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in files]))
        networks.append(parser.get_parsed_content("network_def"))
    shapes = {f"vit.{name}": tensor.shape for name, tensor in networks[0].state_dict().items()}
    unetr = {name: tensor.shape for name, tensor in networks[1].state_dict().items() if name.startswith("vit.")}
    assert {name: shapes.get(name) for name in unetr} == unetr


# ---- what goes in


def test_views_are_corrupted_independently_within_the_range_of_the_crop(scans, small):
    parser = ConfigParser(ConfigParser.load_config_files([str(PRETRAIN), str(small)]))
    transform = parser.get_parsed_content("train#preprocessing").set_random_state(seed=0)
    shares = []
    for _ in range(10):
        for crop in transform({"image": str(scans / "scan_1.nii.gz")}):
            image, first, second = (crop[key].as_tensor() for key in ("image", "view_1", "view_2"))
            assert image.unique().numel() < 300  # whole HU from -57 to 164: the clean crop stays clean
            assert not torch.equal(first, second)
            for view in (first, second):
                assert image.min() <= view.min() <= view.max() <= image.max()
                shares.append(float((view != image).float().mean()))
    assert 0 < min(shares) < 0.15  # small blocks dropped
    assert max(shares) > 0.5  # all but small blocks dropped


@pytest.mark.costs(processes=2)
def test_validation_is_the_same_with_every_seed_and_number_of_workers(scans, small, tmp_path):
    contents = []
    for seed, num_workers in ((0, 0), (1, 1)):
        workflow = make_workflow(
            [PRETRAIN, small], dataset_dir=str(scans), output_dir=str(tmp_path), seed=seed, num_workers=num_workers
        )
        loader = workflow.parser.get_parsed_content("validate#dataloader")
        contents += [batch["view_1"].as_tensor() for _ in range(2) for batch in loader]
    assert len(contents) == 4
    assert all(torch.equal(content, contents[0]) for content in contents)


@pytest.mark.parametrize("source", ["folders", "dataset.json"])
def test_several_folders_and_training_lists_are_sources(source, scans, small, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write_scan(other / "extra.nii.gz", 50)
    dataset_dir: object = [str(scans), str(other)]
    if source == "dataset.json":
        names = [f"../scans/scan_{number}.nii.gz" for number in (1, 2, 3)]
        content = {"training": [{"image": n, "label": "none"} for n in names], "validation": []}
        (other / "dataset.json").write_text(json.dumps(content))
        dataset_dir = str(other)
    workflow = make_workflow([PRETRAIN, small], dataset_dir=dataset_dir, output_dir=str(tmp_path))
    found = [Path(scan["image"]).name for scan in workflow.parser.get_parsed_content("scans")]
    numbers = (1, 2, 3, 4, 6, 7) if source == "folders" else (1, 2, 3)
    extra = ["extra.nii.gz"] if source == "folders" else []
    assert found == [f"scan_{number}.nii.gz" for number in numbers] + extra
