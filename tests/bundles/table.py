# SPDX-License-Identifier: Apache-2.0
"""The bundles as the tests of a training's life see them: a row each, with what makes it small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEDULE = {"epochs": 2, "checkpoint_interval": 1, "num_workers": 0, "learning_rate": 0.001}
# another orientation, spacing and other names than those of the bundles, so that whoever forgets one is noticed
LABELS = {
    "labels": ["background", "Bäll, 1", "N/A"],
    "orientation": "LPS",
    "pixdim": [1.0, 1.0, 2.0],
    "val_interval": 2,
}
TINY_SWIN = {"feature_size": 12, "window_size": [2, 2, 2]}
# 32 x 32 x 64 is the smallest crop of a Swin UNETR: deeper than 1 x 1 x 2 there is nothing to normalize over
SWIN = SCHEDULE | LABELS | TINY_SWIN | {"roi_size": [32, 32, 64], "warmup_epochs": 1, "batch_size": 2, "num_samples": 1}
TINY_UNETR = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 3}


def name_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {f"network_def#{name}": value for name, value in arguments.items()}


@dataclass(frozen=True)
class Training:
    """A bundle's train.yaml, evaluate.yaml and inference.yaml.

    Args:
        small: the overlay that makes its network, crops and schedule small.
        wide: a change of one argument of the network, so that weights of the small one do not fit.
        label_values: values of the labels' files for background, ball and shell.
        channels: volumes in a file.
    """

    small: Mapping[str, Any]
    wide: Mapping[str, Any]
    label_values: tuple[int, int, int] = (0, 1, 2)
    channels: int = 1


TRAININGS = {
    "unetr_btcv": Training(
        SCHEDULE
        | LABELS
        | name_arguments(TINY_UNETR)
        | {"roi_size": [16, 16, 16], "overlap": 0.25, "warmup_epochs": 1, "num_samples": 2},
        {"network_def#hidden_size": 48},
    ),
    "swin_unetr_ssl": Training(SWIN | {"overlap": 0.25}, {"feature_size": 24}),
    "voco_finetune": Training(
        SWIN | {"overlap": 0.0, "label_map": {0: 0, 205: 1, 420: 2}}, {"feature_size": 24}, (0, 205, 420), 3
    ),  # values as in MM-WHS
    "inflated_vit_seg": Training(
        SCHEDULE
        | LABELS
        | {
            "encoder": "vit_tiny_patch16_224",
            "decoder": "unetr",
            "image_size": [32, 40],
            "num_samples": 4,
            **name_arguments({"decoder_channels": 4, "encoder_options": {"depth": 4}}),
        },
        {"network_def#decoder_channels": 8},
        channels=2,
    ),
}


@dataclass(frozen=True)
class Pretraining:
    """A bundle's pretrain.yaml.

    Args:
        small: the overlay that makes its network, crops and schedule small.
        terms: the loss as the sum of its parts, each times a number.
        measured: what validation measures; the first decides which epoch is the best.
        choose: `min` or `max` of it.
        saving: what saves memory and changes no number.
        kept: prefixes of the tensors that training starts from, and how many there are.
        shared: what is the same in two processes, as an expression in the config.
        mistakes: overrides and how the sentence about them begins.
    """

    small: Mapping[str, Any]
    terms: Mapping[str, float]
    measured: tuple[str, ...]
    choose: Any
    kept: tuple[tuple[str, ...], int]
    shared: str
    saving: Mapping[str, Any] = field(default_factory=dict)
    mistakes: tuple[tuple[Mapping[str, Any], str], ...] = ()


PRETRAININGS = {
    "unetr_btcv": Pretraining(
        SCHEDULE
        | name_arguments({"hidden_size": 24, "mlp_dim": 48, "num_heads": 3, "num_layers": 2})
        | {
            "pixdim": [1.0, 1.0, 2.0],
            "roi_size": [32, 16, 16],
            "dropped_blocks": {"count": 2, "smallest": 2, "largest": 8},
            "kept_blocks": {"count": 2, "smallest": 4, "largest": 12},
            "shuffled_blocks": {"count": 2, "size": 3},
            "warmup_epochs": 1,
            "batch_size": 2,
            "val_interval": 1,
        },
        terms={"reconstruction": 1.0, "contrast": 0.1},
        measured=("reconstruction",),
        choose=min,
        kept=(("",), 35 + 4),
        shared="float(@loss.contrast)",
        mistakes=(
            ({"roi_size": [32, 20, 16]}, "roi_size: found 32×20×16, wanted multiples of 16"),
            ({"temperature": 0.005}, "temperature: found 0.005"),
        ),
    ),
    "swin_unetr_ssl": Pretraining(
        SCHEDULE
        | TINY_SWIN
        | {
            "roi_size": [32, 32, 64],
            "turn_axis": 2,
            "warmup_epochs": 1,
            "batch_size": 2,
            "num_samples": 1,
            "val_interval": 1,
            "loss_weights": {"rotation": 0.5, "contrast": 2.0, "reconstruction": 3.0},
        },
        terms={"rotation": 0.5, "contrast": 2.0, "reconstruction": 3.0},
        measured=("reconstruction",),
        choose=min,
        saving={"use_checkpoint": True},
        kept=(("swinViT.",), 126),
        shared="float(@loss.contrast)",
        mistakes=(
            (
                {"roi_size": [32, 40, 96], "turn_axis": 2},
                "roi_size: found 32×64×96, wanted the same along X and Y for quarter turns about Z; change it, ",
            ),
            (
                {"tasks": ["rotaton"]},
                "tasks: found rotaton, wanted one or more of rotation, contrast, reconstruction; correct --tasks.",
            ),
            (
                {"tasks": []},
                "tasks: found none, wanted one or more of rotation, contrast, reconstruction; correct --tasks.",
            ),
            (
                {"turn_axis": 0},
                "roi_size: found 32×32×64, wanted the same along Y and Z for quarter turns about X; "
                "change it, set --turn_axis 2 or --turns [0,2], half turns alone.",
            ),
            ({"turns": []}, "tasks: found rotation of crops that are not turned, wanted turns; set turns [0,1,2,3]."),
            ({"temperature": 0.001}, "temperature: found 0.001"),
        ),
    ),
    "voco_finetune": Pretraining(
        SCHEDULE
        | TINY_SWIN
        | {
            "crop_size": [32, 32, 64],
            "grid": [2, 1, 1],
            "use_checkpoint": False,
            "embedding_dim": 32,
            "warmup_epochs": 1,
            "batch_size": 2,
            "num_crops": 1,
            "val_crops": 2,
            "val_interval": 1,
            "loss_weights": {"prediction": 2.0, "inter_volume": 0.5, "regularization": 3.0},
        },
        terms={"positive": 2.0, "negative": 2.0, "inter_volume": 0.5, "regularization": 3.0},
        measured=("retrieval", "prediction"),
        choose=max,
        saving={"use_checkpoint": True, "crops_at_once": 3},
        kept=(("backbone.",), 145),
        shared="sum(p.abs().sum().item() for p in @network_def.teacher.parameters())",
        mistakes=(
            ({"variant": "v2"}, "variant: found 'v2', wanted one of cvpr, extension, paper; correct --variant."),
            (
                {"grid": [1, 1, 1]},
                "grid: found [1, 1, 1], wanted base crops along X, Y, Z, two in all; use [3, 3, 1].",
            ),
            (
                {"crop_size": [32, 32, 40]},
                "crop_size: found 32×32×40, wanted multiples of 32, not all of them 32; set --crop_size [32,32,64].",
            ),
            (
                {"crop_size": [32, 64, 32]},
                "crop_size: found 32×64×32, wanted the same along X and Y for quarter turns",
            ),
            ({"feature_size": 20}, "feature_size: found 20"),
            ({"embedding_dim": 0}, "embedding_dim: found 0, wanted at least 1"),
            ({"momentum": 1.1}, "momentum: found 1.1, wanted a number from 0 to 1; correct --momentum ("),
            ({"flip_prob": 2}, "flip_prob: found 2"),
            ({"num_crops": 0}, "num_crops: found 0"),
            ({"crops_at_once": 0}, "crops_at_once: found 0"),
            (
                {"fitting": [], "resampling": [], "foreground_crop": []},
                "image: found volumes of 36×34×66 voxels, wanted 64×32×64, 2×1×1 crops of 32×32×64",
            ),
        ),
    ),
}
