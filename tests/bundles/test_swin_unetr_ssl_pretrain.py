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
from comparisons import assert_equal_to_scale
from monai.bundle import ConfigParser
from monai.networks.nets import SwinUNETR
from runs import make_image, read_epochs, read_events, read_weights, write_bad_scans, write_scan

from tools.bundles import BUNDLES, CARDS
from tools.weights import load

ROOT = BUNDLES / "swin_unetr_ssl"
CONFIGS = ROOT / "configs"
TASKS = ("rotation", "contrast", "reconstruction")
SMALL = {
    "roi_size": [32, 32, 64],
    "turn_axis": 2,
    "feature_size": 12,
    "window_size": [2, 2, 2],
    "epochs": 2,
    "warmup_epochs": 1,
    "batch_size": 2,
    "num_samples": 1,
    "val_interval": 1,
    "checkpoint_interval": 1,
    "num_workers": 0,
}


@pytest.fixture
def bundle(make_bundle):
    return make_bundle("swin_unetr_ssl", SMALL)


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


def test_every_item_can_be_constructed(bundle, scans, tmp_path):
    options = {"dataset_dir": str(scans), "output_dir": str(tmp_path / "out"), "workflow_type": "train"}
    workflow = bundle.make_workflow("pretrain", **options)
    for key in workflow.parser.config:
        if key not in ("imports", "initialize", "run"):
            workflow.parser.get_parsed_content(key)
    assert workflow.check_properties() == []


# ---- what goes in


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


def test_each_task_has_its_curve_and_the_best_epoch_is_that_of_the_lowest_error(bundle, scans, tmp_path):
    folder = tmp_path / "run"
    weights = {"rotation": 0.5, "contrast": 2.0, "reconstruction": 3.0}
    overrides = {f"loss_weights#{task}": weight for task, weight in weights.items()}
    options = {"dataset_dir": str(scans), "output_dir": str(folder)}
    bundle.run("pretrain", **options, epochs=4, val_interval=2, **overrides)
    epochs = read_epochs(folder)
    for epoch in epochs:
        total = sum(weight * epoch[f"loss/{task}"] for task, weight in weights.items())
        assert epoch["loss"] == pytest.approx(total, rel=1e-5)
        assert ("reconstruction" in epoch) == (epoch["epoch"] % 2 == 0)
    errors = {epoch["epoch"]: epoch["reconstruction"] for epoch in epochs if "reconstruction" in epoch}
    best = min(errors, key=errors.__getitem__)
    assert torch.load(folder / "best.pt", weights_only=True)["epoch"] == best
    scalars = read_events(folder)
    for tag in ("loss", *(f"loss/{task}" for task in TASKS)):
        assert scalars[tag] == pytest.approx([epoch[tag] for epoch in epochs], rel=1e-5)
    assert scalars["val_reconstruction"] == pytest.approx(list(errors.values()), rel=1e-5)
    pictures = [path.name for path in sorted((folder / "reconstruction").iterdir())]
    assert pictures == ["epoch_0002.png", "epoch_0004.png"]
    assert (folder / "learning_curve.png").is_file()

    torch.rand(7)
    again = bundle.make_workflow("pretrain", **options)  # the error is that of the file, and repeatable
    load(again.parser.get_parsed_content("network_def"), folder / "best.pt", complete=True)
    evaluator = again.parser.get_parsed_content("validate#evaluator")
    evaluator.run()
    assert evaluator.state.metrics["val_reconstruction"] == pytest.approx(errors[best])


@pytest.mark.parametrize("tasks", [["reconstruction"], ["rotation", "contrast"], ["contrast"], "rotation"], ids=str)
def test_tasks_can_be_switched_off(tasks, bundle, scans, tmp_path):
    folder = tmp_path / "run"
    bundle.run("pretrain", dataset_dir=str(scans), output_dir=str(folder), tasks=tasks, epochs=1)
    (epoch,) = read_epochs(folder)
    names = [tasks] if isinstance(tasks, str) else tasks
    assert {key for key in epoch if key.startswith("loss/")} == {f"loss/{task}" for task in names}
    assert epoch["loss"] == pytest.approx(sum(epoch[f"loss/{task}"] for task in names))
    restored = "reconstruction" in tasks
    assert [("reconstruction" in epoch), (folder / "best.pt").exists(), (folder / "reconstruction").exists()] == [
        restored
    ] * 3
    assert len(read_weights(folder / "last.pt", "swinViT.")) == 126


