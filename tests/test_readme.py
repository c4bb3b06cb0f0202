# SPDX-License-Identifier: Apache-2.0
"""The commands of the README do what it says, in the order of its text, on small scans and with a small network."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import yaml
from processes import explain, run_as_library, run_module

from tools import bundles
from tools.bundles import BUNDLES, REPOSITORY
from tools.demonstration import EMBEDDED

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
MINE = re.search(r"```yaml\n(# mine\.yaml.*?)```", README, re.DOTALL).group(1)
SCANS = EMBEDDED / "msd04_hippocampus" / "imagesTr"
SMALL = {
    "roi_size": [16, 16, 16],
    "network_def#feature_size": 4,
    "network_def#hidden_size": 24,
    "network_def#mlp_dim": 48,
    "network_def#num_heads": 3,
    "num_workers": 0,
}


def list_commands(program: str) -> list[list[str]]:
    """Return every call of a program in the README's shell blocks as its words."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    here = [block for block in blocks if not block.startswith("NAME=")]  # that is run by test_exported_bundles.py
    lines = "\n".join(here).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(program)]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    for sub in ("imagesTr", "labelsTr"):
        (folder / "data" / sub).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(6):
        label = np.zeros((20, 18, 16), np.uint8)
        label[5:12, 6:12, 4:10] = 1
        image = label * 100 + generator.normal(0, 10, label.shape)
        for sub, voxels in (("imagesTr", image.astype(np.float32)), ("labelsTr", label)):
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / "data" / sub / f"case_{number}.nii.gz")
    (folder / "mine.yaml").write_text(MINE + yaml.safe_dump(SMALL))
    blocks = {"dropped_blocks#largest": 8, "kept_blocks#smallest": 4, "kept_blocks#largest": 8, "num_samples": 1}
    small = {key: value for key, value in SMALL.items() if key != "network_def#feature_size"}  # no decoder there
    (folder / "pretrain.yaml").write_text(MINE + yaml.safe_dump(small | blocks))
    return folder


