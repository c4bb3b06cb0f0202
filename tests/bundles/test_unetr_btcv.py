# SPDX-License-Identifier: Apache-2.0
"""What is UNETR's own: its size, its augmentation presets and switches, MLflow, what the metadata say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, verify_net_in_out
from table import TINY_UNETR, TRAININGS, name_arguments

from tools.bundles import BUNDLES

BUNDLE = BUNDLES / "unetr_btcv"
CONFIGS = BUNDLE / "configs"
PRESETS = sorted((CONFIGS / "augmentation").glob("*.yaml"))

SWITCHES = [*PRESETS, "stem", "light", "align", "fpn"]
# every preset and switch with crops that are cubes or flat ones
CHANGES = [(change, ([32, 32, 32], [32, 32, 16])[number % 2]) for number, change in enumerate(SWITCHES)]


@pytest.fixture
def bundle(make_bundle):
    return make_bundle("unetr_btcv", TRAININGS["unetr_btcv"].small)


# ---- what the files say


def test_the_published_unetr_has_its_number_of_parameters():
    parser = ConfigParser(ConfigParser.load_config_file(str(CONFIGS / "train.yaml")))
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    assert sum(parameter.numel() for parameter in network.parameters()) == 92_802_478


# ---- training


@pytest.mark.parametrize(("change", "roi_size"), CHANGES, ids=lambda value: getattr(value, "stem", str(value)))
def test_every_preset_and_every_switch_trains_a_step(change, roi_size, bundle, dataset, tmp_path):
    preset = [change] if isinstance(change, Path) else []
    switch = {} if preset else {f"network_def#{change}": True}
    options = {"dataset_dir": str(dataset), "output_dir": str(tmp_path / "run"), "roi_size": roi_size}
    bundle.run("train", *preset, **options, num_samples=1, epochs=1, **{"train#trainer#epoch_length": 1, **switch})
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["steps"] == 1
    assert np.isfinite(record["epochs"][0]["loss"])
    assert 0 <= record["best"]["dice"] <= 1


def test_experiment_tracking_with_mlflow_records_the_loss(bundle, dataset, tmp_path):
    options = {"dataset_dir": str(dataset), "output_dir": str(tmp_path / "run"), "bundle_root": str(tmp_path)}
    bundle.run("train", tracking="mlflow", **options, epochs=1)
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/run/mlruns.db")
    runs = mlflow.search_runs(search_all_experiments=True)
    assert runs["metrics.train_loss"].notna().any()


# ---- export


def test_network_takes_and_gives_what_the_metadata_say(tmp_path):
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    tensors = [
        *metadata["network_data_format"]["inputs"].values(),
        *metadata["network_data_format"]["outputs"].values(),
    ]
    for tensor in tensors:
        tensor["spatial_shape"] = [16, 16, 16]  # the small network; its classes stay those of the bundle
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    verify_net_in_out(
        "network_def",
        meta_file=str(tmp_path / "metadata.json"),
        config_file=str(CONFIGS / "inference.yaml"),
        roi_size=[16, 16, 16],
        **name_arguments(TINY_UNETR),
    )