@pytest.mark.numeric
def test_saving_memory_keeping_volumes_on_disk_and_amp_without_a_gpu_change_no_loss(bundle, scans, tmp_path):
    cache = tmp_path / "cache"
    variants: dict[str, tuple[tuple[str, ...], dict]] = {
        "plain": ((), {}),
        "checkpointing": ((), {"use_checkpoint": True}),
        "disk": (("disk_cache",), {"cache_dir": str(cache)}),
        "same disk": (("disk_cache",), {"cache_dir": str(cache)}),
        "amp": ((), {"amp": True, "device": "$torch.device('cpu')"}),
    }
    for name, (overlays, overrides) in variants.items():
        options = {"dataset_dir": str(scans), "output_dir": str(tmp_path / name)}
        bundle.run("pretrain", *overlays, **options, **overrides, epochs=1)
        assert len(list(cache.glob("*.pt"))) == (4 if cache.exists() else 0)
    expected = read_epochs(tmp_path / "plain")
    for name in variants:
        for found, wanted in zip(read_epochs(tmp_path / name), expected, strict=True):
            assert found == pytest.approx(wanted, rel=1e-4), name


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


def test_a_run_killed_in_mid_epoch_and_resumed_ends_with_the_weights_of_an_unbroken_one(bundle, scans, tmp_path):
    bundle.check_resuming("pretrain", folder=tmp_path, dataset_dir=str(scans))


def test_pretraining_can_start_from_another_pretraining(bundle, scans, tmp_path):
    options = {"dataset_dir": str(scans), "output_dir": str(tmp_path)}
    bundle.run("pretrain", **options, epochs=1)
    workflow = bundle.make_workflow("pretrain", **options, pretrained=str(tmp_path / "best.pt"))
    network = workflow.parser.get_parsed_content("network")
    wanted = torch.load(tmp_path / "best.pt", weights_only=True)["model"]
    torch.testing.assert_close(network.state_dict(), wanted, rtol=0, atol=0)


def test_two_processes_share_the_scans_and_the_contrast_and_the_first_alone_writes(bundle, scans, tmp_path):
    for number in range(5, 13):  # twelve: each process has one for validation
        write_scan(scans / f"scan_{number}.nii.gz", make_image(number).astype(np.int16))
    told = (
        "[list(@train#sampler), float(@loss.contrast), sum(p.grad.abs().sum().item() for p in @network.parameters())]"
    )
    folder = tmp_path / "run"
    options = {"dataset_dir": str(scans), "output_dir": str(folder), "use_checkpoint": True, "epochs": 1}
    ranks = bundle.run_in_processes(2, "pretrain", "multi_gpu_pretrain", tell=told, **options)
    (first, *one), (second, *other) = ranks
    assert sorted(first + second) == list(range(10))
    assert one == pytest.approx(other)  # the contrast is that of all crops, the gradient the mean of both
    assert one[0] != 0
    assert json.loads((folder / "training.json").read_text())["best"]["epoch"] == 1
    assert len(list(folder.glob("events*"))) == 2  # trainer and evaluator of rank 0
    assert len(read_weights(folder / "last.pt", "swinViT.")) == 126


# ---- what comes out


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


# ---- mistakes


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"dataset_dir": None}, "--dataset_dir: found nothing"),
        ({"dataset_dir": "/nowhere"}, "/nowhere: found no such folder"),
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
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_mistake_is_told_in_one_sentence_and_nothing_is_written(overrides, sentence, bundle, scans, tmp_path):
    options = {"dataset_dir": str(scans), "output_dir": str(tmp_path / "run")}
    assert bundle.find_error("pretrain", **(options | overrides)).startswith(sentence)
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_folder_without_a_usable_scan_is_an_error_with_its_reason(bundle, tmp_path):
    write_scan(tmp_path / "scans" / "air.nii.gz", np.full((8, 8, 8), -1024, np.int16))
    found = bundle.find_error("pretrain", dataset_dir=str(tmp_path / "scans"), output_dir=str(tmp_path / "run"))
    assert found.startswith("the data set: found no usable scan among 1")
    assert "air.nii.gz: found the same value -1024 in every voxel" in found
