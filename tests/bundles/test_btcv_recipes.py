# SPDX-License-Identifier: Apache-2.0
"""The recipes of BTCV, as they stand, on scans with the names and the labels of BTCV."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

IDS = (*range(1, 11), *range(21, 41))


@pytest.fixture
def btcv(tmp_path: Path) -> Path:
    """The 30 labelled scans of BTCV by name, 24 x 22 x 18 voxels, with all of its 14 label values."""
    folder = tmp_path / "RawData" / "Training"
    generator = np.random.default_rng(0)
    for sub in ("img", "label"):
        (folder / sub).mkdir(parents=True)
    label = np.zeros((24, 22, 18), np.uint8)
    for value in range(1, 14):
        label[1 + value : 9 + value, 4:18, value : value + 4] = value
    for number in IDS:
        image = (label * 20.0 - 100 + generator.normal(0, 10, label.shape)).astype(np.int16)
        for name, voxels in (("img", image), ("label", label)):
            path = folder / name / f"{name}{number:04}.nii.gz"
            nib.save(nib.Nifti1Image(voxels, np.diag([-1.5, -1.5, 2.0, 1.0])), path)
    return folder


@pytest.mark.costs(processes=2)
@pytest.mark.parametrize(
    ("name", "epochs", "parameters"), [("swin_unetr_ssl", 5000, 62_187_296), ("voco_finetune", 1000, 72_762_656)]
)
def test_the_recipe_finds_its_split_and_all_that_monai_requires(name, epochs, parameters, make_bundle, btcv, tmp_path):
    """Not made small: nothing of train.yaml is overridden but the paths."""
    bundle = make_bundle(name, {"dataset_dir": str(btcv), "output_dir": str(tmp_path / "run")})
    workflow = bundle.make_workflow("train", workflow_type="train")
    assert workflow.check_properties() == []
    cases = [workflow.parser.get_parsed_content(f"{section}#dataset#data") for section in ("train", "validate")]
    names = [[Path(case["image"]).name for case in section] for section in cases]
    train = [f"img{number:04}.nii.gz" for number in IDS if number < 35]
    assert names == [train, [f"img{number:04}.nii.gz" for number in range(35, 41)]]
    pairs = [(Path(case["image"]).name[3:], Path(case["label"]).name[5:]) for section in cases for case in section]
    assert all(image == label for image, label in pairs)
    trainer = workflow.parser.get_parsed_content("train#trainer")
    assert (trainer.state.max_epochs, trainer.state.epoch_length) == (epochs, 24)
    assert sum(parameter.numel() for parameter in trainer.network.parameters()) == parameters
    (batch,) = (next(iter(workflow.parser.get_parsed_content("train#dataloader"))),)
    assert batch["image"].shape == batch["label"].shape == (4, 1, 96, 96, 96)


@pytest.mark.parametrize("name", ["swin_unetr_ssl", "voco_finetune"])
def test_an_epoch_is_trained_and_every_organ_has_its_dice(name, make_bundle, btcv, tmp_path):
    small = {"feature_size": 12, "window_size": [2, 2, 2], "roi_size": [32, 32, 64], "overlap": 0.0}
    bundle = make_bundle(name, small | {"num_samples": 1, "batch_size": 2, "num_workers": 0, "training_share": 0.16})
    bundle.run("train", dataset_dir=str(btcv), output_dir=str(tmp_path / "run"), epochs=1)
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    (epoch,) = record["epochs"]
    assert (record["training_cases"], record["steps"]) == (4, 2)
    assert np.isfinite(epoch["loss"])
    organs = [key.removeprefix("dice/") for key in epoch if key.startswith("dice/")]
    assert organs == bundle.parse("train")["labels"][1:]
    assert epoch["dice"] == pytest.approx(np.mean([epoch[f"dice/{organ}"] for organ in organs]), abs=1e-5)
