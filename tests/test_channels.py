# SPDX-License-Identifier: Apache-2.0
"""A scan of several files is that of one file with several volumes."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from monai.bundle import ConfigParser
from monai.transforms import Compose

from tools.__main__ import tools
from tools.bundles import BUNDLES
from tools.channels import drop_further_channels, list_channel_files
from tools.checks import check_dataset, select_readable
from tools.commands.train import describe_dataset
from tools.datasets import DiskDataset, list_scans, list_unlabelled, read_datalist
from tools.errors import GeometryMismatchError, UnreadableScanError
from tools.scans import Scan

AFFINE = np.diag([-1.5, 1.5, 2, 1])
SHAPE = (12, 13, 14)


def write(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def write_case(folder: Path, name: str, seed: int) -> np.ndarray:
    """Write two channels as nnU-Net does, and their label; return the channels."""
    voxels = np.random.default_rng(seed).normal(size=(*SHAPE, 2)).astype(np.float32)
    for number in range(2):
        write(folder / "imagesTr" / f"{name}_{number:04}.nii.gz", voxels[..., number])
    label = (voxels[..., 0] > 1).astype(np.uint8)
    write(folder / "labelsTr" / f"{name}.nii.gz", label)
    return voxels


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for number in range(5):
        write_case(tmp_path, f"case_{number:02}", number)
    return tmp_path


def test_the_files_behind_a_first_one_belong_to_it_where_channels_are_asked_for(dataset):
    images = sorted((dataset / "imagesTr").iterdir())
    assert list_channel_files(images[0], 2) == images[:2]
    assert list_channel_files(images[0], 1) == images[:1]
    assert list_channel_files(images[0]) == images[:2]
    assert list_channel_files(images[1], 2) == images[1:2]
    assert drop_further_channels(images, 2) == images[::2]
    assert drop_further_channels(images, 1) == images


def test_files_that_are_numbered_without_a_gap_are_patients_for_a_network_of_one_channel(dataset):
    assert len(list_scans(dataset / "imagesTr")) == 10
    names = [Path(scan["image"]).name for scan in list_scans(dataset / "imagesTr", num_channels=2)]
    assert names == [f"case_{number:02}_0000.nii.gz" for number in range(5)]


def test_one_file_with_all_channels_may_be_called_so(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(*SHAPE, 2)).astype(np.float32)
    path = write(tmp_path / "a_0000.nii.gz", voxels)
    assert list_channel_files(path, 2) == [path]
    np.testing.assert_array_equal(Scan(path, 2).read(), voxels)


def test_another_number_of_files_is_none_of_channels(dataset):
    with pytest.raises(UnreadableScanError, match=r"case_00_0000\.nii\.gz: found 1 volumes.*wanted 3 volumes"):
        Scan(dataset / "imagesTr" / "case_00_0000.nii.gz", 3)


def test_patients_that_are_numbered_so_stay_patients(tmp_path):
    for number in range(3):
        write(tmp_path / "imagesTr" / f"scan_{number:04}.nii.gz", np.ones((*SHAPE, 2), np.float32))
        write(tmp_path / "labelsTr" / f"scan_{number:04}.nii.gz", np.zeros(SHAPE, np.uint8))
    assert len(list_scans(tmp_path / "imagesTr", num_channels=2)) == 3
    cases = read_datalist(tmp_path, "training")
    assert describe_dataset(tmp_path, cases, ["background", "a"])["in_channels"] == 2


def test_a_scan_has_the_channels_of_its_files(tmp_path):
    voxels = write_case(tmp_path, "a", 0)
    scan = Scan(tmp_path / "imagesTr" / "a_0000.nii.gz", 2)
    assert (scan.num_channels, scan.shape) == (2, SHAPE)
    np.testing.assert_array_equal(scan.read(), voxels)


def test_channels_on_another_grid_are_refused(tmp_path):
    write_case(tmp_path, "a", 0)
    write(tmp_path / "imagesTr" / "a_0001.nii.gz", np.zeros(SHAPE, np.float32), np.diag([1.5, 1.5, 2, 1]))
    with pytest.raises(GeometryMismatchError, match=r"a_0001\.nii\.gz"):
        Scan(tmp_path / "imagesTr" / "a_0000.nii.gz", 2)
    with pytest.raises(UnreadableScanError, match="1 volumes"):
        Scan(tmp_path / "imagesTr" / "a_0001.nii.gz", 2)


@pytest.mark.parametrize("listed", [False, True])
def test_a_data_set_of_nnunet_is_paired_by_cases(dataset, listed):
    if listed:
        entries = ", ".join(
            f'{{"image": "imagesTr/case_{n:02}.nii.gz", "label": "labelsTr/case_{n:02}.nii.gz"}}' for n in range(5)
        )
        (dataset / "dataset.json").write_text(f'{{"training": [{entries}]}}')
    training, validation = (read_datalist(dataset, section) for section in ("training", "validation"))
    assert (len(training), len(validation)) == (4, 1)
    for entry in training + validation:
        image, label = Path(entry["image"]), Path(entry["label"])
        assert image.name == label.name.replace(".nii.gz", "_0000.nii.gz")
    check_dataset(training, [0, 1], num_channels=2, validation=validation)
    assert describe_dataset(dataset, training, ["background", "a"])["in_channels"] == 2


def test_a_pretraining_takes_each_scan_once(dataset):
    scans = list_unlabelled(dataset / "imagesTr", num_channels=2)
    assert [Path(scan["image"]).name for scan in scans] == [f"case_{number:02}_0000.nii.gz" for number in range(5)]
    assert select_readable(scans, num_channels=2) == scans
    held_back = list_unlabelled(dataset, ["case_01"], num_channels=2)
    assert len(held_back) == 4


def test_images_whose_own_name_has_a_label_stay_cases(tmp_path):
    for name in ("scan_0000", "scan_0001"):
        write(tmp_path / "imagesTr" / f"{name}.nii.gz", np.zeros(SHAPE, np.float32))
        write(tmp_path / "labelsTr" / f"{name}.nii.gz", np.zeros(SHAPE, np.uint8))
    assert len(read_datalist(tmp_path, "training")) + len(read_datalist(tmp_path, "validation")) == 2


@pytest.mark.parametrize("name", ["unetr_btcv", "swin_unetr_ssl", "voco_finetune", "inflated_vit_seg"])
@pytest.mark.parametrize("chain", ["train#geometry", "validate#geometry", "geometry"])
def test_every_bundle_reads_them_as_the_file_with_both_volumes(name, chain, tmp_path):
    voxels = write_case(tmp_path, "a", 0)
    whole = write(tmp_path / "whole.nii.gz", voxels)
    file = "inference" if chain == "geometry" else "train"
    parser = ConfigParser(ConfigParser.load_config_file(BUNDLES / name / "configs" / f"{file}.yaml"))
    size = {"image_size": [16, 16]} if "image_size" in parser else {"pixdim": [1.5, 1.5, 2.0]}
    parser.update({"in_channels": 2, "labels": ["background", "a"], "bundle_root": str(BUNDLES / name), **size})
    geometry: Compose = Compose(parser.get_parsed_content(chain))
    label = str(tmp_path / "labelsTr" / "a.nii.gz")
    found, wanted = (
        geometry({"image": str(path), "label": label})["image"]
        for path in (tmp_path / "imagesTr" / "a_0000.nii.gz", whole)
    )
    assert found.shape[0] == 2
    torch.testing.assert_close(found.as_tensor(), wanted.as_tensor(), rtol=0, atol=0)
    torch.testing.assert_close(found.affine, wanted.affine)


def test_a_prepared_volume_is_made_anew_when_a_further_channel_changes(tmp_path):
    write_case(tmp_path, "a", 0)
    entry = {"image": str(tmp_path / "imagesTr" / "a_0000.nii.gz")}
    dataset = DiskDataset([entry], Compose([]), tmp_path / "cache")
    before = dataset.hash_func(entry)
    write(tmp_path / "imagesTr" / "a_0001.nii.gz", np.ones(SHAPE, np.float32))
    assert dataset.hash_func(entry) != before


def test_the_command_takes_a_folder_of_them(dataset, tmp_path, monkeypatch):
    """With a stand-in for the run: it gets the first files, and a model of two channels fits."""
    from tools.commands import segment
    from tools.models import find_model

    model = find_model("unetr_btcv/msd04_hippocampus")
    model.config["in_channels"] = 2
    called = {}
    monkeypatch.setattr(segment, "find_model", lambda _: model)
    monkeypatch.setattr(segment, "run_bundle", lambda files, overrides, *_: called.update(overrides) or 0)
    first, other = (str(dataset / "imagesTr" / f"case_{n:02}_0000.nii.gz") for n in range(2))
    done = CliRunner().invoke(
        tools, ["segment", "-i", first, "-i", other, "-m", "x", "-o", str(tmp_path / "o"), "--force"]
    )
    assert done.exit_code == 0, done.output
    assert called["datalist"] == [first, other]
    assert segment.list_inputs([str(dataset / "imagesTr")], 2)[:2] == [first, other]
