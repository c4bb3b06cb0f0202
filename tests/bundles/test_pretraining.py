# SPDX-License-Identifier: Apache-2.0
"""A pre-training's life in every bundle that has one: on any folders of scans, killed, resumed, fed with mistakes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from bundle_runs import make_image, read_epochs, read_events, read_weights, write_bad_scans, write_scan
from products import sample
from table import PRETRAININGS

from tools.bundles import CARDS
from tools.weights import load

# what all bundles share of a pre-training's life: of two of them in each commit
sampled = pytest.mark.parametrize("pretrained", sample(PRETRAININGS, "unetr_btcv", "swin_unetr_ssl"), indirect=True)

MISTAKES = [
    pytest.param(name, overrides, sentence, id=f"{name} {' '.join(overrides)}")
    for name, row in PRETRAININGS.items()
    for overrides, sentence in (
        ({"dataset_dir": None}, "--dataset_dir: found nothing"),
        ({"dataset_dir": "/nowhere"}, "/nowhere: found no such folder"),
        *row.mistakes,
    )
]


@pytest.fixture(params=PRETRAININGS)
def bundle(request, make_bundle):
    return make_bundle(request.param, PRETRAININGS[request.param].small)


# ---- what goes in


def test_every_item_can_be_constructed(bundle, scans, tmp_path):
    options = {"dataset_dir": str(scans), "output_dir": str(tmp_path / "out"), "workflow_type": "train"}
    workflow = bundle.make_workflow("pretrain", **options)
    for key in workflow.parser.config:
        if key not in ("imports", "initialize", "run"):
            workflow.parser.get_parsed_content(key)
    assert workflow.check_properties() == []


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
    assert "holes.nii.gz: 8976 voxels that are NaN, infinite or beyond 1e30" in caplog.text
    (epoch,) = read_epochs(tmp_path / "run")
    assert all(np.isfinite(value) for value in epoch.values())
    assert json.loads((tmp_path / "run" / "training.json").read_text())["training_cases"] == 4


# ---- training


def test_the_parts_of_the_loss_are_recorded_and_validation_chooses_the_best_epoch(pretrained):
    row, epochs = PRETRAININGS[pretrained.name], read_epochs(pretrained.folder)
    for epoch in epochs:
        assert {key.removeprefix("loss/") for key in epoch if key.startswith("loss/")} == set(row.terms)
        total = sum(factor * epoch[f"loss/{term}"] for term, factor in row.terms.items())
        assert epoch["loss"] == pytest.approx(total, rel=1e-5)
    measured = {epoch["epoch"]: epoch[row.measured[0]] for epoch in epochs}
    best = row.choose(measured, key=measured.__getitem__)
    assert pretrained.record["best"]["epoch"] == best
    checkpoint = torch.load(pretrained.folder / "best.pt", weights_only=True)
    assert (checkpoint["epoch"], abs(checkpoint["best_metric"])) == (best, measured[best])
    assert (pretrained.folder / "learning_curve.png").is_file()
    curves = read_events(pretrained.folder)
    for tag in ("loss", *(f"loss/{term}" for term in row.terms)):
        assert curves[tag] == pytest.approx([epoch[tag] for epoch in epochs], rel=1e-5)
    for tag in row.measured:
        assert curves[f"val_{tag}"] == pytest.approx([epoch[tag] for epoch in epochs], rel=1e-5)
    assert len(curves["train_loss"]) == pretrained.record["steps"]


def test_what_validation_measures_is_that_of_the_file_and_repeatable(pretrained, tmp_path):
    options = {"dataset_dir": str(pretrained.dataset), "output_dir": str(tmp_path)}
    torch.rand(7)
    workflow = pretrained.bundle.make_workflow("pretrain", **options)
    load(workflow.parser.get_parsed_content("network_def"), pretrained.folder / "last.pt", complete=True)
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    evaluator.run()
    last = read_epochs(pretrained.folder)[-1]
    for tag in PRETRAININGS[pretrained.name].measured:
        assert evaluator.state.metrics[f"val_{tag}"] == pytest.approx(last[tag])


@sampled
@pytest.mark.costs(large_files=4)
@pytest.mark.numeric
def test_saving_memory_keeping_volumes_on_disk_and_amp_without_a_gpu_change_no_loss(pretrained, tmp_path):
    cache, counts = tmp_path / "cache", []
    on_cpu = {"amp": True, "device": "$torch.device('cpu')"}
    for name, overrides in (("disk", PRETRAININGS[pretrained.name].saving), ("same disk", on_cpu)):
        options = {"dataset_dir": str(pretrained.dataset), "output_dir": str(tmp_path / name)}
        pretrained.bundle.run("pretrain", "disk_cache", **options, **overrides, cache_dir=str(cache))
        counts.append(len(list(cache.glob("*.pt"))))
        (found, second), (wanted, _) = read_epochs(tmp_path / name), read_epochs(pretrained.folder)
        assert found == pytest.approx(wanted, rel=1e-3), name
        assert all(np.isfinite(value) for value in second.values())  # goes on from a cache that may lack a scan
    assert counts[0] == counts[1] > 2


@sampled
@pytest.mark.costs(processes=1)
def test_a_run_killed_in_mid_epoch_and_resumed_ends_like_an_unbroken_one(pretrained, tmp_path):
    options = {"dataset_dir": str(pretrained.dataset), "folder": tmp_path / "run"}
    pretrained.bundle.check_resuming("pretrain", unbroken=pretrained.folder, **options)


def test_pretraining_can_start_from_another_pretraining(pretrained, tmp_path):
    start = pretrained.folder / "last.pt"
    options = {"dataset_dir": str(pretrained.dataset), "output_dir": str(tmp_path), "pretrained": str(start)}
    workflow = pretrained.bundle.make_workflow("pretrain", **options)
    state = workflow.parser.get_parsed_content("network").state_dict()
    prefixes, count = PRETRAININGS[pretrained.name].kept
    wanted = read_weights(start, *prefixes)
    assert len(wanted) == count
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())


@sampled
@pytest.mark.costs(processes=2)
def test_two_processes_share_the_scans_and_the_gradient_and_the_first_alone_writes(pretrained, tmp_path):
    for number in range(1, 13):  # twelve: each process has one for validation
        write_scan(tmp_path / "scans" / f"scan_{number}.nii.gz", make_image(number).astype(np.int16))
    gradient = "sum(p.grad.abs().sum().item() for p in @network.parameters() if p.grad is not None)"
    told = f"[list(@train#sampler), {gradient}, {PRETRAININGS[pretrained.name].shared}]"
    folder = tmp_path / "run"
    # one scan in each process: what compares scans compares those of both
    options = {"dataset_dir": str(tmp_path / "scans"), "output_dir": str(folder), "batch_size": 1, "epochs": 1}
    options |= {"train#trainer#epoch_length": 1}
    (first, *one), (second, *other) = pretrained.bundle.run_in_processes(
        2, "pretrain", "multi_gpu_pretrain", tell=told, **options
    )
    assert sorted(first + second) == list(range(10))
    assert one == pytest.approx(other)
    assert 0 not in one
    assert json.loads((folder / "training.json").read_text())["best"]["epoch"] == 1
    assert len(list(folder.glob("events*"))) == 2  # trainer and evaluator of rank 0
    prefixes, count = PRETRAININGS[pretrained.name].kept
    assert len(read_weights(folder / "last.pt", *prefixes)) == count


# ---- mistakes


@pytest.mark.parametrize(("name", "overrides", "sentence"), MISTAKES)
def test_a_mistake_is_told_in_one_sentence_and_nothing_is_written(
    name, overrides, sentence, make_bundle, scans, tmp_path
):
    (scans / "scan_3.nii.gz").unlink()  # of another size
    bundle = make_bundle(name, PRETRAININGS[name].small)
    options = {"dataset_dir": str(scans), "output_dir": str(tmp_path / "run")}
    assert bundle.find_error("pretrain", **(options | overrides)).startswith(sentence)
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.mark.costs(processes=1)
def test_a_folder_without_a_usable_scan_ends_the_command_in_one_sentence(bundle, tmp_path):
    write_scan(tmp_path / "scans" / "air.nii.gz", np.full((8, 8, 8), -1024, np.int16))
    status, text = bundle.run_command("pretrain", dataset_dir=tmp_path / "scans", output_dir=tmp_path / "run")
    assert status == 1
    assert "Traceback" not in text
    sentence = text.strip().splitlines()[-1]
    assert sentence.startswith("Error: the data set: found no usable scan among 1")
    assert "air.nii.gz: found the same value -1024 in every voxel" in sentence


# not UNETR's: what it puts into its holes is drawn between the smallest and the largest value, which NaN are not
@pytest.mark.parametrize("bundle", ["swin_unetr_ssl", "voco_finetune"], indirect=True)
def test_a_loss_that_is_no_number_ends_in_one_sentence(bundle, scans, tmp_path):
    broken = [{"_target_": "Lambdad", "keys": "image", "func": "$lambda image: image * float('nan')"}]
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump({"intensity": broken, "foreground_crop": []}))
    options = {"dataset_dir": str(scans), "output_dir": str(tmp_path / "run")}
    found = bundle.find_error("pretrain", tmp_path / "broken.yaml", **options)
    assert found.startswith("epoch 1, step 1: found a loss of nan, wanted a finite number; lower --learning_rate")
    assert not (tmp_path / "run" / "last.pt").exists()
