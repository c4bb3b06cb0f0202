# SPDX-License-Identifier: Apache-2.0
"""What is its own in VoCo's pre-training: regions, variants, the teacher, several channels, memory."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from bundle_runs import make_image, read_epochs, read_events, read_weights, write_scan
from monai.bundle import ConfigParser
from table import PRETRAININGS

from tools.bundles import BUNDLES, CARDS

CONFIGS = BUNDLES / "voco_finetune" / "configs"
TERMS = {"cvpr": ["positive", "negative", "regularization"], "paper": ["positive", "regularization"]}
SMALL = dict(PRETRAININGS["voco_finetune"].small)
ENCODER = ("swinViT.", "encoder")


@pytest.fixture
def bundle(make_bundle):
    return make_bundle("voco_finetune", SMALL)


def get_shapes(*files: Path) -> dict[str, torch.Size]:
    """Return the shapes of what segmentation and pre-training share, from the network of a config and its overlays."""
    parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in files]))
    network = parser.get_parsed_content("backbone_def" if "backbone_def" in parser else "network_def")
    return {name: tensor.shape for name, tensor in network.state_dict().items() if name.startswith(ENCODER)}


# ---- what the files say


def test_it_pretrains_the_encoder_that_train_has():
    shapes = get_shapes(CONFIGS / "pretrain.yaml")
    assert shapes == get_shapes(CONFIGS / "train.yaml")
    assert len(shapes) == 145


@pytest.mark.parametrize("recipe", sorted((CONFIGS / "recipes").glob("*_pretrain.yaml")), ids=lambda path: path.stem)
def test_a_recipe_pretrains_the_encoder_of_its_segmentation_and_fits_its_card(recipe: Path):
    name = recipe.stem.removesuffix("_pretrain")
    card = [path for path in [CARDS / f"{name}.yaml"] if path.is_file()]
    files = [CONFIGS / "pretrain.yaml", *card, recipe]
    assert get_shapes(*files) == get_shapes(CONFIGS / "train.yaml", *card, recipe.with_stem(name))
    parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in files]))
    crops = parser.get_parsed_content("volume_crops")  # refuses turns that change the shape of a crop
    assert list(crops.volume_size) == parser.get_parsed_content("volume_size")
    parser.get_parsed_content("train#preprocessing")


# ---- what goes in


@pytest.mark.parametrize(("region", "bases"), [("abdomen", 2), ("chest", 2), ("head_neck", 2), ("brain", 18)])
def test_each_region_cuts_scans_of_any_size_into_its_grid_and_trains(region, bases, make_bundle, tmp_path):
    small = {key: value for key, value in SMALL.items() if key != "grid" or region != "brain"}  # it has its own
    bundle = make_bundle("voco_finetune", small | {"batch_size": 1, "val_crops": 1})
    for number, shape in enumerate([(40, 36, 30), (20, 50, 70), (120, 110, 60)]):  # the last one exceeds the grid
        image = make_image(number, shape) + (300 if region == "brain" else 0)
        write_scan(tmp_path / "scans" / f"scan_{number}.nii.gz", image.astype(np.int16))
    options = {"dataset_dir": str(tmp_path / "scans"), "output_dir": str(tmp_path / "run")}
    workflow = bundle.make_workflow("pretrain", f"regions/{region}", **options)
    volumes = workflow.parser.get_parsed_content("train#dataset")
    volume = torch.stack([volumes[number]["image"] for number in range(2)])
    views, overlap = workflow.parser.get_parsed_content("volume_crops")({"image": volume})
    assert views["base"].shape == (2, bases, 1, 32, 32, 64)
    assert overlap.shape == (2, 1, bases)
    assert 0 <= volume.min() < volume.max() <= 1

    if region != "brain":  # whose grid is another one
        return
    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.state.epoch_length, trainer.state.max_epochs = 1, 1
    workflow.run()
    assert np.isfinite(read_epochs(tmp_path / "run")[0]["loss"])


def test_mr_of_several_channels_is_trained_on(bundle, tmp_path):
    for number, shape in enumerate([(40, 36, 30, 2), (20, 50, 70, 2), (33, 33, 20, 2)]):
        image = make_image(number, shape) * [1, 30] + 300
        write_scan(tmp_path / "scans" / f"scan_{number}.nii.gz", image.astype(np.float32))
    write_scan(tmp_path / "scans" / "single.nii.gz", make_image(9).astype(np.int16))
    options = {"dataset_dir": str(tmp_path / "scans"), "output_dir": str(tmp_path / "run"), "in_channels": 2}
    bundle.run("pretrain", "regions/brain", **options, epochs=1)
    assert np.isfinite(read_epochs(tmp_path / "run")[0]["loss"])
    assert json.loads((tmp_path / "run" / "training.json").read_text())["training_cases"] == 2
    weights = read_weights(tmp_path / "run" / "last.pt", "backbone.")
    assert weights["backbone.swinViT.patch_embed.proj.weight"].shape == (12, 2, 2, 2, 2)


# ---- training


@pytest.mark.costs(large_files=3)
@pytest.mark.parametrize("variant", TERMS)  # the extension: test_pretraining.py
def test_each_variant_records_its_terms_and_training_starts_from_its_student(variant, bundle, scans, tmp_path):
    options = {"dataset_dir": str(scans), "output_dir": str(tmp_path), "variant": variant}
    bundle.run("pretrain", **options, val_interval=2)
    epochs, factors = read_epochs(tmp_path), PRETRAININGS["voco_finetune"].terms
    for epoch in epochs:
        terms = {key.removeprefix("loss/"): value for key, value in epoch.items() if key.startswith("loss/")}
        assert list(terms) == TERMS[variant]
        assert epoch["loss"] == pytest.approx(sum(factors[term] * value for term, value in terms.items()), rel=1e-5)
        assert 0 <= epoch["train/retrieval"] <= 1
        assert ("retrieval" in epoch) == ("prediction" in epoch) == (epoch["epoch"] % 2 == 0)
    assert read_events(tmp_path)["train/retrieval"] == pytest.approx([x["train/retrieval"] for x in epochs], rel=1e-5)

    wanted = read_weights(tmp_path / "last.pt", "backbone.")
    student, teacher = (read_weights(tmp_path / "last.pt", part) for part in ("student.", "teacher."))
    assert len(wanted) == 145
    assert [len(student), len(teacher)] == [6, 0 if variant == "paper" else 6]
    assert len(read_weights(tmp_path / "last.pt", "teacher_backbone.")) == (145 if variant == "cvpr" else 0)
    found, counts = bundle.start_from(torch.load(tmp_path / "last.pt", weights_only=True))
    assert counts["matched"] == 145
    assert all(torch.equal(found[name.removeprefix("backbone.")], tensor) for name, tensor in wanted.items())


def test_pretraining_can_start_from_another_pretraining_and_the_teacher_follows(bundle, scans, tmp_path):
    options = {"dataset_dir": str(scans), "output_dir": str(tmp_path), "variant": "cvpr"}
    bundle.run("pretrain", **options, epochs=1)
    wanted = read_weights(tmp_path / "last.pt", "backbone.")
    workflow = bundle.make_workflow("pretrain", **options, pretrained=str(tmp_path / "last.pt"))
    state = workflow.parser.get_parsed_content("network").state_dict()
    for name, tensor in wanted.items():
        assert torch.equal(state[name], tensor)
        assert torch.equal(state[f"teacher_{name}"], tensor)
    assert json.loads((tmp_path / "weights.json").read_text())["counts"]["matched"] == 145


# ---- mistakes


def test_a_single_volume_in_a_batch_has_no_inter_volume_term_and_that_is_said_once(bundle, scans, tmp_path, caplog):
    options = {"dataset_dir": str(scans), "output_dir": str(tmp_path / "run"), "batch_size": 1}
    with caplog.at_level(logging.WARNING):
        bundle.run("pretrain", **options, epochs=1)
    assert caplog.text.count("the inter-volume term is off: it needs two volumes in a batch, and there is one") == 1
    assert [epoch["loss/inter_volume"] for epoch in read_epochs(tmp_path / "run")] == [0]


@pytest.mark.costs(processes=1)
def test_a_grid_that_exceeds_the_memory_ends_in_one_sentence(bundle, scans, tmp_path):
    bundle.small.write_text(yaml.safe_dump(SMALL | {"grid": [64, 64, 1], "crop_size": [512, 512, 512]}))
    status, text = bundle.run_command("pretrain", dataset_dir=str(scans), output_dir=str(tmp_path / "run"))
    assert status == 1
    assert "Traceback" not in text
    sentence = text.strip().splitlines()[-1]
    assert sentence.startswith("Error: memory: found ")
    assert "for a step of training; set --crops_at_once to a few, or a smaller grid" in sentence
    assert not (tmp_path / "run" / "last.pt").exists()
