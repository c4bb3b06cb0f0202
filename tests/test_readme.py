# SPDX-License-Identifier: Apache-2.0
"""The commands of the README do what it says, on small scans and with a small network."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from processes import explain, run_module

from tools.bundles import BUNDLES, REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
MINE = re.search(r"```yaml\n(# mine\.yaml.*?)```", README, re.DOTALL).group(1)
SMALL = {
    "roi_size": [16, 16, 16],
    "network_def#feature_size": 4,
    "network_def#hidden_size": 24,
    "network_def#mlp_dim": 48,
    "network_def#num_heads": 3,
    "num_workers": 0,
}


def list_commands() -> list[list[str]]:
    """Return every `monai.bundle run` of the README's shell blocks as its words."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    here = [block for block in blocks if not block.startswith("NAME=")]  # that is run by test_exported_bundles.py
    lines = "\n".join(here).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if "monai.bundle run" in line]


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


def run(words: list[str], workshop: Path) -> None:
    """Run a command in a folder beside a copy of nothing: only names of the user's own files are replaced."""
    is_ours = any("models/" in word for word in words)
    scans = workshop / "data" / "imagesTr"
    places = {"FOLDER": str(scans), "DIR": str(workshop / "data"), "300": "1"}
    replaced = [places.get(word, word) for word in words]
    for position, word in enumerate(replaced):
        if word.startswith("['configs/") and not is_ours and "mine.yaml" not in word:
            word = word.replace("]", ",'mine.yaml']")
        overlay = "pretrain.yaml" if "configs/pretrain.yaml" in word else "mine.yaml"
        word = word.replace("mine.yaml", str(workshop / overlay))
        word = re.sub(r"'(a|b)\.nii\.gz'", lambda match: f"'{scans}/case_{'ab'.index(match[1])}.nii.gz'", word)
        if word.startswith(("segmentations", "runs/")):
            word = str(workshop / word)
        replaced[position] = word
    module = {"python": [], "torchrun": ["-m", "torch.distributed.run"]}[replaced[0]]
    if module:
        replaced += ["--epochs", "1", "--output_dir", str(workshop / "runs" / "torchrun")]
    command, options = [sys.executable, *module, *replaced[1:]], {"cwd": BUNDLES / "unetr_btcv"}
    environment = {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = run_module(command, environment=environment, **options)
    assert done.returncode == 0, explain(done)


@pytest.mark.costs(processes=8)
def test_every_command_runs_in_the_order_of_the_text(workshop: Path):
    commands = [words for words in list_commands() if words[0] == "python"]
    assert len(commands) >= 8
    for words in commands:
        run(words, workshop)
    report = json.loads((workshop / "runs" / "finetuned" / "weights.json").read_text())
    assert (report["layout"], report["counts"]["matched"]) == ("vit_autoencoder", 161)
    record = json.loads((workshop / "runs" / "mine" / "training.json").read_text())
    assert [epoch["epoch"] for epoch in record["epochs"]] == [1]
    assert (workshop / "runs" / "mine" / "evaluation" / "evaluation.json").is_file()
    assert sorted(path.name for path in (workshop / "segmentations").glob("*_seg.nii.gz")) == [
        f"case_{number}_seg.nii.gz" for number in range(6)
    ]


@pytest.mark.exhaustive  # processes of its own import everything for 20 s; in forks: tests/bundles/test_training.py
@pytest.mark.costs(processes=1)
def test_training_in_several_processes_is_what_the_text_says(workshop: Path):
    (words,) = [words for words in list_commands() if words[0] == "torchrun"]
    run(words, workshop)
    assert (workshop / "runs" / "torchrun" / "training.json").is_file()


def test_every_file_that_is_linked_exists():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (REPOSITORY / target).exists(), target
