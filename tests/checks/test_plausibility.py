# SPDX-License-Identifier: Apache-2.0
"""What is odd about a scan or a setting, for a model that was trained on others, is told; sound ones are not."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from processes import explain, run_module

from tools.bundles import BUNDLES
from tools.checks.plausibility import find_oddities, list_changes
from tools.configs import read_config
from tools.demonstration import EMBEDDED
from tools.models import find_model, find_owner
from tools.scans import Scan

CT = EMBEDDED / "openkbp_hn" / "imagesTr" / "pt_12.nii.gz"
MR = EMBEDDED / "msd04_hippocampus" / "imagesTr" / "hippocampus_011.nii.gz"
CT_MODEL, MR_MODEL = "voco_finetune/openkbp_hn", "unetr_btcv/msd04_hippocampus"
BUNDLE = BUNDLES / "unetr_btcv"


def look(path: Path, model: str, voxels: np.ndarray | None = None) -> list[str]:
    found, scan = find_model(model), Scan(path)
    pixdim = found.config["pixdim"]
    return find_oddities(scan, scan.read() if voxels is None else voxels, found, pixdim, expects_hu=False)


def pad(voxels: np.ndarray) -> np.ndarray:
    """Return the values of a scanner that writes HU + 1024, and -2000 outside of the field of view."""
    shifted = voxels + 1024
    shifted[:8] = -2000
    return shifted


@pytest.mark.parametrize("path", sorted(EMBEDDED.glob("*/imagesTr/*.nii.gz")), ids=lambda path: path.name)
def test_sound_scans_are_not_odd_for_their_models(path):
    assert look(path, CT_MODEL if "openkbp" in str(path) else MR_MODEL) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda hu: hu + 1024,
        lambda hu: hu + 1000.5,
        pad,
        lambda hu: np.clip((hu + 160) / 400 * 255, 0, 255).astype(np.uint8),
        lambda hu: np.clip((hu + 160) / 400, 0, 1),
        lambda hu: np.clip((hu + 160) / 200 - 1, -1, 1),
        lambda hu: (hu - hu.mean()) / hu.std(),
        lambda hu: hu / 1000,
    ],
    ids=["+1024", "+1000.5", "+1024, padded", "bytes", "0..1", "-1..1", "standardized", "/1000"],
)
def test_a_ct_that_is_not_in_hounsfield_units_is_told(change):
    voxels = change(Scan(CT).read().astype(np.float32))
    assert len(found := look(CT, CT_MODEL, voxels)) == 1
    assert "are no Hounsfield units, in which fat is at -100 and air at -1000" in found[0]
    # where nothing is known of the model, its scaling tells what it expects
    assert find_oddities(Scan(CT), voxels, None, None, expects_hu=True) == found
    assert find_oddities(Scan(CT), voxels, None, None, expects_hu=False) == []


@pytest.mark.parametrize("change", [lambda hu: np.clip(hu, -160, 240), lambda hu: hu[40:90, 40:90]], ids=["cut", "box"])
def test_a_part_of_a_ct_is_still_one(change):
    assert look(CT, CT_MODEL, change(Scan(CT).read())) == []


def test_a_ct_for_a_model_of_mr_another_extent_and_other_voxels_are_told(tmp_path):
    image = nib.load(MR)
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine @ np.diag([4, 4, 4, 1])), tmp_path / "x.nii.gz")
    found = look(tmp_path / "x.nii.gz", MR_MODEL, Scan(CT).read())
    assert found == [
        "values from -1000 to 2976 look like CT, and the model is for MR",
        "voxels of 4 x 4 x 4 mm are far from the 1 x 1 x 1 mm of the model",
        "has seen scans of 31-43 x 40-59 x 24-47 mm, and this one has 144 x 200 x 124",
    ]


def test_voxels_without_a_value_do_not_count():
    voxels = Scan(CT).read().astype(np.float32)
    voxels[:4], voxels[5] = -3.4e38, np.nan
    assert look(CT, CT_MODEL, voxels) == []
    assert look(CT, CT_MODEL, np.full_like(voxels, np.nan)) == []


def test_settings_of_another_training_are_named():
    model = find_owner(BUNDLE / "models" / "msd04_hippocampus.safetensors")
    assert model is not None
    assert list_changes(model.config, model.config) == []
    trained, plain = dict(model.config), read_config(BUNDLE / "configs" / "inference.yaml")
    changed = list_changes(trained, trained | {"pixdim": [2.0, 2.0, 2.0], "overlap": 0.25, "amp": True})
    assert changed == ["pixdim is [2.0, 2.0, 2.0], and the model was trained with [1.0, 1.0, 1.0]"]
    without = [change.split()[0] for change in list_changes(trained, plain)]  # the weights, and the overlay forgotten
    assert without == ["labels", "label_map", "pixdim", "intensity"]


def test_the_owner_of_weights_is_told_by_what_lies_beside_them(tmp_path):
    assert find_owner(tmp_path / "weights.pt") is None
    (tmp_path / "model.yaml").write_text(f"bundle_root: {BUNDLE}\npixdim: [3.0, 3.0, 3.0]\n")
    run = find_owner(tmp_path / "best.pt")
    assert run is not None
    assert (run.bundle, run.config["pixdim"]) == (BUNDLE, [3.0, 3.0, 3.0])


@pytest.mark.costs(processes=1)
def test_log_report_and_picture_tell_what_is_odd_and_what_was_changed(tmp_path):
    image = nib.load(MR)
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine @ np.diag([4, 4, 4, 1])), tmp_path / "x.nii.gz")
    command = [sys.executable, "-m", "monai.bundle", "run", "--dataset_dir", str(tmp_path / "x.nii.gz")]
    command += ["--config_file", "['configs/inference.yaml','models/msd04_hippocampus.yaml']"]
    command += ["--pixdim", "[3.5,3.5,3.5]", "--output_dir", str(tmp_path / "out")]
    done = run_module(command, cwd=BUNDLE, environment={"PYTHONWARNINGS": "ignore"})
    assert done.returncode == 0, explain(done)
    report = json.loads((tmp_path / "out" / "run.json").read_text())
    odd = "has seen scans of 31-43 x 40-59 x 24-47 mm, and this one has 144 x 200 x 124"
    changed = "pixdim is [3.5, 3.5, 3.5], and the model was trained with [1.0, 1.0, 1.0]"
    assert report["scans"]["x"]["warnings"] == [odd]
    assert report["changes"] == [changed]
    assert odd in done.stdout
    assert changed in done.stdout
    picture = np.asarray(Image.open(tmp_path / "out" / "x_seg.png").convert("RGB")).astype(int)
    orange = np.abs(picture - [255, 180, 84]).sum(axis=2) < 30
    assert orange.sum() > 200  # the line below
    assert not np.any(orange[: picture.shape[0] // 2])


def test_nothing_is_said_outside_of_a_config(caplog):
    from tools.checks import check_model_settings

    with caplog.at_level(logging.WARNING):
        assert check_model_settings(BUNDLE / "models" / "msd04_hippocampus.safetensors") == []
    assert not caplog.text


def test_scans_that_a_model_is_not_made_for_are_told_before_they_are_evaluated(caplog):
    from tools.checks import check_model_settings

    weights = BUNDLES / "voco_finetune" / "models" / "openkbp_hn.safetensors"
    case = {"image": str(MR)}
    with caplog.at_level(logging.WARNING):
        check_model_settings(weights, [case] * 5)
    assert caplog.text.count("are no Hounsfield units") == 3  # the first three scans
    assert str(MR) in caplog.text
    caplog.clear()
    check_model_settings(BUNDLE / "models" / "msd04_hippocampus.safetensors", [case])
    assert not caplog.text
