# SPDX-License-Identifier: Apache-2.0
"""The bundle as people use it: trained with every switch, evaluated, and used for inference."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import timm
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow

from tools.bundles import BUNDLES
from tools.errors import find_cause

BUNDLE = BUNDLES / "inflated_vit_seg"
CONFIGS = BUNDLE / "configs"
SMALL = {
    "labels": ["background", "ball", "shell"],
    "encoder": "vit_tiny_patch16_224",
    "decoder": "unetr",
    "image_size": [32, 40],
    "network_def#decoder_channels": 4,
    "network_def#encoder_options": {"depth": 4},
    "epochs": 2,
    "val_interval": 2,
    "checkpoint_interval": 1,
    "num_workers": 0,
    "learning_rate": 0.002,
    "num_samples": 4,
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def run(files: list[Path], **overrides: object) -> None:
    workflow = ConfigWorkflow(
        [str(file) for file in files], str(CONFIGS / "metadata.json"), logging_file=False, **overrides
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


@pytest.mark.parametrize(("name", "kind"), [("train", "train"), ("inference", "infer")])
def test_monai_finds_every_property_it_requires(name, kind, dataset, small, tmp_path):
    parser = ConfigParser(ConfigParser.load_config_files([str(CONFIGS / "inference.yaml"), str(small)]))
    torch.save(parser.get_parsed_content("network_def").state_dict(), tmp_path / "weights.pt")
    workflow = ConfigWorkflow(
        [str(CONFIGS / f"{name}.yaml"), str(small)],
        str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        dataset_dir=str(dataset if kind == "train" else dataset / "imagesTr"),
        output_dir=str(tmp_path),
        **({"checkpoint": str(tmp_path / "weights.pt")} if kind == "infer" else {}),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"force_2d": True},
        {"num_slices": 3, "loss_name": "dice_ce"},
        {"loss_name": "ce", "layer_decay": 0.75},
        {"decoder": "upernet"},
        {"decoder": "setr_pup", "inflation": "average"},
        {"decoder": "transposed", "clip_norm": None},
        {"encoder": "swin_tiny_patch4_window7_224", "network_def#encoder_options": {}},
    ],
    ids=str,
)
def test_every_switch_trains_and_validates(changes, dataset, small, tmp_path):
    run(
        [CONFIGS / "train.yaml", small],
        dataset_dir=str(dataset),
        output_dir=str(tmp_path / "run"),
        **{"epochs": 1, "train#trainer#epoch_length": 1, **changes},
    )
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert np.isfinite(record["epochs"][0]["loss"])
    assert 0 <= record["best"]["dice"] <= 1


@pytest.mark.parametrize("use_pretrained", [True, False])
def test_2d_weights_are_inflated_unless_switched_off(use_pretrained, dataset, small, tmp_path):
    planar = timm.create_model("vit_tiny_patch16_224", depth=4, num_classes=10)
    torch.save(planar.state_dict(), tmp_path / "planar.pt")
    run(
        [CONFIGS / "train.yaml", small],
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


@pytest.mark.numeric
def test_training_then_evaluation_then_inference(dataset, small, tmp_path):
    run([CONFIGS / "train.yaml", small], dataset_dir=str(dataset), output_dir=str(tmp_path / "run"), epochs=8)
    best = tmp_path / "run" / "best.pt"
    run(
        [CONFIGS / "train.yaml", CONFIGS / "evaluate.yaml", small],
        dataset_dir=str(dataset),
        output_dir=str(tmp_path / "evaluation"),
        checkpoint=str(best),
    )
    evaluation = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert evaluation["mean"] == pytest.approx(record["best"]["dice"], abs=1e-4)
    run(
        [CONFIGS / "inference.yaml", small],
        dataset_dir=str(dataset / "imagesTr"),
        output_dir=str(tmp_path / "segmentations"),
        checkpoint=str(best),
    )
    source = nib.load(dataset / "labelsTr" / "case_4.nii.gz")
    image = nib.load(tmp_path / "segmentations" / "case_4_seg.nii.gz")
    assert image.shape == source.shape
    np.testing.assert_array_equal(image.affine, source.affine)
    segmentation, label = np.asanyarray(image.dataobj) == 1, np.asanyarray(source.dataobj) == 1
    overlap = 2 * np.sum(segmentation & label) / (np.sum(segmentation) + np.sum(label))
    assert overlap == pytest.approx(evaluation["per_case"]["case_4.nii.gz"]["ball"], abs=1e-4)


def test_images_of_several_channels_are_trained_with_and_segmented(dataset, small, tmp_path):
    for path in (dataset / "imagesTr").iterdir():
        image = nib.load(path)
        voxels = np.asanyarray(image.dataobj)
        nib.save(nib.Nifti1Image(np.stack([voxels, 100 - voxels], axis=-1), image.affine), path)
    run(
        [CONFIGS / "train.yaml", small],
        dataset_dir=str(dataset),
        output_dir=str(tmp_path / "run"),
        in_channels=2,
        epochs=1,
    )
    run(
        [CONFIGS / "inference.yaml", small],
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
def test_mistakes_end_in_a_sentence(changes, message, dataset, small, tmp_path):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it; the cause is looked at
        run([CONFIGS / "train.yaml", small], dataset_dir=str(dataset), output_dir=str(tmp_path), **changes)
    cause = find_cause(caught.value)
    assert cause is not None
    assert message in str(cause)
