# SPDX-License-Identifier: Apache-2.0
"""What recipes and docs call the published values is what the components of the resolved configs have.

Sources: the training scripts at github.com/Project-MONAI/research-contributions (UNETR/BTCV, SwinUNETR/BTCV,
SwinUNETR/Pretrain), Luffy03/VoCo (Finetune/<set>/main.py and utils/data_utils.py; voco_train.py, utils/data_utils.py),
Luffy03/Large-Scale-Medical (Downstream/monai/BTCV, Self-supervised); the tutorial Project-MONAI/tutorials
self_supervised_pretraining/vit_unetr_ssl/ssl_train.ipynb; TransSeg as Zhang et al., ML4H 2022, describe it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose

from tools.bundles import BUNDLES, CARDS
from tools.losses import DiceSoftmaxFocalLoss

STEPS = 24  # of an epoch: the training cases of BTCV, one a step
SMALL = {
    "unetr_btcv": {"network_def#hidden_size": 12, "network_def#mlp_dim": 12, "network_def#num_heads": 1},
    "swin_unetr_ssl": {"feature_size": 12},
    "voco_finetune": {"feature_size": 12},
    "inflated_vit_seg": {"encoder": "vit_tiny_patch16_224", "network_def#encoder_options": {"depth": 4}},
}
FLIPS_AND_TURNS = {"RandMirrord": [0.2], "RandQuarterTurnd": [0.2]}
WINDOW_HU = (-175, 250)


def parse(bundle: str, config: str, recipe: str | None = None, **values: Any) -> ConfigParser:
    """Return a config with recipe and the card of that name, whose network is small and whose data need no files."""
    configs = BUNDLES / bundle / "configs"
    files = [configs / f"{config}.yaml"]
    if recipe is not None:
        files += [CARDS / f"{recipe.removesuffix('_pretrain')}.yaml", configs / "recipes" / f"{recipe}.yaml"]
    parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in files if file.is_file()]))
    parser.update({"train#dataloader": list(range(STEPS)), "device": "cpu", **values})
    return parser


def describe_training(bundle: str, recipe: str | None) -> dict[str, Any]:
    """Return what the components of a training are made with; its rate is read off its schedule."""
    parser = parse(bundle, "train", recipe)
    found = {"feature_size": parser.get("feature_size")}
    found |= {
        key: parser.get_parsed_content(key)
        for key in ("validation_cases", "pixdim", "epochs", "val_interval", "batch_size")
    }
    crop = parser.get_parsed_content("train#sampling")[-1].cropper
    (window,) = [step for step in parser["intensity"] if step["_target_"] == "ScaleIntensityRanged"]
    loss = parser.get_parsed_content("loss")
    small = parse(bundle, "train", recipe, **SMALL[bundle])
    optimizer = small.get_parsed_content("optimizer")
    rates = read_rates(small, range(parser["epochs"] * STEPS + 1))
    probabilities: dict[str, list[float]] = {}
    for step in parser["augmentation"]:
        if "prob" in step:
            probabilities.setdefault(step["_target_"].rpartition(".")[2], []).append(step["prob"])
    return found | {
        "num_samples": crop.num_samples,
        "crop": list(crop.spatial_size),
        "share on an organ": crop.pos_ratio,
        "warm-up epochs": int(np.argmax(rates)) / STEPS,
        "learning rate": float(np.max(rates)) * optimizer.defaults["lr"],
        "last rate": float(rates[-1]),
        "optimizer": type(optimizer).__name__,
        "weight decay": optimizer.defaults["weight_decay"],
        "amsgrad": optimizer.defaults["amsgrad"],
        "probabilities": probabilities,
        "window HU": (window["a_min"], window["a_max"]),
        "squared": loss.dice.squared_pred,
        "background in Dice": loss.dice.include_background,
        "smoothing": (loss.dice.smooth_nr, loss.dice.smooth_dr),
        "overlap": parser.get_parsed_content("validate#window_inferer").overlap,
        "mixed precision": parser.get("amp"),
    }


def is_equal(found: Any, wanted: Any) -> bool:
    return found == (pytest.approx(wanted) if isinstance(wanted, float) else wanted)


def read_rates(parser: ConfigParser, steps: range | list[int]) -> np.ndarray:
    """Return the share of the learning rate at steps."""
    (factor, *_) = parser.get_parsed_content("lr_scheduler").lr_lambdas
    return np.array([factor(step) for step in steps])


UNETR = {
    "pixdim": [1.5, 1.5, 2.0],
    "window HU": WINDOW_HU,
    "crop": [96, 96, 96],
    "num_samples": 4,
    "share on an organ": 0.5,
    "batch_size": 1,
    "probabilities": FLIPS_AND_TURNS | {"RandScaleIntensityd": [0.1], "RandShiftIntensityd": [0.1]},
    "epochs": 5000,
    "warm-up epochs": 50,
    "learning rate": 1e-4,
    "last rate": 0.0,
    "optimizer": "AdamW",
    "weight decay": 1e-5,
    "amsgrad": False,
    "val_interval": 100,
    "overlap": 0.5,
    "background in Dice": True,
    "squared": True,
    "validation_cases": ["0035", "0036", "0037", "0038", "0039", "0040"],
}
VOCO = {
    "pixdim": [1.5, 1.5, 1.5],
    "window HU": WINDOW_HU,
    "crop": [96, 96, 96],
    "batch_size": 1,
    "learning rate": 3e-4,
    "last rate": 0.0,
    "optimizer": "AdamW",
    "amsgrad": False,
    "overlap": 0.75,
    "background in Dice": False,
    "squared": False,
    "feature_size": 48,
    "share on an organ": 0.9,
    "weight decay": 1e-5,
    "smoothing": (1e-5, 1e-5),
    "probabilities": FLIPS_AND_TURNS | {"RandScaleIntensityd": [0.1], "RandShiftIntensityd": [0.5]},
}
RARELY_SHIFTED = {"probabilities": FLIPS_AND_TURNS | {"RandScaleIntensityd": [0.1], "RandShiftIntensityd": [0.1]}}
TRAININGS: dict[tuple[str, str | None], dict[str, Any]] = {
    ("unetr_btcv", None): UNETR,  # UNETR/BTCV
    ("swin_unetr_ssl", None): UNETR
    | {"squared": False, "smoothing": (1e-5, 1e-5), "feature_size": 48},  # SwinUNETR/BTCV
    ("voco_finetune", None): VOCO  # Large-Scale-Medical; its overlap: docs
    | {"epochs": 1000, "warm-up epochs": 20, "num_samples": 4, "val_interval": 10, "overlap": 0.5},
    ("voco_finetune", "cvpr"): VOCO  # VoCo, Finetune/BTCV
    | {"epochs": 3000, "warm-up epochs": 100, "num_samples": 16, "val_interval": 50, "share on an organ": 0.75}
    | {"mixed precision": False},
    ("voco_finetune", "amos22"): VOCO  # VoCo, Finetune/Amos
    | {"epochs": 1000, "warm-up epochs": 50, "num_samples": 16, "val_interval": 50, "weight decay": 0.005}
    | RARELY_SHIFTED,
    ("voco_finetune", "flare22"): VOCO  # VoCo, Finetune/Flare22
    | {"validation_cases": [f"{number:04}" for number in range(1, 11)]}
    | {"epochs": 3000, "warm-up epochs": 100, "num_samples": 16, "val_interval": 50, "weight decay": 0.005}
    | RARELY_SHIFTED,
    ("voco_finetune", "word"): VOCO  # VoCo, Finetune/Word
    | {"epochs": 200, "warm-up epochs": 5, "num_samples": 4, "val_interval": 10, "feature_size": 96},
    ("voco_finetune", "mmwhs"): VOCO  # VoCo, Finetune/MM-WHS
    | {"validation_cases": ["1001", "1002", "1003", "1004"]}
    | {"epochs": 1000, "warm-up epochs": 50, "num_samples": 4, "val_interval": 50, "weight decay": 0.01}
    | {"amsgrad": True, "learning rate": 1e-3, "crop": [64, 64, 64], "window HU": (0, 1700), "mixed precision": False}
    | RARELY_SHIFTED,
}


@pytest.mark.parametrize("case", TRAININGS, ids=str)
def test_a_recipe_has_the_values_of_the_published_code(case):
    found, published = describe_training(*case), TRAININGS[case]
    differing = {key: (found[key], value) for key, value in published.items() if not is_equal(found[key], value)}
    assert differing == {}


# ---- schedules


def compute_cosine(step: int, warmup: int, total: int) -> float:
    """Return the share of the rate by hand: along a line from 1 %, then half a cosine."""
    if step < warmup:
        return 0.01 + 0.99 * step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


@pytest.mark.parametrize(
    ("bundle", "recipe", "warmup", "total"),
    [
        ("unetr_btcv", None, 50 * STEPS, 5000 * STEPS),
        ("swin_unetr_ssl", None, 50 * STEPS, 5000 * STEPS),
        ("voco_finetune", None, 20 * STEPS, 1000 * STEPS),
        ("voco_finetune", "word", 5 * STEPS, 200 * STEPS),
        ("voco_finetune", "flare22", 100 * STEPS, 3000 * STEPS),
    ],
)
def test_the_rate_warms_up_and_falls_along_a_cosine(bundle, recipe, warmup, total):
    parser = parse(bundle, "train", recipe, **SMALL[bundle])
    steps = [0, 1, warmup // 2, warmup, warmup + 1, total // 3, total // 2, total - 1, total]
    expected = [compute_cosine(step, warmup, total) for step in steps]
    np.testing.assert_allclose(read_rates(parser, steps), expected, atol=1e-12)


def test_the_rate_of_the_codes_btcv_rises_again_as_its_options_are_counted_in_steps():
    """The formula of the code's scheduler: from step 3,000 on it runs on, with a period of 5,800 steps."""
    overlay = BUNDLES / "voco_finetune" / "configs" / "recipes" / "btcv_schedule.yaml"
    parser = parse("voco_finetune", "train", "cvpr", **SMALL["voco_finetune"])
    parser.update(ConfigParser.load_config_file(overlay))
    steps = 3000 * STEPS
    rates = 3e-4 * read_rates(parser, range(steps + 1))
    by_hand = [
        3e-4 * (n / 100 if n < 100 else 0.5 * (1 + math.cos(math.pi * (n - 100) / 2900))) for n in range(steps + 1)
    ]
    np.testing.assert_allclose(rates, by_hand, atol=1e-12)
    assert (int(rates[: 5 * STEPS].argmax()), int(rates[: 130 * STEPS].argmin())) == (100, 0)
    assert rates[125 * STEPS] == pytest.approx(0, abs=1e-9)
    again = [n for n in range(101, steps) if rates[n] > rates[n - 1] and rates[n] >= rates[n + 1]]
    assert len(again) == 12
    assert rates[again] == pytest.approx(3e-4)
    assert rates[-1] == pytest.approx(3.1e-5, rel=0.02)


