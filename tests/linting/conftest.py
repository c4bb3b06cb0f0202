# SPDX-License-Identifier: Apache-2.0
"""Copies of bundles to plant faults in, and a small bundle of somebody else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import UNet

from tools.bundles import BUNDLES

Edit = Callable[[Path], None]


def copy_bundle(name: str, folder: Path) -> Path:
    """Copy a bundle without public weights; the weights of its committed models are linked, as they are large."""
    source, target = BUNDLES / name, folder / name
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "*.pt", "*.pth", "eval"))
    for overlay in source.glob("models/*.yaml"):
        weights = overlay.with_suffix(".safetensors")
        (target / "models" / weights.name).symlink_to(weights)
    return target


NETWORK = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}


def make_foreign_bundle(folder: Path) -> Path:
    """Write a bundle as the model zoo has them: JSON, code in scripts/, inference only."""
    root = folder / "toy_segmentation"
    for sub in ("configs", "docs", "models", "scripts"):
        (root / sub).mkdir(parents=True)
    (root / "LICENSE").write_text("Apache-2.0\n")
    (root / "docs" / "README.md").write_text("# Toy\n\n`configs/inference.json`\n")
    (root / "scripts" / "__init__.py").write_text("from .steps import Halved\n")
    (root / "scripts" / "steps.py").write_text(
        "from pathlib import Path\n"
        "from monai.transforms import MapTransform\n"
        "Path(__file__).with_name('was_imported').touch()\n"
        "class Halved(MapTransform):\n"
        "    def __init__(self, keys, factor=0.5):\n"
        "        super().__init__(keys)\n"
    )
    torch.save(UNet(**NETWORK).state_dict(), root / "models" / "model.pt")
    write_json(root / "configs" / "metadata.json", METADATA)
    write_json(root / "configs" / "inference.json", INFERENCE)
    return root


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2))


TENSOR = {"type": "image", "num_channels": 1, "spatial_shape": [16, 16, 16], "dtype": "float32", "value_range": [0, 1]}
METADATA = {
    "schema": "https://example.org/meta_schema_20240725.json",
    "version": "0.2.0",
    "changelog": {"0.2.0": "more", "0.1.0": "first"},
    "monai_version": version("monai"),
    "pytorch_version": version("torch").partition("+")[0],
    "numpy_version": version("numpy"),
    "required_packages_version": {"nibabel": version("nibabel")},
    "task": "toy",
    "description": "toy",
    "authors": "somebody",
    "copyright": "somebody",
    "network_data_format": {
        "inputs": {"image": TENSOR | {"format": "hounsfield", "channel_def": {"0": "image"}}},
        "outputs": {
            "pred": TENSOR
            | {"format": "segmentation", "num_channels": 2, "channel_def": {"0": "background", "1": "thing"}}
        },
    },
}
INFERENCE = {
    "imports": ["$import glob", "$import os", "$import scripts"],
    "bundle_root": ".",
    "dataset_dir": "@bundle_root",
    "output_dir": "$@bundle_root + '/eval'",
    "data": "$list(sorted(glob.glob(os.path.join(@dataset_dir, '*.nii.gz'))))",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network_def": {"_target_": "UNet", **NETWORK},
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "scripts.Halved", "keys": "image", "factor": 0.5},
            {"_target_": "scripts.steps.Halved", "keys": "image"},
        ],
    },
    "dataset": {
        "_target_": "Dataset",
        "data": "$[{'image': i} for i in @data]",
        "transform": "@preprocessing",
    },
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16]},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"},
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"},
        ],
    },
    "handlers": [
        {
            "_target_": "CheckpointLoader",
            "_disabled_": "$not os.path.exists(@bundle_root + '/models/model.pt')",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        }
    ],
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
        "postprocessing": "@postprocessing",
        "val_handlers": "@handlers",
    },
    "run": ["$@evaluator.run()"],
}


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    return make_foreign_bundle(tmp_path)


@pytest.fixture
def unetr(tmp_path: Path) -> Path:
    return copy_bundle("unetr_btcv", tmp_path)


@pytest.fixture
def voco(tmp_path: Path) -> Path:
    return copy_bundle("voco_finetune", tmp_path)
