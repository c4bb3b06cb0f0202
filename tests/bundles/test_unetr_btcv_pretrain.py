# SPDX-License-Identifier: Apache-2.0
"""Pre-training as people use it: on any folder of scans, killed and resumed, in two processes, fed with mistakes."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from processes import run_module
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tools.bundles import BUNDLES, CARDS
from tools.errors import find_cause

BUNDLE = BUNDLES / "unetr_btcv"
CONFIGS = BUNDLE / "configs"
PRETRAIN = CONFIGS / "pretrain.yaml"
CARD = CARDS / "msd04_hippocampus.yaml"
RECIPES = CONFIGS / "recipes"
SMALL = {
    "pixdim": [1.0, 1.0, 2.0],
    "roi_size": [32, 16, 16],
    "dropped_blocks": {"count": 2, "smallest": 2, "largest": 8},
    "kept_blocks": {"count": 2, "smallest": 4, "largest": 12},
    "shuffled_blocks": {"count": 2, "size": 3},
    "network_def#hidden_size": 24,
    "network_def#mlp_dim": 48,
    "network_def#num_heads": 3,
    "network_def#num_layers": 2,
    "epochs": 4,
    "warmup_epochs": 1,
    "learning_rate": 0.001,
    "batch_size": 2,
    "val_interval": 2,
    "checkpoint_interval": 1,
    "num_workers": 0,
}


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
    path.write_text(yaml.safe_dump(SMALL))
    return path


def make_workflow(files: list[Path], **overrides: object) -> ConfigWorkflow:
    workflow = ConfigWorkflow(
        [str(file) for file in files], str(CONFIGS / "metadata.json"), logging_file=False, **overrides
    )
    workflow.initialize()
    return workflow


def run(files: list[Path], **overrides: object) -> None:
    make_workflow(files, **overrides).run()


def read_record(folder: Path) -> dict:
    return json.loads((folder / "training.json").read_text())


def make_command(files: list[Path], *arguments: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        str([str(file) for file in files]),
        *arguments,
    ]


def finish(command: list[str], cwd: Path = BUNDLE) -> subprocess.CompletedProcess[str]:
    return run_module(command, cwd=cwd, environment={"PYTHONWARNINGS": "ignore"})


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


def test_every_item_can_be_constructed(scans, small, tmp_path):
    options = {"dataset_dir": str(scans), "output_dir": str(tmp_path / "out"), "workflow_type": "train"}
    workflow = make_workflow([PRETRAIN, small], **options)
    for key in workflow.parser.config:
        if key not in ("imports", "initialize", "run"):
            workflow.parser.get_parsed_content(key)
    assert workflow.check_properties() == []
    assert len(workflow.parser.get_parsed_content("train#dataset")) == 5
    assert len(workflow.parser.get_parsed_content("validate#dataset")) == 1


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


def test_the_card_keeps_its_held_back_cases_out(small, tmp_path):
    folder = tmp_path / "imagesTr"
    folder.mkdir()
    for number in (1, 2, 3, 11):  # hippocampus_011 is held back
        write_scan(folder / f"hippocampus_{number:03}.nii.gz", number)
    workflow = make_workflow([PRETRAIN, CARD, small], dataset_dir=str(folder), output_dir=str(tmp_path / "out"))
    lists = [workflow.parser.get_parsed_content(f"{key}#data") for key in ("train#dataset", "validate#dataset#dataset")]
    names = sorted(Path(scan["image"]).name for part in lists for scan in part)
    assert names == [f"hippocampus_{number:03}.nii.gz" for number in (1, 2, 3)]


# ---- training


def test_all_losses_are_recorded_and_the_best_epoch_is_that_of_the_lowest_error(scans, small, tmp_path, caplog):
    folder = tmp_path / "run"
    with caplog.at_level(logging.INFO):
        run([PRETRAIN, small], dataset_dir=str(scans), output_dir=str(folder))
    assert "1 of 7 scans cannot be used and are skipped" in caplog.text
    record = read_record(folder)
    for epoch in record["epochs"]:
        total = epoch["loss/reconstruction"] + 0.1 * epoch["loss/contrast"]
        assert epoch["loss"] == pytest.approx(total)
        assert ("reconstruction" in epoch) == (epoch["epoch"] % 2 == 0)
    errors = {epoch["epoch"]: epoch["reconstruction"] for epoch in record["epochs"] if "reconstruction" in epoch}
    assert record["best"]["epoch"] == min(errors, key=errors.__getitem__)
    best = torch.load(folder / "best.pt", weights_only=True)
    assert best["best_metric"] == min(errors.values())
    assert {"projection.0.weight", "patch_embedding.position_embeddings", "norm.weight"} <= set(best["model"])
    assert (folder / "learning_curve.png").is_file()
    scalars: dict[str, list[float]] = {}
    for file in folder.glob("events*"):
        events = EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            scalars[tag] = [event.value for event in events.Scalars(tag)]
    for tag in ("loss", "loss/reconstruction", "loss/contrast"):
        assert scalars[tag] == pytest.approx([epoch[tag] for epoch in record["epochs"]], rel=1e-5)
    assert scalars["val_reconstruction"] == pytest.approx(list(errors.values()), rel=1e-5)
    assert len(scalars["train_loss"]) == record["steps"]


def test_the_validation_error_is_that_of_the_saved_network(scans, small, tmp_path):
    folder = tmp_path / "run"
    run([PRETRAIN, small], dataset_dir=str(scans), output_dir=str(folder))
    again = make_workflow([PRETRAIN, small], dataset_dir=str(scans), output_dir=str(folder), seed=5)
    network = again.parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(folder / "best.pt", weights_only=True)["model"])
    evaluator = again.parser.get_parsed_content("validate#evaluator")
    evaluator.run()
    expected = read_record(folder)["best"]["reconstruction"]
    assert evaluator.state.metrics["val_reconstruction"] == pytest.approx(expected)


def test_keeping_volumes_on_disk_changes_nothing(scans, small, tmp_path):
    options = {"dataset_dir": str(scans), "epochs": 2}
    run([PRETRAIN, small], output_dir=str(tmp_path / "plain"), **options)
    cache = tmp_path / "cache"
    for name in ("disk", "same disk"):
        files = [PRETRAIN, small, CONFIGS / "disk_cache.yaml"]
        run(files, output_dir=str(tmp_path / name), cache_dir=str(cache), **options)
        assert len(list(cache.glob("*.pt"))) == 6
        for found, wanted in zip(
            read_record(tmp_path / name)["epochs"], read_record(tmp_path / "plain")["epochs"], strict=True
        ):
            assert found["loss"] == pytest.approx(wanted["loss"])


def test_pretraining_can_start_from_another_pretraining(scans, small, tmp_path, caplog):
    first, second = tmp_path / "first", tmp_path / "second"
    run([PRETRAIN, small], dataset_dir=str(scans), output_dir=str(first), epochs=1)
    options = {"pretrained": str(first / "last.pt"), "seed": 5, "epochs": 1, "learning_rate": 1e-12}
    with caplog.at_level(logging.INFO):
        run([PRETRAIN, small], dataset_dir=str(scans), output_dir=str(second), **options)
    assert "first/last.pt" in caplog.text
    states = [torch.load(folder / "last.pt", weights_only=True)["model"] for folder in (first, second)]
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=1e-9)


def test_a_run_killed_in_mid_epoch_and_resumed_ends_like_an_unbroken_one(make_bundle, scans, tmp_path):
    make_bundle("unetr_btcv", SMALL).check_resuming("pretrain", folder=tmp_path, dataset_dir=str(scans))


def test_two_processes_share_the_scans_and_the_contrast_and_the_first_alone_writes(make_bundle, scans, tmp_path):
    for number in range(8, 14):  # twelve readable ones: each process has one for validation
        write_scan(scans / f"scan_{number}.nii.gz", number)
    told = "[list(@train#sampler), float(@loss.contrast)]"
    options = {"dataset_dir": str(scans), "output_dir": str(tmp_path / "run"), "epochs": 2}
    bundle = make_bundle("unetr_btcv", SMALL)
    ranks = bundle.run_in_processes(2, "pretrain", "multi_gpu_pretrain", tell=told, **options)
    (first, contrast), (second, other_contrast) = ranks
    assert set(first).isdisjoint(second)
    assert set(first) | set(second) == set(range(10))
    assert contrast == pytest.approx(other_contrast)
    assert contrast != 0
    assert read_record(tmp_path / "run")["best"]["epoch"] == 2
    assert len(list((tmp_path / "run").glob("events*"))) == 2  # trainer and evaluator of rank 0
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert not any(name.startswith("module.") for name in state["model"])


# ---- mistakes


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({}, "--dataset_dir: found nothing"),
        ({"dataset_dir": "nowhere"}, "nowhere: found no such folder"),
        ({"roi_size": [32, 20, 16]}, "32×20×16, wanted multiples of 16"),
        ({"temperature": 0.005}, "temperature: found 0.005"),
    ],
    ids=["no folder", "missing folder", "crop", "temperature"],
)
def test_a_mistake_is_told_before_anything_is_written(overrides, words, scans, small, tmp_path):
    folder = {} if words.startswith("--dataset_dir") else {"dataset_dir": str(scans)}
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it; the cause is what counts
        run([PRETRAIN, small], output_dir=str(tmp_path / "run"), **(folder | overrides))
    assert words in str(find_cause(caught.value))
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_folder_without_a_readable_scan_ends_in_one_sentence(small, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "scan.nii.gz").write_bytes(b"no scan")
    arguments = ("--dataset_dir", str(folder), "--output_dir", str(tmp_path / "run"))
    result = finish(make_command([Path("configs/pretrain.yaml"), small], *arguments))
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    sentence = result.stderr.strip().splitlines()[-1]
    assert sentence.startswith("Error: the data set: found no usable scan among 1")
    assert "scan.nii.gz" in sentence