def test_the_recipe_of_the_omni_code_has_its_values():
    configs = BUNDLES / "voco_finetune" / "configs"
    files = [configs / "train.yaml", configs / "omni.yaml", configs / "recipes" / "omni.yaml"]
    parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in files]))
    small = SMALL["voco_finetune"] | {"optimizer#params": "$@network_def.parameters()"}
    parser.update({"train#dataloader": list(range(STEPS)), "device": "cpu", **small})
    optimizer = parser.get_parsed_content("optimizer")
    assert {key: optimizer.defaults[key] for key in ("lr", "weight_decay", "amsgrad")} == {
        "lr": 1e-4,
        "weight_decay": 0.01,
        "amsgrad": True,
    }
    assert list(parser.get_parsed_content("train#sampling")[-1].cropper.spatial_size) == [64, 64, 64]
    assert parser["unlabelled_batch_size"] == 4
    assert parser["shift_prob"] == 0.1
    names = [step["_target_"].rpartition(".")[2] for step in parser["augmentation"]]
    assert names == ["RandMirrord", "RandQuarterTurnd", "RandShiftIntensityd"]
    assert parser["augmentation"][-1]["prob"] == 0.1
    steps = [0, 2500, 5000, 1_002_500, 2_000_000]
    expected = [compute_cosine(step, 5000, 2_000_000) for step in steps]
    np.testing.assert_allclose(read_rates(parser, steps), expected, atol=1e-9)


