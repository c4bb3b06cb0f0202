# SPDX-License-Identifier: Apache-2.0
"""Pre-training as people use it: on any folders of scans, killed and resumed, in two processes, fed with mistakes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from runs import make_image, read_epochs, read_events, read_weights, write_bad_scans, write_scan

from tools.bundles import BUNDLES, CARDS
from tools.weights import load

CONFIGS = BUNDLES / "voco_finetune" / "configs"
TERMS = {
    "extension": ["positive", "negative", "inter_volume", "regularization"],
    "cvpr": ["positive", "negative", "regularization"],
    "paper": ["positive", "regularization"],
}
SMALL = {
    "crop_size": [32, 32, 64],
    "grid": [2, 1, 1],
    "feature_size": 12,
    "window_size": [2, 2, 2],
    "use_checkpoint": False,
    "embedding_dim": 32,
    "epochs": 2,
    "warmup_epochs": 1,
    "batch_size": 2,
    "num_crops": 1,
    "val_crops": 2,
    "val_interval": 1,
    "checkpoint_interval": 1,
    "num_workers": 0,
}
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


def test_every_item_can_be_constructed(bundle, scans, tmp_path):
    options = {"dataset_dir": str(scans), "output_dir": str(tmp_path / "out"), "workflow_type": "train"}
    workflow = bundle.make_workflow("pretrain", **options)
    for key in workflow.parser.config:
        if key not in ("imports", "initialize", "run"):
            workflow.parser.get_parsed_content(key)
    assert workflow.check_properties() == []


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

    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.state.epoch_length, trainer.state.max_epochs = 1, 1
    workflow.run()
    assert np.isfinite(read_epochs(tmp_path / "run")[0]["loss"])


def test_scans_of_several_folders_are_used_without_those_that_a_card_holds_back(bundle, tmp_path):
    image = make_image(1, (8, 8, 8)).astype(np.int16)
    for number in (1, 2, 3, 11):  # hippocampus_011 is held back
        write_scan(tmp_path / "imagesTr" / f"hippocampus_{number:03}.nii.gz", image)
    write_scan(tmp_path / "others" / "extra.nii", image)
    folders = [str(tmp_path / "imagesTr"), str(tmp_path / "others")]
    workflow = bundle.make_workflow("pretrain", CARDS / "msd04_hippocampus.yaml", dataset_dir=folders)
    keys = ("train#dataset#data", "validate#dataset#dataset#data")
    lists = [workflow.parser.get_parsed_content(key) for key in keys]
    names = [sorted(Path(scan["image"]).name.split(".")[0] for scan in part) for part in lists]
    assert names == [["extra", "hippocampus_002", "hippocampus_003"], ["hippocampus_001"]]


def test_bad_scans_are_skipped_with_their_reasons_and_the_others_are_trained_on(bundle, scans, tmp_path, caplog):
    expected = write_bad_scans(scans)
    with caplog.at_level(logging.WARNING):
        bundle.run("pretrain", dataset_dir=str(scans), output_dir=str(tmp_path / "run"), epochs=1)
    (summary,) = (record.getMessage() for record in caplog.records if "are skipped:" in record.getMessage())
    first, *reasons = summary.splitlines()
    assert first == "4 of 9 scans cannot be used and are skipped:"
    for reason, words in zip(reasons, expected, strict=True):
        assert words in reason
    assert "holes.nii.gz: 8976 NaN or infinite voxels replaced by the smallest value" in caplog.text
    (epoch,) = read_epochs(tmp_path / "run")
    assert all(np.isfinite(value) for value in epoch.values())
    assert json.loads((tmp_path / "run" / "training.json").read_text())["training_cases"] == 4


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


@pytest.mark.parametrize("variant", TERMS)
def test_each_variant_records_its_terms_and_training_starts_from_its_student(variant, bundle, scans, tmp_path):
    folder = tmp_path / "run"
    weights = {"prediction": 2.0, "inter_volume": 0.5, "regularization": 3.0}
    overrides = {f"loss_weights#{term}": weight for term, weight in weights.items()}
    options = {"dataset_dir": str(scans), "output_dir": str(folder), "variant": variant}
    bundle.run("pretrain", **options, val_interval=2, **overrides)

    epochs = read_epochs(folder)
    for epoch in epochs:
        terms = {key.removeprefix("loss/"): value for key, value in epoch.items() if key.startswith("loss/")}
        assert list(terms) == TERMS[variant]
        factors = {"positive": 2.0, "negative": 2.0} | weights
        assert epoch["loss"] == pytest.approx(sum(factors[term] * value for term, value in terms.items()), rel=1e-5)
        assert 0 <= epoch["train/retrieval"] <= 1
        assert ("retrieval" in epoch) == ("prediction" in epoch) == (epoch["epoch"] % 2 == 0)
    assert all(np.isfinite(value) for epoch in epochs for value in epoch.values())
    shares = {epoch["epoch"]: epoch["retrieval"] for epoch in epochs if "retrieval" in epoch}
    best = max(shares, key=shares.__getitem__)
    record = json.loads((folder / "training.json").read_text())
    assert (record["best"]["epoch"], record["best"]["retrieval"]) == (best, shares[best])
    scalars = read_events(folder)
    for tag in ("loss", *(f"loss/{term}" for term in TERMS[variant]), "train/retrieval"):
        assert scalars[tag] == pytest.approx([epoch[tag] for epoch in epochs], rel=1e-5)
    for tag in ("retrieval", "prediction"):
        assert scalars[f"val_{tag}"] == pytest.approx([epoch[tag] for epoch in epochs if tag in epoch], rel=1e-5)
    assert (folder / "learning_curve.png").is_file()

    wanted = read_weights(folder / "last.pt", "backbone.")
    student, teacher = (read_weights(folder / "last.pt", part) for part in ("student.", "teacher."))
    assert len(wanted) == 145
    assert [len(student), len(teacher)] == [6, 0 if variant == "paper" else 6]
    assert len(read_weights(folder / "last.pt", "teacher_backbone.")) == (145 if variant == "cvpr" else 0)
    found, counts = bundle.start_from(torch.load(folder / "last.pt", weights_only=True))
    assert counts["matched"] == 145
    assert all(torch.equal(found[name.removeprefix("backbone.")], tensor) for name, tensor in wanted.items())


def test_the_validation_is_that_of_the_file_and_repeatable(bundle, scans, tmp_path):
    options = {"dataset_dir": str(scans), "output_dir": str(tmp_path)}
    bundle.run("pretrain", **options, epochs=1)
    (last,) = read_epochs(tmp_path)
    torch.rand(7)
    again = bundle.make_workflow("pretrain", **options)
    load(again.parser.get_parsed_content("network_def"), tmp_path / "last.pt", complete=True)
    evaluator = again.parser.get_parsed_content("validate#evaluator")
    evaluator.run()
    for key in ("retrieval", "prediction"):
        assert evaluator.state.metrics[f"val_{key}"] == pytest.approx(last[key])


@pytest.mark.numeric
def test_saving_memory_keeping_volumes_on_disk_and_amp_without_a_gpu_change_no_loss(bundle, scans, tmp_path):
    cache = tmp_path / "cache"
    variants: dict[str, tuple[tuple[str, ...], dict]] = {
        "plain": ((), {}),
        "checkpointing": ((), {"use_checkpoint": True, "crops_at_once": 3}),
        "disk": (("disk_cache",), {"cache_dir": str(cache)}),
        "same disk": (("disk_cache",), {"cache_dir": str(cache)}),
        "amp": ((), {"amp": True, "device": "$torch.device('cpu')"}),
    }
    for name, (overlays, overrides) in variants.items():
        options = {"dataset_dir": str(scans), "output_dir": str(tmp_path / name)}
        bundle.run("pretrain", *overlays, **options, **overrides, epochs=1)
        # two of three are trained on in this epoch, whichever run it is, and one is for validation
        assert len(list(cache.glob("*.pt"))) == (3 if cache.exists() else 0)
    expected = read_epochs(tmp_path / "plain")
    for name in variants:
        for found, wanted in zip(read_epochs(tmp_path / name), expected, strict=True):
            assert found == pytest.approx(wanted, rel=1e-3), name


def test_a_run_killed_in_mid_epoch_and_resumed_ends_with_the_weights_of_an_unbroken_one(bundle, scans, tmp_path):
    bundle.check_resuming("pretrain", folder=tmp_path, tolerance=0, dataset_dir=str(scans))


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


def test_two_processes_share_the_scans_and_contrast_their_volumes_and_the_first_alone_writes(bundle, scans, tmp_path):
    for number in range(5, 13):  # twelve: each process has one for validation
        write_scan(scans / f"scan_{number}.nii.gz", make_image(number).astype(np.int16))
    folder = tmp_path / "run"
    told = (
        "[list(@train#sampler), float(@loss.inter_volume),"
        " sum(p.grad.abs().sum().item() for p in @network_def.trainable_parameters()),"
        " sum(p.abs().sum().item() for p in @network_def.teacher.parameters())]"
    )
    # one volume in each process: the next volume is that of the other
    options = {"dataset_dir": str(scans), "output_dir": str(folder), "batch_size": 1, "epochs": 1}
    options |= {"train#trainer#epoch_length": 1}
    ranks = bundle.run_in_processes(2, "pretrain", "multi_gpu_pretrain", tell=told, **options)
    (first, own, *one), (second, its, *other) = ranks
    assert sorted(first + second) == list(range(10))
    assert own > 0 < its
    assert one == pytest.approx(other)  # the gradient is the mean of both, the teachers stay the same
    record = json.loads((folder / "training.json").read_text())
    assert record["best"]["epoch"] == 1
    assert record["epochs"][0]["loss/inter_volume"] > 0
    assert len(list(folder.glob("events*"))) == 2  # trainer and evaluator of rank 0
    assert len(read_weights(folder / "last.pt", "backbone.")) == 145


# ---- mistakes


def test_a_single_volume_in_a_batch_has_no_inter_volume_term_and_that_is_said_once(bundle, scans, tmp_path, caplog):
    options = {"dataset_dir": str(scans), "output_dir": str(tmp_path / "run"), "batch_size": 1}
    with caplog.at_level(logging.WARNING):
        bundle.run("pretrain", **options, epochs=1)
    assert caplog.text.count("the inter-volume term is off: it needs two volumes in a batch, and there is one") == 1
    assert [epoch["loss/inter_volume"] for epoch in read_epochs(tmp_path / "run")] == [0]


def test_a_grid_that_exceeds_the_memory_ends_in_one_sentence(bundle, scans, tmp_path):
    bundle.small.write_text(yaml.safe_dump(SMALL | {"grid": [64, 64, 1], "crop_size": [512, 512, 512]}))
    status, text = bundle.run_command("pretrain", dataset_dir=str(scans), output_dir=str(tmp_path / "run"))
    assert status == 1
    assert "Traceback" not in text
    sentence = text.strip().splitlines()[-1]
    assert sentence.startswith("Error: memory: found ")
    assert "for a step of training; set --crops_at_once to a few, or a smaller grid" in sentence
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_loss_that_is_no_number_ends_in_one_sentence(bundle, scans, tmp_path):
    broken = [{"_target_": "Lambdad", "keys": "image", "func": "$lambda image: image * float('nan')"}]
    options = {"dataset_dir": str(scans), "output_dir": str(tmp_path / "run"), "intensity": broken}
    found = bundle.find_error("pretrain", **options, foreground_crop=[])
    assert found.startswith("epoch 1, step 1: found a loss of nan, wanted a finite number; lower --learning_rate")
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"dataset_dir": None}, "--dataset_dir: found nothing"),
        ({"dataset_dir": "/nowhere"}, "/nowhere: found no such folder"),
        ({"variant": "v2"}, "variant: found 'v2', wanted one of cvpr, extension, paper; correct --variant."),
        (
            {"grid": [1, 1, 1]},
            "grid: found [1, 1, 1], wanted base crops along X, Y, Z, two in all; use [3, 3, 1].",
        ),
        (
            {"crop_size": [32, 32, 40]},
            "crop_size: found 32×32×40, wanted multiples of 32, not all of them 32; set --crop_size [32,32,64].",
        ),
        ({"crop_size": [32, 64, 32]}, "crop_size: found 32×64×32, wanted the same along X and Y for quarter turns"),
        ({"feature_size": 20}, "feature_size: found 20"),
        ({"embedding_dim": 0}, "embedding_dim: found 0, wanted at least 1"),
        ({"momentum": 1.1}, "momentum: found 1.1, wanted a number from 0 to 1; correct --momentum."),
        ({"flip_prob": 2}, "flip_prob: found 2"),
        ({"num_crops": 0}, "num_crops: found 0"),
        ({"crops_at_once": 0}, "crops_at_once: found 0"),
        ({"fitting": []}, "image: found volumes of 36×34×66 voxels, wanted 64×32×64, 2×1×1 crops of 32×32×64"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_mistake_is_told_in_one_sentence_and_nothing_is_written(overrides, sentence, bundle, scans, tmp_path):
    (scans / "scan_3.nii.gz").unlink()  # of another size
    options = {"dataset_dir": str(scans), "output_dir": str(tmp_path / "run"), "resampling": [], "foreground_crop": []}
    assert bundle.find_error("pretrain", **(options | overrides)).startswith(sentence)
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_folder_without_a_usable_scan_is_an_error_with_its_reason(bundle, tmp_path):
    write_scan(tmp_path / "scans" / "air.nii.gz", np.full((8, 8, 8), -1024, np.int16))
    found = bundle.find_error("pretrain", dataset_dir=str(tmp_path / "scans"), output_dir=str(tmp_path / "run"))
    assert found.startswith("the data set: found no usable scan among 1")
    assert "air.nii.gz: found the same value -1024 in every voxel" in found
