# SPDX-License-Identifier: Apache-2.0
"""What training sees is what the patient has: labels lie where their images lie, and right is right."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose
from products import cover

from tools.bundles import BUNDLES, CARDS
from tools.checks.settings import _tell_mirroring
from tools.datasets.sides import list_sided

NAMES = ["unetr_btcv", "swin_unetr_ssl", "voco_finetune", "inflated_vit_seg"]
OVERLAYS = sorted(
    path
    for folder in ("recipes", "augmentation", "regions")
    for path in BUNDLES.glob(f"*/configs/{folder}/*.yaml")
    if not path.stem.endswith("_pretrain")
)
COMBINATIONS = [
    *cover(NAMES, [card.stem for card in sorted(CARDS.glob("*.yaml"))]),
    *((path.parts[-4], path) for path in OVERLAYS),
]
MOST_OFFSET = 0.12  # voxels
# by halves and the like, the centre of each new voxel is on a border, and the nearest old one lies to one side
ZOOMS = (0.71, 1.37)


def read_train(name: str, overlay: str | Path, **values: Any) -> ConfigParser:
    """Return train.yaml of a bundle with a card, or with an overlay of its own over the card of that name."""
    own = [CARDS / f"{overlay}.yaml"] if isinstance(overlay, str) else [CARDS / overlay.name, overlay]
    files = [BUNDLES / name / "configs" / "train.yaml", *(path for path in own if path.is_file())]
    parser = ConfigParser(ConfigParser.load_config_files([str(path) for path in files]))
    parser.update({"bundle_root": str(BUNDLES / name), **values})
    return parser


def make_ball(shape: tuple[int, ...], radius: float) -> dict[str, MetaTensor]:
    """Return the ball as a soft image, 0.5 at its surface, and as a label."""
    points = np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) / 2 - [0.3, -0.2, 0.1]
    distance = np.linalg.norm(points, axis=-1) - radius
    image = torch.tensor(1 / (1 + np.exp(distance)), dtype=torch.float32)[None]
    return {"image": MetaTensor(image), "label": MetaTensor(torch.tensor(distance <= 0, dtype=torch.float32)[None])}


def measure_offset(data: dict[str, torch.Tensor]) -> float:
    """Return the distance in voxels between the centres of the ball in image and label."""
    masks = [(data["image"] > 0.5)[0], (data["label"] > 0.5)[0]]
    if min(int(mask.sum()) for mask in masks) < 50:  # cut off
        return 0.0
    centres = [torch.stack([axis.float().mean() for axis in torch.nonzero(mask, as_tuple=True)]) for mask in masks]
    return float((centres[0] - centres[1]).abs().max())


def force(steps: list[Any], zoom: float) -> list[Any]:
    """Return the steps that move labels, each with probability 1."""
    kept = []
    for step in steps:
        keys = step["keys"] if isinstance(step["keys"], list) else [step["keys"]]
        if "label" in keys and step["_target_"].rpartition(".")[2] not in ("LoadScand", "EnsureChannelFirstd"):
            zooms = {"min_zoom": [zoom, 1.0], "max_zoom": [zoom, 1.0]} if "min_zoom" in step else {}
            kept.append({**step, **zooms, "prob": 1.0} if "prob" in step else step)
    return kept


@pytest.mark.numeric
@pytest.mark.parametrize(("name", "overlay"), COMBINATIONS, ids=lambda value: getattr(value, "stem", value))
def test_labels_lie_where_their_images_lie_behind_each_transform(name, overlay):
    parser = read_train(name, overlay, pixdim=[1.3, 1.2, 1.6], roi_size=[64, 64, 64], num_samples=1)
    if name == "inflated_vit_seg":
        parser["image_size"] = [84, 126]
    parser["label_map"] = dict(enumerate(range(len(parser.get_parsed_content("labels")))))
    parser["mirror_axes"] = [0, 1, 2]
    parser["mirrored"] = {}
    ids = ["train#geometry", "train#sampling", "augmentation"]
    plain = {identifier: parser[identifier] for identifier in ids}
    compared = 0
    for seed, zoom in enumerate(ZOOMS):
        parser.update({identifier: force(steps, zoom) for identifier, steps in plain.items()})
        data: Any = make_ball((61, 70, 50), 17)
        for transform in [step for identifier in ids for step in parser.get_parsed_content(identifier)]:
            if hasattr(transform, "set_random_state"):
                transform.set_random_state(seed)
            data = transform(data)
            data = data[0] if isinstance(data, list) else data
            offset = measure_offset(data)
            compared += offset > 0
            assert offset <= MOST_OFFSET, f"{type(transform).__name__} moves the label by {offset:.2f} voxels"
    assert compared, "no transform showed the ball"


@pytest.mark.parametrize("size", [(35, 51, 36), (320, 320, 8), (630, 630, 8), (768, 768, 8)], ids=str)
@pytest.mark.numeric
def test_labels_of_resized_slices_lie_where_their_images_lie(size):
    wanted = [84, 126] if size[0] < 64 else [512, 512]
    parser = read_train("inflated_vit_seg", "msd03_liver", image_size=wanted)
    (resize,) = [step for step in parser["train#geometry"] if step["_target_"] == "Resized"]
    parser["train#geometry"] = [resize]
    (transform,) = parser.get_parsed_content("train#geometry")
    data = transform(make_ball(size, 12))
    assert measure_offset(data) <= MOST_OFFSET
    both = (data["image"] > 0.5) & (data["label"] > 0.5)
    assert 2 * both.sum() / ((data["image"] > 0.5).sum() + (data["label"] > 0.5).sum()) >= 0.97


def show_patient(labels: list[str], pairs: list[tuple[int, int]]) -> MetaTensor:
    """Return a label whose first two pairs lie right and left, with a mark in front and one at the head."""
    volume = torch.zeros(1, 32, 32, 32)
    for number, (right, left) in enumerate(pairs):
        volume[0, 24, 10, 10 + number], volume[0, 4, 10, 10 + number] = right, left
    front, head, middle = len(labels), len(labels) + 1, len(labels) + 2
    volume[0, 14, 26, 10], volume[0, 14, 10, 26], volume[0, 14, 10, 10] = front, head, middle
    return MetaTensor(volume)


def is_mirrored(volume: torch.Tensor, right: int, left: int, middle: int) -> bool:
    """Tell by the triple product of right, front and head whether this is a mirror image of a patient."""
    numbers = (right, left, middle - 2, middle - 1, middle)
    places = {number: torch.nonzero(volume[0] == number)[0].float() for number in numbers}
    axes = [places[right] - places[left], places[middle - 2] - places[middle], places[middle - 1] - places[middle]]
    return float(torch.linalg.det(torch.stack(axes))) < 0


def count_mirrored(parser: ConfigParser, labels: list[str], pairs: list[tuple[int, int]], count: int) -> int:
    classes = list(parser.get_parsed_content("mirrored_classes"))
    parser["mirrored_classes"] = [*classes, *range(len(classes), len(classes) + 3)]  # the three marks
    steps = [step for step in parser["augmentation"] if step["_target_"].startswith("tools.transforms.Rand")]
    parser["augmentation"] = [{**step, "prob": 0.5} for step in steps]
    augment = Compose(parser.get_parsed_content("augmentation"))
    augment.set_random_state(0)
    patient = show_patient(labels, pairs)
    crops = [augment({"image": patient.clone(), "label": patient.clone()})["label"] for _ in range(count)]
    return sum(is_mirrored(crop, *pair, len(labels) + 2) for crop in crops for pair in pairs)


SIDED = [
    (name, overlay)
    for overlay in ["openkbp_hn", "btcv", "word", "amos22", "flare22"]
    for name in ("unetr_btcv", "inflated_vit_seg")
] + [(path.parts[-4], path) for path in OVERLAYS if path.stem not in ("mmwhs", "msd04_hippocampus")]


@pytest.mark.parametrize(("name", "overlay"), SIDED, ids=lambda value: getattr(value, "stem", value))
def test_no_crop_is_a_mirror_image_in_which_sides_keep_their_names(name, overlay):
    parser = read_train(name, overlay)
    labels = parser.get_parsed_content("labels")
    sided = list_sided(labels)
    rights = [name for name in sided if "right" in name]
    pairs = [(labels.index(name), labels.index(name.replace("right", "left"))) for name in rights]
    assert pairs
    assert len(pairs) * 2 == len(sided)
    assert count_mirrored(parser, labels, pairs, 60) == 0


def test_the_flips_of_the_published_codes_are_one_key_away():
    parser = read_train("unetr_btcv", "btcv", mirrored={})
    labels = parser.get_parsed_content("labels")
    assert parser.get_parsed_content("mirror_axes") == [0, 1, 2]
    found = count_mirrored(parser, labels, [(labels.index("right kidney"), labels.index("left kidney"))], 60)
    assert 15 < found < 45  # half of 60


@pytest.mark.parametrize("card", sorted(CARDS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_card_whose_names_tell_sides_says_what_a_mirror_image_is(card):
    values = yaml.safe_load(card.read_text())
    assert not list_sided(values["labels"]) or "mirrored" in values


@pytest.mark.parametrize(
    ("values", "level", "words"),
    [
        ({}, logging.INFO, "no flips, as names tell sides: right ear, left ear"),
        ({"mirror_axes": [0]}, logging.WARNING, "keep their names"),
        ({"mirrored": {"right ear": "left ear"}}, logging.INFO, "right ear and left ear change places"),
        ({"mirrored": {}}, logging.INFO, "keep their names"),
    ],
)
def test_a_training_says_what_its_flips_do_to_sides(values, level, words, caplog):
    parser = read_train("unetr_btcv", "none", labels=["background", "right ear", "left ear"], **values)
    names, mirrored, axes = (parser.get_parsed_content(key) for key in ("labels", "mirrored", "mirror_axes"))
    with caplog.at_level(logging.INFO):
        _tell_mirroring(parser.get(), names, mirrored, axes)
    assert [record.levelno for record in caplog.records] == [level]
    assert words in caplog.text


def test_a_flip_of_a_user_that_keeps_the_names_of_sides_is_told(caplog):
    flip = {"_target_": "RandFlipd", "keys": ["image", "label"], "prob": 0.5, "spatial_axis": 0}
    parser = read_train("unetr_btcv", "btcv", augmentation=[flip])
    _tell_mirroring(parser.get(), *(parser.get_parsed_content(key) for key in ("labels", "mirrored", "mirror_axes")))
    assert "augmentation#0, RandFlipd: right and left keep their names" in caplog.text
