# SPDX-License-Identifier: Apache-2.0
"""Every bundle with every card: crops that fit the network, and trainings with a card of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from card_trainings import NAMES, SMALL, check_training, read_card, shrink, write_dataset
from monai.bundle import ConfigParser
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Compose
from products import cover

from tools.bundles import BUNDLES, CARDS

# cards whose crops, channels, label values and intensities differ most; the contract tests train with all of them
KINDS = {
    "acdc": 2,  # crops of 16 slices, percentiles
    "msd01_brain": 1,  # four channels
    "mmwhs": 2,  # label values up to 850
}
SWIN = ("swin_unetr_ssl", "voco_finetune")
THREE_D = ("unetr_btcv", *SWIN)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each card."""
    folders = {name: tmp_path_factory.mktemp(name) for name in KINDS}
    return {name: write_dataset(folder, name, shrink(read_card(name)["roi_size"])) for name, folder in folders.items()}


def parse(bundle: str, config: str, card: str, **values: Any) -> ConfigParser:
    """Return a config with a card and a small network; sizes stay those of the card."""
    files = [BUNDLES / bundle / "configs" / f"{config}.yaml", CARDS / f"{card}.yaml"]
    parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in files]))
    small = {"network_def#hidden_size": 12, "network_def#mlp_dim": 12, "network_def#num_heads": 1}
    small = small if bundle == "unetr_btcv" else {"feature_size": 12}
    parser.update({"bundle_root": str(BUNDLES / bundle), "device": "cpu", **small, **values})
    return parser


def find_window(parser: ConfigParser) -> list[int]:
    """Return the size of the crops that the network of a config takes, as the network itself knows it."""
    network = parser.get_parsed_content("network_def")
    return list(network.image_shape[1:] if hasattr(network, "image_shape") else network.img_size)


def make_volume(parser: ConfigParser, window: Sequence[int]) -> dict[str, MetaTensor]:
    """Return image and label, larger than the crop along X and Y and thinner along Z."""
    shape = (window[0] + 3, window[1] + 9, window[2] - 5)
    affine = torch.diag(torch.tensor([*parser.get("pixdim", (1.0, 1.0, 1.0)), 1.0]))
    label = torch.zeros(1, *shape)
    label[:, 4:9, 5:11, 2:7] = 1
    return {
        "image": MetaTensor(torch.rand(parser["in_channels"], *shape), affine),
        "label": MetaTensor(label, affine),
    }


def take_crops(parser: ConfigParser, volume: dict[str, MetaTensor], *steps: str) -> dict[str, torch.Tensor]:
    """Return the crops of two volumes as a batch."""
    chain = Compose([step for name in steps for step in parser.get_parsed_content(name)])
    batch = []
    for seed in range(2):
        batch += chain.set_random_state(seed=seed)(volume)
    return list_data_collate(batch)


# ---- crops


@pytest.mark.parametrize(("bundle", "card"), cover(THREE_D, NAMES, KINDS))
def test_crops_have_the_size_that_the_network_takes_whatever_is_done_to_them(bundle, card):
    parser = parse(bundle, "train", card, num_samples=2)
    steps = parser["augmentation"]
    parser.update({f"augmentation#{number}#prob": 1.0 for number, step in enumerate(steps) if "prob" in step})
    window = find_window(parser)
    assert all(asked <= taken < asked + 32 for asked, taken in zip(parser["roi_size"], window, strict=True))
    crops = take_crops(parser, make_volume(parser, window), "train#sampling", "augmentation")
    assert crops["image"].shape == (4, parser["in_channels"], *window)
    assert crops["label"].shape == (4, 1, *window)


@pytest.mark.parametrize(("bundle", "card"), cover(SWIN, NAMES, KINDS))
def test_validation_and_inference_have_the_windows_of_training(bundle, card):
    train, inference = parse(bundle, "train", card), parse(bundle, "inference", card)
    window = find_window(train)
    assert find_window(inference) == window
    assert list(train.get_parsed_content("validate#window_inferer").roi_size) == window
    assert list(inference.get_parsed_content("window_inferer").roi_size) == window


@pytest.mark.parametrize(("bundle", "card"), cover(("unetr_btcv", "swin_unetr_ssl"), NAMES, KINDS))
def test_pretraining_takes_the_crops_of_every_card(bundle, card):
    parser = parse(bundle, "pretrain", card, num_samples=2)
    parser.get_parsed_content("network_def")
    size = parser.get_parsed_content("fitted_roi_size") if bundle == "swin_unetr_ssl" else parser["roi_size"]
    crops = take_crops(parser, make_volume(parser, size), "train#sampling")
    assert crops["image"].shape == (4, parser["in_channels"], *size)
    if bundle == "swin_unetr_ssl":
        tasks = parser.get_parsed_content("proxy_tasks")
        assert tasks.turns == (0, 1, 2, 3)
        assert torch.rot90(crops["image"], 1, tasks.plane).shape == crops["image"].shape


# ---- trainings


@pytest.mark.parametrize(("bundle", "card"), cover(tuple(SMALL), tuple(KINDS)))
def test_a_card_of_each_kind_trains_two_epochs_without_a_recipe(bundle, card, datasets, tmp_path):
    check_training(bundle, card, KINDS[card], datasets[card], tmp_path / "run")
