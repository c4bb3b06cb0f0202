# SPDX-License-Identifier: Apache-2.0
"""`segment`: every way in gives the same voxels, what is asked for is written, and a wrong call writes nothing."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from processes import explain, run_module
from safetensors.torch import load_file

from tools import api
from tools.__main__ import tools
from tools.archives import name_bundle, unpack
from tools.bundles import BUNDLES
from tools.commands.segment import match_names, require_fit
from tools.demonstration import EMBEDDED
from tools.errors import ConfigValueError, UnreadableScanError
from tools.models import find_model
from tools.release import export

MODEL = "unetr_btcv/msd04_hippocampus"
BUNDLE = BUNDLES / "unetr_btcv"
SCAN = EMBEDDED / "msd04_hippocampus" / "imagesTr" / "hippocampus_011.nii.gz"
QUIET = {"PYTHONWARNINGS": "ignore"}


def read(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def segment(*words: object) -> str:
    done = CliRunner().invoke(tools, ["segment", *map(str, words)])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """What `python -m monai.bundle run` gives, as the README had it before there was a command."""
    folder = tmp_path_factory.mktemp("expected")
    command = [sys.executable, "-m", "monai.bundle", "run", "--datalist", f"['{SCAN}']", "--output_dir", str(folder)]
    command += ["--config_file", "['configs/inference.yaml','models/msd04_hippocampus.yaml']"]
    done = run_module(command, cwd=BUNDLE, environment=QUIET)
    assert done.returncode == 0, explain(done)
    voxels = read(folder / "hippocampus_011_seg.nii.gz")
    assert set(np.unique(voxels)) == {0, 1, 2}
    return voxels


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A folder as a training leaves it, of the committed model; the repository was elsewhere then."""
    folder = tmp_path / "run"
    folder.mkdir()
    overlay = yaml.safe_load((BUNDLE / "models" / "msd04_hippocampus.yaml").read_text())
    overlay |= {"bundle_root": "/elsewhere/bundles/unetr_btcv", "checkpoint": "/elsewhere/best.pt"}
    (folder / "model.yaml").write_text(yaml.safe_dump(overlay))
    weights = load_file(BUNDLE / "models" / "msd04_hippocampus.safetensors")
    torch.save({"model": {name: tensor.float() for name, tensor in weights.items()}}, folder / "best.pt")
    return folder


@pytest.mark.numeric
@pytest.mark.costs(processes=8, exports=1, large_files=6)
@pytest.mark.usefixtures("commands_in_forks")
def test_every_way_in_gives_the_same_voxels(expected, run_folder, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    scans = tmp_path / "scans#2"  # a name that a config would read otherwise
    scans.mkdir()
    shutil.copy(SCAN, scans / "1_000.nii.gz")
    archive = export("unetr_btcv", out=tmp_path / "exports")
    unpack(archive, tmp_path / "unpacked" / name_bundle(archive))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "tools").mkdir(parents=True)  # of the user, with nothing of ours in it
    (elsewhere / "tools" / "__init__.py").write_text("raise ImportError('these are not the tools that are meant')")
    monkeypatch.chdir(elsewhere)

    ways = {
        "a scan": (SCAN, MODEL),
        "a folder": (scans, "unetr_btcv"),
        "the folder of a training": (SCAN, run_folder),
        "an exported zip": (SCAN, archive),
        "the folder in it": (SCAN, tmp_path / "unpacked" / name_bundle(archive)),
    }
    for way, (place, model) in ways.items():
        output = tmp_path / way
        segment("-i", place, "-o", output, "-m", model, "--no-preview")
        (path,) = output.glob("*_seg.nii.gz")
        np.testing.assert_array_equal(read(path), expected, err_msg=way)

    line = next(record.message for record in caplog.records if "monai.bundle run" in record.message)
    folder, command = line.removeprefix("cd ").split(" && ")
    words = [word.replace(str(tmp_path / "a scan"), str(tmp_path / "printed")) for word in shlex.split(command)]
    done = run_module([sys.executable, *words[1:]], cwd=folder, environment=QUIET)
    assert done.returncode == 0, explain(done)
    np.testing.assert_array_equal(read(tmp_path / "printed" / "hippocampus_011_seg.nii.gz"), expected)