def test_the_rate_of_transseg_rises_for_20_steps_and_falls_along_a_line_to_0():
    parser = parse("inflated_vit_seg", "train", "transseg", **SMALL["inflated_vit_seg"], image_size=[32, 32])
    parser["train#dataloader"] = list(range(18))
    total = 18 * parser["epochs"]
    assert 25_000 <= total < 25_000 + 18
    steps = [0, 7, 20, 21, 1000, total // 2, total - 1, total]
    expected = np.interp(steps, [0, 20, total], [0, 1, 0])
    np.testing.assert_allclose(read_rates(parser, steps), expected, atol=1e-12)
    optimizer, scheduler = (parser.get_parsed_content(key) for key in ("optimizer", "lr_scheduler"))
    for _ in range(21):
        optimizer.step()
        scheduler.step()
    expected = 3e-5 * np.interp(21, [20, total], [1, 0])
    np.testing.assert_allclose([group["lr"] for group in optimizer.param_groups], expected, rtol=1e-12)


# ---- TransSeg


def test_the_recipe_of_transseg_has_its_network_split_and_augmentation():
    parser = parse("inflated_vit_seg", "train", "transseg", **{"network_def#img_size": [64, 64]})
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    count = sum(parameter.numel() for parameter in network.decoder.parameters())
    assert count == 74_940_686
    assert (
        sum(parameter.numel() for parameter in network.encoder.parameters())
        == 86_620_224 - BEIT_TABLES_512 + BEIT_TABLES_64
    )
    assert network.decoder.dropout.p == 0.1
    assert [int(case) for case in parser["validation_cases"]] == [1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38]
    probabilities = [(step["_target_"].rpartition(".")[2], step.get("prob")) for step in parser["augmentation"]]
    assert [entry for entry in probabilities if entry[1] is not None] == [
        ("RandZoomd", 1.0),
        ("RandMirrord", 0.1),
        ("RandQuarterTurnd", 0.1),
        ("RandShiftIntensityd", 0.5),
    ]
    groups = {group["weight_decay"] for group in parse_optimizer(parser).param_groups}
    assert groups == {0.0, 0.05}
    assert isinstance(parser.get_parsed_content("loss"), DiceSoftmaxFocalLoss)
    assert {key: parser[key] for key in ("learning_rate", "clip_norm", "batch_size", "num_samples", "loss_name")} == {
        "learning_rate": 3e-5,
        "clip_norm": 1.0,
        "batch_size": 1,
        "num_samples": 16,
        "loss_name": "dice_focal",
    }


# 12 blocks of 12 heads: offsets of a square grid of patches, and three of the class token
BEIT_TABLES_512, BEIT_TABLES_64 = (12 * 12 * ((2 * patches - 1) ** 2 + 3) for patches in (32, 4))


def parse_optimizer(parser: ConfigParser) -> torch.optim.Optimizer:
    small = ConfigParser(parser.get())
    small.update(SMALL["inflated_vit_seg"] | {"network_def#decoder_channels": 8})
    return small.get_parsed_content("optimizer")


def test_windows_are_zoomed_from_half_to_twice_in_the_plane_and_never_across_slices():
    parser = parse("inflated_vit_seg", "train", image_size=[40, 48])
    zoom = Compose(parser.get_parsed_content("augmentation")[:3])
    window = torch.zeros(1, 40, 48, 5)
    window[:, 14:26, 18:30] = 1  # 12 x 12 pixels, in the middle
    window = window * torch.arange(1.0, 6.0)
    edges = []
    for seed in range(60):
        data = zoom.set_random_state(seed=seed)({"image": MetaTensor(window), "label": MetaTensor(window)})
        assert data["image"].shape == data["label"].shape == (1, 40, 48, 5)
        label = data["label"][0].numpy()
        assert all(set(np.unique(label[..., slice_])) <= {0, slice_ + 1} for slice_ in range(5)), "slices are mixed"
        shown = label[..., 2] > 0
        if not (shown[0] | shown[-1]).any() and not (shown[:, 0] | shown[:, -1]).any():
            edges.append([shown.any(axis=1).sum() / 12, shown.any(axis=0).sum() / 12])
    edges = np.array(edges)
    assert np.abs(edges[:, 0] - edges[:, 1]).max() <= 0.2, "height and width are zoomed alike, to a pixel"
    assert 0.4 <= edges.min() < 0.7
    assert 1.6 < edges.max() <= 2.1


# ---- pre-training


def read_fitting(config: str, *overlays: str) -> list[Any]:
    configs = BUNDLES / "voco_finetune" / "configs"
    files = [str(configs / f"{name}.yaml") for name in (config, *overlays)]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser.update({"grid": [3, 2, 2], "crop_size": [4, 6, 5]})
    return parser.get_parsed_content("fitting")


def make_ramps(sizes: tuple[int, ...], place: Any) -> np.ndarray:
    """Return the sum of ramps of three slopes, read at the places along each axis that `place` gives."""
    axes = [slope * place(size) for slope, size in zip((1.0, 10.0, 100.0), sizes, strict=True)]
    return axes[0][:, None, None] + axes[1][None, :, None] + axes[2][None, None, :]


@pytest.mark.parametrize(
    ("files", "has_corners"),
    [
        (("pretrain",), True),
        (("pretrain", "regions/abdomen"), True),
        (("pretrain", "regions/head_neck"), True),
        (("pretrain", "recipes/cvpr_pretrain"), True),
        (("train", "omni"), True),
        (("pretrain", "recipes/openkbp_hn_pretrain"), False),  # as the committed model was made
    ],
    ids=str,
)
def test_whole_scans_are_resized_with_their_corners_in_the_corners(files, has_corners):
    """`align_corners` of VoCo's code; a ramp is resized to a ramp, whose values tell where it was read."""
    before, after = (7, 9, 6), (12, 12, 10)
    image = make_ramps(before, lambda size: np.arange(size, dtype=float))
    resized = Compose(read_fitting(*files))({"image": MetaTensor(torch.tensor(image)[None].float())})["image"][
        0
    ].numpy()

    def read_corners(size: int) -> np.ndarray:
        return np.linspace(0, size - 1, after[before.index(size)])

    def read_centres(size: int) -> np.ndarray:
        count = after[before.index(size)]
        return np.clip((np.arange(count) + 0.5) * size / count - 0.5, 0, size - 1)

    expected = make_ramps(before, read_corners if has_corners else read_centres)
    np.testing.assert_allclose(resized, expected, atol=1e-3)


def test_the_pretraining_of_swin_unetr_has_the_values_of_the_code():
    parser = parse("swin_unetr_ssl", "pretrain", feature_size=12)  # SwinUNETR/Pretrain
    optimizer, tasks, loss = (parser.get_parsed_content(key) for key in ("optimizer", "proxy_tasks", "loss"))
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (4e-4, 0.1)
    assert (tasks.cutout, tasks.swap, tasks.turns, tasks.plane) == (0.3, 0.3, (0, 1, 2, 3), (3, 4))
    assert (loss.contrast_loss.temperature, set(loss.weights.values())) == (0.5, {1.0})
    assert (parser["batch_size"], parser["num_samples"], parser["clip_norm"]) == (2, 2, 1.0)
    assert (parser["intensity"][0]["a_min"], parser["intensity"][0]["a_max"]) == (-1000, 1000)


@pytest.mark.parametrize(
    ("recipe", "crops", "shift", "variant"),
    [
        (None, ((3, 3, 1), (64, 64, 64), None), 0.5, "extension"),
        ("cvpr_pretrain", ((4, 4, 1), (96,) * 3, (64,) * 3), 0.1, "cvpr"),
    ],
)
def test_the_pretraining_of_voco_has_the_values_of_its_codes(recipe, crops, shift, variant):
    parser = parse("voco_finetune", "pretrain", recipe, feature_size=12)
    optimizer, volume_crops = (parser.get_parsed_content(key) for key in ("optimizer", "volume_crops"))
    defaults = optimizer.defaults
    assert (defaults["lr"], defaults["weight_decay"], defaults["amsgrad"]) == (1e-4, 0.01, True)
    assert (volume_crops.grid, volume_crops.crop_size, volume_crops.resized) == crops
    assert (volume_crops.num_crops, volume_crops.flip_prob, volume_crops.turn_prob) == (2, 0.2, 0.2)
    assert (volume_crops.shift, volume_crops.shift_prob, parser["variant"]) == (0.1, shift, variant)
    assert (parser["momentum"], parser["batch_size"]) == (0.9, 2)


def test_the_pretraining_of_unetr_has_the_values_of_the_tutorial_but_for_optimizer_and_contrast():
    parser = parse("unetr_btcv", "pretrain", **SMALL["unetr_btcv"])
    assert parser["pixdim"] == [2.0, 2.0, 2.0]
    assert (parser["intensity"][0]["a_min"], parser["intensity"][0]["a_max"]) == (-57, 164)
    assert (parser["epochs"], parser["batch_size"], parser["num_samples"], parser["val_interval"]) == (500, 4, 2, 2)
    assert parser.get_parsed_content("loss").contrast_loss.temperature == 0.05
    _, drop, shuffle, *_ = parser.get_parsed_content("views")
    inside, outside = (step.dropper for step in drop.transforms)
    assert (inside.holes, inside.spatial_size, inside.max_spatial_size, inside.dropout_holes) == (6, 5, 32, True)
    assert (outside.holes, outside.spatial_size, outside.max_spatial_size, outside.dropout_holes) == (6, 20, 64, False)
    assert (shuffle.shuffle.holes, shuffle.shuffle.spatial_size, shuffle.prob) == (10, 8, 0.8)
    document = (BUNDLES / "unetr_btcv" / "docs" / "README.md").read_text()
    assert "| optimizer | Adam, 1e-4, no decay | AdamW, 1e-4, decay 1e-5" in document
    assert parser.get_parsed_content("optimizer").defaults["weight_decay"] == 1e-5
