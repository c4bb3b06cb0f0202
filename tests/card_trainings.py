# SPDX-License-Identifier: Apache-2.0
"""Small data sets as the cards describe them, and the README's training form on them: `train.yaml` and a card alone."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow

from tools.bundles import BUNDLES, CARDS

NAMES = sorted(path.stem for path in CARDS.glob("*.yaml"))
TRAINING_CASES = 3
# voxels that a volume has more than a crop; the second is smaller than a crop each way, the last one is for validation
EXCESS = ((6, 4, 2), (-10, -6, -4), (-4, 8, 3), (-2, 0, -2))
ORIENTATIONS = ("LPS", "RAS", "PIR", "LAS")
DTYPES = (np.int16, np.float32, np.int16, np.float64)

SCHEDULE = {"epochs": 2, "val_interval": 2, "checkpoint_interval": 2, "num_workers": 0}
SWIN = {"feature_size": 12, "window_size": [2, 2, 2], "network_def#depths": [1, 1, 1, 1]}
UNETR = {"feature_size": 4, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2}
SMALL: dict[str, dict[str, Any]] = {
    "unetr_btcv": {f"network_def#{key}": value for key, value in UNETR.items()},
    "swin_unetr_ssl": SWIN,
    "voco_finetune": SWIN,
    "inflated_vit_seg": {
        "encoder": "vit_tiny_patch16_224",
        "decoder": "unetr",
        "network_def#decoder_channels": 4,
        "network_def#encoder_options": {"depth": 4},
    },
}


def read_card(name: str) -> dict[str, Any]:
    return yaml.safe_load((CARDS / f"{name}.yaml").read_text(encoding="utf-8"))


def shrink(roi_size: Sequence[int]) -> list[int]:
    """Return a smaller crop of the same kind: square where that of a card is, a multiple of 32 where that one is."""
    return [size if size <= 32 else 32 + size % 32 for size in roi_size]


def list_sizes(bundle: str, card: str) -> dict[str, Any]:
    """Return a smaller crop, or smaller slices, of the kind that the card has."""
    values = read_card(card)
    if bundle == "inflated_vit_seg":
        return {"image_size": [size // 10 for size in values.get("image_size", (320, 320))]}
    return {"roi_size": shrink(values["roi_size"])}


def write_dataset(folder: Path, name: str, roi_size: Sequence[int]) -> Path:
    """Write three cases for training and one for validation, about as large as a crop.

    The second case is smaller than a crop and lacks the last class, the third has no class at all. Voxels have the size
    that the card asks for, so that nothing is resampled; orientation, type and header differ from case to case.
    """
    card = read_card(name)
    label_map = ConfigParser({**card, "num_classes": len(card["labels"])}).get_parsed_content("label_map")
    values = [value for value, label in label_map.items() if label]
    held_back = card["validation_cases"]
    cases = ["case_b", "case_c", "case_d", f"case_{held_back[0]}" if held_back else "case_a"]  # else the first of five
    for number, case in enumerate(cases):
        generator = np.random.default_rng(number)
        shape = [max(8, size + excess) for size, excess in zip(roi_size, EXCESS[number], strict=True)]
        shown = [values, values[:-1], [], values][number]
        label = np.zeros(shape, np.int16)
        for place, value in enumerate(shown):  # slabs across X, with air around
            start, end = (2 + (shape[0] - 4) * edge // len(shown) for edge in (place, place + 1))
            label[start:end, 3:-3, 2:-2] = value
        image = make_image(card, label, generator).astype(DTYPES[number])
        for sub, voxels in (("imagesTr", image), ("labelsTr", label)):
            scan = nib.Nifti1Image(voxels, np.diag([*card["pixdim"], 1.0]))
            axes = nib.orientations.axcodes2ornt(ORIENTATIONS[number])
            scan = scan.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(scan.affine), axes))
            scan.set_qform(scan.affine, code=number % 2)
            path = folder / sub / f"{case}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(scan, path)
    return folder


def make_image(card: dict[str, Any], label: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return HU for CT and grey values without unit for MR, with nothing at the border; channels are a fourth axis."""
    is_ct, channels = card["card"]["modality"] == "CT", card.get("in_channels", 1)
    air, tissue, organ, noise = (-1024, -30, 100, 30) if is_ct else (0, 400, 900, 60)
    inside = np.pad(np.ones([size - 2 for size in label.shape], bool), 1)
    clean = np.where(inside, np.where(label > 0, organ, tissue), air)
    images = [clean + inside * generator.normal(0, noise, label.shape) for _ in range(channels)]
    return np.stack(images, axis=-1) if channels > 1 else images[0]


def check_training(bundle: str, card: str, batch_size: int, dataset: Path, folder: Path) -> None:
    """Train a small network for two epochs, nothing else overridden but that every crop is flipped, turned and shifted.

    One volume of two crops in each batch, or two volumes of one, of which the last is alone.
    """
    root = BUNDLES / bundle
    files = [str(root / "configs" / "train.yaml"), str(CARDS / f"{card}.yaml")]
    steps = ConfigParser.load_config_file(files[0])["augmentation"]
    always = {f"augmentation#{number}#prob": 1.0 for number, step in enumerate(steps) if "prob" in step}
    share = {1: 1 / TRAINING_CASES, 2: 1.0}[batch_size]
    sizes = {"batch_size": batch_size, "num_samples": 3 - batch_size, "training_share": share}
    overrides = SMALL[bundle] | SCHEDULE | list_sizes(bundle, card) | always | sizes
    paths = {"dataset_dir": str(dataset), "output_dir": str(folder)}
    metadata = str(root / "configs" / "metadata.json")
    workflow = ConfigWorkflow(files, metadata, logging_file=False, **overrides, **paths)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    record = json.loads((folder / "training.json").read_text())
    cases = round(share * TRAINING_CASES)
    assert record["training_cases"] == cases
    assert record["steps"] == 2 * math.ceil(cases / batch_size)
    assert [epoch["epoch"] for epoch in record["epochs"]] == [1, 2]
    assert all(np.isfinite(epoch["loss"]) for epoch in record["epochs"])
    dice = [record["epochs"][-1][f"dice/{label}"] for label in read_card(card)["labels"][1:]]
    assert all(0 <= value <= 1 for value in dice)
    shutil.rmtree(folder)  # 50 MB of weights