@pytest.mark.numeric
def test_python_gives_the_same_voxels_and_keeps_the_network(expected, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(SCAN.read_bytes()[:-8])
    model = api.load_model(MODEL, device="cpu")
    network = model.network
    for scan in (SCAN, str(SCAN), nib.load(SCAN)):
        image = api.segment(scan, model=model)
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), expected)
        assert image.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(image.affine, nib.load(SCAN).affine)
        assert api.read_names(image) == dict(enumerate(model.labels))
    assert model.network is network
    with pytest.raises(UnreadableScanError, match=r"broken\.nii\.gz: found that the file ends early"):
        model.segment(broken)
    data = model.preprocessing({"image": str(SCAN)})
    with torch.inference_mode():
        logits = model.inferer(data["image"].as_tensor()[None], network)
    assert logits.shape[1] == len(model.labels)
    with pytest.raises(ConfigValueError, match="no names in its header"):
        api.read_names(nib.load(SCAN))


@pytest.mark.costs(processes=1)
@pytest.mark.usefixtures("commands_in_forks")
def test_structures_probabilities_statistics_and_a_report_are_written_when_they_are_asked_for(expected, tmp_path):
    output, report = tmp_path / "out", tmp_path / "report.json"
    segment(SCAN, "-o", output, "-m", MODEL, "-rs", "Posterior_Hippocampus", "--save_probabilities", "--statistics",
            "--report", report)  # fmt: skip
    found = nib.load(output / "hippocampus_011_seg.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), np.where(expected == 2, 2, 0))
    assert api.read_names(found) == {0: "background", 2: "posterior hippocampus"}

    probabilities = nib.load(output / "hippocampus_011_prob.nii.gz")
    volumes = np.asanyarray(probabilities.dataobj)
    assert volumes.dtype == np.float32
    assert volumes.shape == (*expected.shape, 1)
    assert (volumes[expected == 2] > 1 / 3).all()  # the highest of three
    assert (volumes[expected != 2] <= 0.5).all()
    assert api.read_names(probabilities) == {0: "posterior hippocampus"}

    scan = nib.load(SCAN)
    inside = expected == 2
    numbers = json.loads((output / "statistics.json").read_text())["hippocampus_011"]
    assert list(numbers) == ["posterior hippocampus"]
    assert numbers["posterior hippocampus"] == {
        "volume_mm3": pytest.approx(inside.sum() * np.prod(scan.header.get_zooms()), rel=1e-3),
        "mean_intensity": pytest.approx(np.asanyarray(scan.dataobj)[inside].mean(), rel=1e-4),
        "touches_border": bool(np.pad(inside, 1)[1:-1, 1:-1, 1:-1].sum() > inside[1:-1, 1:-1, 1:-1].sum()),
    }
    assert (output / "volumes.csv").read_text().splitlines()[0] == "scan,posterior_hippocampus_ml"
    content = json.loads(report.read_text())
    assert content["model"] == MODEL
    assert content["input"] == [str(SCAN)]
    assert content["output_files"] == [str(output / "hippocampus_011_seg.nii.gz")]
    assert content["failed"] == {}
    assert content["runtime_seconds"] > 0


def test_a_scan_of_another_extent_passes_and_one_of_another_modality_is_refused(tmp_path):
    image = nib.Nifti1Image(np.random.default_rng(0).integers(0, 500, (90, 90, 60), np.int16), np.eye(4) * [2, 2, 2, 1])
    nib.save(image, tmp_path / "head.nii.gz")
    require_fit(find_model("unetr_btcv"), [str(tmp_path / "head.nii.gz")])
    with pytest.raises(
        ConfigValueError, match=r"is for CT in Hounsfield units, and the intensities, .* are none.*--force"
    ):
        require_fit(find_model("voco_finetune"), [str(tmp_path / "head.nii.gz")])


def test_names_of_structures_are_understood_in_any_case_and_with_underscores():
    model = find_model("voco_finetune/openkbp_hn")
    assert match_names(["Left_Parotid", "mandible"], model) == ["left parotid", "mandible"]
    with pytest.raises(ConfigValueError, match="write right parotid"):
        match_names(["rigth parotid"], model)


@pytest.mark.costs(processes=1)
@pytest.mark.usefixtures("commands_in_forks")
def test_one_bad_scan_gives_status_1_and_the_others_are_done(tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(SCAN, scans / "good.nii.gz")
    (scans / "bad.nii.gz").write_bytes(SCAN.read_bytes()[:3000])
    words = [str(scans), "-o", str(tmp_path / "out"), "-m", MODEL, "--report", str(tmp_path / "report.json"), "-q"]
    done = CliRunner().invoke(tools, ["segment", *words])
    assert done.exit_code == 1
    assert (tmp_path / "out" / "good_seg.nii.gz").is_file()
    assert "the file ends early" in json.loads((tmp_path / "report.json").read_text())["failed"]["bad"]