def run_voxseg(words: list[str], workshop: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the command in a fork, in the folder of a user; only names that the text leaves open are replaced."""
    scan = str(SCANS / "hippocampus_011.nii.gz")
    places = {"SCAN": scan, "SCAN_OR_FOLDER": scan, "150": "1", "tools/datasets/small": str(SMALL_DATA)}
    (workshop / "here").mkdir(exist_ok=True)
    monkeypatch.setattr(bundles, "subprocess", SimpleNamespace(run=run_as_library, STDOUT=subprocess.STDOUT))
    command = [sys.executable, "-m", "voxseg", *(places.get(word, word) for word in words[1:])]
    done = run_module(command, cwd=workshop / "here", environment={"PYTHONWARNINGS": "ignore"})
    assert done.returncode == 0, explain(done)
    return done.stdout


SMALL_DATA = REPOSITORY / "tools" / "datasets" / "small"
ELSEWHERE = ("weights fetch", "weights inspect", "label install", "label start", "lint")  # tests of their own, or none


@pytest.mark.costs(processes=8, large_files=6)
def test_voxseg_does_what_the_text_says_in_its_order(workshop: Path, monkeypatch: pytest.MonkeyPatch):
    commands = list_commands("voxseg")
    here = [words for words in commands if not " ".join(words[1:]).startswith(ELSEWHERE)]
    assert [words[1] for words in here] == [*("info", "segment", "segment", "train", "evaluate", "segment", "export")]
    printed = [run_voxseg(words, workshop, monkeypatch) for words in here]
    folder = workshop / "here"
    assert "fitting models" in printed[0]
    for place in ("segmentations", "others", "mine"):
        names = {path.name for path in (folder / place).iterdir()}
        assert {"hippocampus_011_seg.nii.gz", "hippocampus_011_seg.png", "volumes.csv", "run.json"} <= names
    assert json.loads((folder / "report.json").read_text())["failed"] == {}
    assert (folder / "others" / "statistics.json").is_file()
    assert (folder / "runs" / "small" / "model.yaml").is_file()
    evaluation = json.loads((folder / "runs" / "small" / "evaluation" / "evaluation.json").read_text())
    training = json.loads((folder / "runs" / "small" / "training.json").read_text())
    assert evaluation["mean"] == pytest.approx(training["best"]["dice"], abs=1e-4)
    assert [path.name for path in (folder / "exports").glob("*.zip")] == ["unetr_small_v0.1.0.zip"]


def run_bundle(words: list[str], workshop: Path) -> None:
    """Run a command of MONAI in the folder of a bundle."""
    places = {"FOLDER": str(workshop / "data" / "imagesTr"), "DIR": str(workshop / "data"), "300": "1"}
    replaced = [places.get(word, word) for word in words]
    for position, word in enumerate(replaced):
        if word.startswith("['configs/") and "mine.yaml" not in word:
            word = word.replace("]", ",'mine.yaml']")
        overlay = "pretrain.yaml" if "configs/pretrain.yaml" in word else "mine.yaml"
        word = word.replace("mine.yaml", str(workshop / overlay))
        replaced[position] = str(workshop / word) if word.startswith("runs/") else word
    module = {"python": [], "torchrun": ["-m", "torch.distributed.run"]}[replaced[0]]
    if module:
        replaced += ["--epochs", "1", "--output_dir", str(workshop / "runs" / "torchrun")]
    command = [sys.executable, *module, *replaced[1:]]
    environment = {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = run_module(command, cwd=BUNDLES / "unetr_btcv", environment=environment)
    assert done.returncode == 0, explain(done)


@pytest.mark.costs(processes=2)
def test_configs_are_changed_as_the_text_says(workshop: Path):
    commands = list_commands("python -m monai.bundle")
    assert len(commands) == 2
    for words in commands:
        run_bundle(words, workshop)
    report = json.loads((workshop / "runs" / "mine" / "weights.json").read_text())
    assert (report["layout"], report["counts"]["matched"]) == ("vit_autoencoder", 161)
    record = json.loads((workshop / "runs" / "mine" / "training.json").read_text())
    assert [epoch["epoch"] for epoch in record["epochs"]] == [1]


@pytest.mark.exhaustive  # processes of its own import everything for 20 s; in forks: tests/bundles/test_training.py
@pytest.mark.costs(processes=1)
def test_training_in_several_processes_is_what_the_text_says(workshop: Path):
    (words,) = list_commands("torchrun")
    run_bundle(words, workshop)
    assert (workshop / "runs" / "torchrun" / "training.json").is_file()


def test_python_is_what_the_text_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert sum(bool(line) for line in code.splitlines()) == 3
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scan.nii.gz").write_bytes((SCANS / "hippocampus_011.nii.gz").read_bytes())
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert isinstance(names["image"], nib.Nifti1Image)
    assert names["image"].shape == nib.load(tmp_path / "scan.nii.gz").shape


def test_it_fits_and_every_file_that_is_linked_exists():
    assert len(README.splitlines()) <= 130
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (REPOSITORY / target).exists(), target


def test_no_test_module_has_the_name_of_a_folder_that_commands_leave():
    """With such a folder beside it, ruff would sort its imports in another way: the clone would not stay clean."""
    ignored = (REPOSITORY / ".gitignore").read_text(encoding="utf-8").split()
    folders = {name.strip("/") for name in ignored if name.endswith("/")}
    assert {"runs", "segmentations"} <= folders
    assert not folders & {path.stem for path in (REPOSITORY / "tests").rglob("*.py")}


def test_no_two_test_modules_have_one_name():
    """They are imported by it, so that the whole suite would end before its first test."""
    names = [path.name for path in (REPOSITORY / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted({name for name in names if names.count(name) > 1}) == []
