# SPDX-License-Identifier: Apache-2.0
"""A data set without a card is described from its files; a card, a recipe and weights are found by their names."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from tools import api
from tools.__main__ import tools
from tools.bundles import BUNDLES, CARDS
from tools.commands import train
from tools.commands.info import describe, format_description, format_models
from tools.datasets import read_datalist
from tools.errors import ConfigValueError

SMALL = CARDS / "small"


def write_dataset(folder: Path, low: float, spacing: tuple[float, ...] = (1.0, 1.0, 2.0), **content: object) -> Path:
    generator = np.random.default_rng(0)
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
        for number in range(6):
            voxels = (
                generator.integers(0, 2, (40, 50, 20)) if kind == "labelsTr" else generator.normal(low, 5, (40, 50, 20))
            )
            image = nib.Nifti1Image(voxels.astype(np.int16), np.diag([*spacing, 1.0]))
            nib.save(image, folder / kind / f"case_{number}.nii.gz")
    if content:
        (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "labels",
    [{"0": "background", "1": "spleen", "2": "liver"}, {"background": 0, "spleen": 1, "liver": 2},
     {"liver": 2, "background": 0, "spleen": 1}],
    ids=["Decathlon", "nnU-Net", "another order"],
)  # fmt: skip
def test_labels_are_named_by_their_values_however_they_are_written(labels):
    assert train.read_labels(Path("dataset.json"), labels) == ["background", "spleen", "liver"]


@pytest.mark.parametrize("labels", [None, {}, [], {"background": 0, "liver": 7}, {"a": "b"}, {"background": [0, 1]}])
def test_labels_that_are_not_numbered_from_0_are_refused(labels):
    with pytest.raises(ConfigValueError, match=r"dataset\.json"):
        train.read_labels(Path("dataset.json"), labels)


@pytest.mark.parametrize(
    ("low", "content", "modality"),
    [
        (-900, {}, "CT"),
        (300, {}, "MR"),
        (300, {"modality": {"0": "CT"}}, "CT"),
        (-900, {"channel_names": {"0": "T1"}}, "MR"),
    ],
)
def test_a_dataset_is_described_from_its_scans(low, content, modality, tmp_path):
    folder = write_dataset(tmp_path / "spleens", low, **({"labels": {"0": "background", "1": "spleen"}} | content))
    if modality == "CT" and low < 0:  # air below, tissue above zero
        path = folder / "imagesTr" / "case_0.nii.gz"
        image = nib.load(path)
        voxels = np.asanyarray(image.dataobj).copy()
        voxels[:10] = 100
        for number in range(6):
            nib.save(nib.Nifti1Image(voxels, image.affine), folder / "imagesTr" / f"case_{number}.nii.gz")
    source = folder / "dataset.json"
    values = train.describe_dataset(source, read_datalist(folder, "training"))
    assert values["labels"] == ["background", "spleen"]
    assert values["card"]["modality"] == modality
    assert values["card"]["extent_mm"] == [[40, 50, 40], [40, 50, 40]]
    assert values["pixdim"] == [1.0, 1.0, 2.0]
    assert values["roi_size"] == [64, 64, 32]
    assert values["intensity"][0]["_target_"] == {"CT": "ScaleIntensityRanged", "MR": "NormalizeIntensityd"}[modality]
    cases = len(read_datalist(folder, "training"))
    assert 4000 <= values["epochs"] * cases < 4000 + cases


SMALL_NETWORK = {
    **{f"network_def#{name}": value for name, value in (("feature_size", 4), ("hidden_size", 24), ("mlp_dim", 48))},
    **{"network_def#num_heads": 3, "num_workers": 0, "batch_size": 5, "num_samples": 1},
}


@pytest.mark.costs(processes=4)
@pytest.mark.usefixtures("commands_in_forks")
def test_own_data_are_trained_on_resumed_and_segmented_without_a_card(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "data#1", 300, labels={"0": "background", "1": "left part"})
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL_NETWORK))
    runner = CliRunner()
    words = ["train", "data#1", "-o", "7", "--config_file", "small.yaml"]
    done = runner.invoke(tools, [*words, "--epochs", "1"])
    assert done.exit_code == 0, done.output
    described = yaml.safe_load((tmp_path / "7" / "dataset.yaml").read_text())
    model = yaml.safe_load((tmp_path / "7" / "model.yaml").read_text())
    assert model["labels"] == ["background", "left part"]
    assert model["roi_size"] == described["roi_size"] == [64, 64, 32]
    assert model["card"]["title"] == described["card"]["title"].replace("#", "::")  # MONAI reads a # of any text so
    with (tmp_path / "7" / "dataset.yaml").open("a") as file:
        file.write("# mine\n")
    done = runner.invoke(tools, [*words, "--epochs", "2", "--resume"])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "7" / "training.json").read_text())
    assert len(record["epochs"]) == 2
    assert (tmp_path / "7" / "dataset.yaml").read_text().endswith("# mine\n"), "as it was corrected"
    done = runner.invoke(tools, ["segment", "data#1/imagesTr/case_0.nii.gz", "-o", "out", "-m", "7"])
    assert done.exit_code == 0, done.output
    assert nib.load(tmp_path / "out" / "case_0_seg.nii.gz").shape == (40, 50, 20)
    assert api.read_names(nib.load(tmp_path / "out" / "case_0_seg.nii.gz")) == {0: "background", 1: "left part"}


def test_a_card_brings_the_recipe_of_its_name_where_the_bundle_has_one():
    for bundle, has_recipe in (("unetr_btcv", True), ("voco_finetune", False)):
        files = train._list_overlays(BUNDLES / bundle, SMALL / "card.yaml")
        assert [file.name for file in files] == ["card.yaml", "msd04_hippocampus.yaml"][: 1 + has_recipe]


def test_weights_to_start_from_are_found_by_path_and_by_the_name_of_a_model(tmp_path):
    (tmp_path / "x.pt").touch()
    assert train.find_weights(str(tmp_path / "x.pt"), "unetr_btcv") == tmp_path / "x.pt"
    found = train.find_weights("unetr_btcv/msd04_hippocampus", "unetr_btcv")
    assert found == BUNDLES / "unetr_btcv" / "models" / "msd04_hippocampus.safetensors"


def test_a_scan_a_model_and_the_list_of_models_are_described():
    scan = next((SMALL / "imagesTr").glob("*.nii.gz"))
    content = describe(str(scan))
    assert content["looks_like"] == "MR"
    assert "unetr_btcv/msd04_hippocampus" in content["fitting_models"]
    assert set(content["other_models"]) == {"swin_unetr_ssl/openkbp_hn", "voco_finetune/openkbp_hn"}
    assert "is for CT" in format_description(content)
    model = describe("unetr_btcv")
    assert model["structures"] == ["anterior hippocampus", "posterior hippocampus"]
    assert model["spacing_mm"] == [1.0, 1.0, 1.0]
    table = format_models()
    assert "CC-BY-SA 4.0" in table
    assert "voco_b" in table


def test_the_small_data_set_is_whole():
    training, validation = (read_datalist(SMALL, section) for section in ("training", "validation"))
    assert (len(training), len(validation)) == (6, 2)
    assert (SMALL / "LICENSE.md").is_file()
    for pair in training + validation:
        values = set(np.unique(np.asanyarray(nib.load(pair["label"]).dataobj)))
        assert values == {0, 1, 2}
