# SPDX-License-Identifier: Apache-2.0
"""What all bundles have in common: configs that agree with each other, with their metadata and with the cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from products import cover

from tools.bundles import BUNDLES, CARDS, REPOSITORY

NAMES = sorted(path.parents[1].name for path in BUNDLES.glob("*/configs/metadata.json"))
PRETRAINED = ("swin_unetr_ssl", "voco_finetune")
SCHEMA = REPOSITORY / "tools" / "linting" / "meta_schema_20240725.json"
# of the card `btcv`: voxels as VoCo's code has them, slices without spacing and crops
OWN_VALUES = {"voco_finetune": {"pixdim"}}
each_bundle = pytest.mark.parametrize("name", NAMES)


def read(name: str, config: str) -> dict[str, Any]:
    return yaml.safe_load((BUNDLES / name / "configs" / f"{config}.yaml").read_text())


def take_image_part(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what transforms do to images, as inference writes it."""
    kept = []
    for step in steps:
        keys = step["keys"] if isinstance(step["keys"], list) else [step["keys"]]
        if "image" in keys:
            place = keys.index("image")
            each = ("mode", "anti_aliasing")  # one for each of the keys
            first = {k: v[place] if k in each and isinstance(v, list) else v for k, v in step.items()}
            kept.append({**first, "keys": "image"})
    return kept


def get_stem(value: str | Path) -> str:
    return Path(value).stem


@each_bundle
def test_the_card_btcv_is_written_out_in_train_and_inference(name):
    card = yaml.safe_load((CARDS / "btcv.yaml").read_text())
    train, inference = read(name, "train"), read(name, "inference")
    keys = card.keys() & train.keys() - OWN_VALUES.get(name, set())
    assert keys >= {"labels", "label_map", "validation_cases", "orientation", "intensity"}
    parser = ConfigParser(train)
    assert parser.get_parsed_content("validation_cases") == card["validation_cases"]
    assert parser.get_parsed_content("mirrored") == card["mirrored"]
    keys -= {"validation_cases", "mirrored"}
    assert {key: train[key] for key in keys} == {key: card[key] for key in keys}
    # the split is that of BTCV, not of other data
    assert ConfigParser(train | {"labels": ["background", "a", "b"]}).get_parsed_content("validation_cases") == []
    shared = card.keys() & inference.keys() - {"foreground_crop", "mirrored"}  # of the label too: see the next test
    assert shared >= {"labels", "orientation", "intensity"}
    assert {key: inference[key] for key in shared} == {key: train[key] for key in shared}


@each_bundle
def test_training_and_inference_have_the_same_network_and_prepare_images_in_the_same_way(name):
    train, inference = read(name, "train"), read(name, "inference")
    assert train["network_def"] == inference["network_def"]
    # use_checkpoint: for memory in training; the network is the same
    # patch_merging: corrected in both until weights tell another one; inference tells it in its state dict, too
    arguments = {str(value)[1:] for value in train["network_def"].values() if str(value).startswith("@")}
    for key in {*arguments, "mirror_axes", "mirrored", "mirrored_classes"} - {
        "use_checkpoint",
        "patch_merging",
    } & train.keys():
        assert train[key] == inference[key], key
    assert (train.get("patch_merging"), inference.get("patch_merging")) in {(None, None), (None, "auto")}
    assert take_image_part(train["train"]["geometry"]) == inference["geometry"]
    assert take_image_part(train["validate"]["geometry"]) == inference["geometry"]
    if "foreground_crop" in inference:
        assert take_image_part(train["foreground_crop"]) == inference["foreground_crop"]


@each_bundle
@pytest.mark.parametrize("config", ["train", "pretrain", "inference"])
def test_a_device_may_be_a_name(name, config):
    """As on the command line, --device cpu, and as MONAI Label gives it."""
    path = BUNDLES / name / "configs" / f"{config}.yaml"
    parser = ConfigParser(yaml.safe_load(path.read_text()) if path.is_file() else {})
    parser["device"] = "cpu"
    assert parser.get_parsed_content("device") == "cpu"
    if "memory_format" in parser:
        assert parser.get_parsed_content("memory_format") is torch.channels_last_3d


@each_bundle
def test_metadata_follow_the_schema_and_name_the_labels_of_the_config_and_its_network(name):
    metadata = json.loads((BUNDLES / name / "configs" / "metadata.json").read_text())
    jsonschema.validate(metadata, json.loads(SCHEMA.read_text()))
    assert metadata["version"] in metadata["changelog"]
    inference, tensors = read(name, "inference"), metadata["network_data_format"]
    assert list(tensors["outputs"]["pred"]["channel_def"].values()) == inference["labels"]
    assert tensors["outputs"]["pred"]["num_channels"] == len(inference["labels"])
    if "roi_size" in inference:
        assert tensors["inputs"]["image"]["spatial_shape"] == inference["roi_size"]


@pytest.mark.parametrize(("name", "card"), cover(NAMES, sorted(CARDS.glob("*.yaml"))), ids=get_stem)
def test_every_card_gives_transforms_and_a_label_map_that_fit_its_labels(name, card: Path):
    train = BUNDLES / name / "configs" / "train.yaml"
    parser = ConfigParser(ConfigParser.load_config_files([str(train), str(card)]))
    assert set(parser.get_parsed_content("label_map").values()) == set(range(parser.get_parsed_content("num_classes")))
    for section in ("train", "validate"):
        parser.get_parsed_content(f"{section}#preprocessing")


@pytest.mark.parametrize(
    "recipe",
    [path for name in PRETRAINED for path in sorted((BUNDLES / name / "configs" / "recipes").glob("*[!n].yaml"))],
    ids=lambda path: f"{path.parts[-4]}-{path.stem}",
)
def test_a_recipe_fits_the_card_of_its_name(recipe: Path):
    """One without a card is for the data set of train.yaml."""
    train = recipe.parents[1] / "train.yaml"
    files = [train, *([card] if (card := CARDS / recipe.name).is_file() else []), recipe]
    parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in files]))
    assert all(size % 32 == 0 for size in parser.get_parsed_content("roi_size"))
    parser.get_parsed_content("train#preprocessing")
    flips = [step for step in parser["augmentation"] if step["_target_"].endswith("RandMirrord")]
    axes = parser["mirror_axes"] if isinstance(parser["mirror_axes"], list) else []  # of this recipe, or the default
    assert [step["axes"] for step in flips] == ["@mirror_axes"] * len(flips)
    assert flips or not axes, "test-time mirroring shows what training has shown"


@pytest.mark.parametrize("name", PRETRAINED)
def test_pretraining_says_what_training_says_in_the_same_way(name):
    train, pretrain = read(name, "train"), read(name, "pretrain")
    same = "device memory_format num_workers seed in_channels orientation feature_size window_size use_v2 lr_scheduler"
    assert {key: pretrain[key] for key in same.split()} == {key: train[key] for key in same.split()}
    images = [step for step in take_image_part(train["validate"]["geometry"]) if "Spacing" not in step["_target_"]]
    assert pretrain["train"]["geometry"] == images


@pytest.mark.parametrize("name", PRETRAINED)
def test_processes_do_not_search_for_unused_parameters(name):
    """All of them get a gradient: tests/networks and tests/pretraining."""
    for config in ("multi_gpu_train", "multi_gpu_pretrain"):
        assert "find_unused_parameters" not in read(name, config)["network"]
