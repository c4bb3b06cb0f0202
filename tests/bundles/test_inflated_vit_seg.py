# SPDX-License-Identifier: Apache-2.0
"""What is its own: its switches, 2D weights, several channels, what is refused."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import timm
import torch
from table import TRAININGS


@pytest.fixture
def bundle(make_bundle):
    return make_bundle("inflated_vit_seg", TRAININGS["inflated_vit_seg"].small)


@pytest.mark.parametrize(
    "changes",
    [
        {"force_2d": True},
        {"num_slices": 3, "loss_name": "dice_ce"},
        {"loss_name": "ce", "layer_decay": 0.75},
        {"decoder": "upernet"},
        {"decoder": "setr_pup", "inflation": "average"},
        {"decoder": "transposed", "clip_norm": None},
        {"encoder": "swin_tiny_patch4_window7_224", "network_def#encoder_options": {"depths": [1, 1, 1, 1]}},
    ],
    ids=str,
)
def test_every_switch_trains_and_validates(changes, bundle, dataset, tmp_path):
    bundle.run(
        "train",
        dataset_dir=str(dataset),
        output_dir=str(tmp_path / "run"),
        **{"epochs": 1, "train#trainer#epoch_length": 1, **changes},
    )
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert np.isfinite(record["epochs"][0]["loss"])
    assert 0 <= record["best"]["dice"] <= 1


@pytest.mark.parametrize("use_pretrained", [True, False])
def test_2d_weights_are_inflated_unless_switched_off(use_pretrained, bundle, dataset, tmp_path):
    planar = timm.create_model("vit_tiny_patch16_224", depth=4, num_classes=10)
    torch.save(planar.state_dict(), tmp_path / "planar.pt")
    bundle.run(
        "train",
        dataset_dir=str(dataset),
        output_dir=str(tmp_path / "run"),
        pretrained=str(tmp_path / "planar.pt"),
        use_pretrained=use_pretrained,
        epochs=1,
        learning_rate=1e-12,
        **{"train#trainer#epoch_length": 1},
    )
    trained = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["model"]
    same = torch.allclose(trained["encoder.model.blocks.3.attn.qkv.weight"], planar.blocks[3].attn.qkv.weight)
    assert same == use_pretrained
    assert (tmp_path / "run" / "weights.json").is_file() == use_pretrained


def test_images_of_several_channels_are_trained_with_and_segmented(bundle, dataset, tmp_path):
    for path in (dataset / "imagesTr").iterdir():
        image = nib.load(path)
        voxels = np.asanyarray(image.dataobj)
        nib.save(nib.Nifti1Image(np.stack([voxels, 100 - voxels], axis=-1), image.affine), path)
    bundle.run(
        "train",
        dataset_dir=str(dataset),
        output_dir=str(tmp_path / "run"),
        in_channels=2,
        epochs=1,
    )
    bundle.run(
        "inference",
        datalist=[str(dataset / "imagesTr" / "case_0.nii.gz")],
        output_dir=str(tmp_path / "out"),
        checkpoint=str(tmp_path / "run" / "last.pt"),
        in_channels=2,
    )
    assert nib.load(tmp_path / "out" / "case_0_seg.nii.gz").shape == (22, 20, 12)
    assert (tmp_path / "out" / "case_0_seg.png").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "vit_smal_patch14_dinov2"}, "vit_small_patch14_dinov2"),
        ({"encoder": "resnet50", "network_def#encoder_options": {}}, "resnet50"),
        ({"decoder": "unet"}, "upernet"),
        ({"num_slices": 4}, "odd"),
        ({"in_channels": 2}, "found 1 volumes in 3D data"),
        ({"layer_decay": 2}, "layer_decay"),
    ],
    ids=str,
)
def test_mistakes_end_in_a_sentence(changes, message, bundle, dataset, tmp_path):
    options = {"dataset_dir": str(dataset), "output_dir": str(tmp_path), **changes}
    assert message in bundle.find_error("train", **options)
