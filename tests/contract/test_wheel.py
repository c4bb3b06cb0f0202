# SPDX-License-Identifier: Apache-2.0
"""What `pip install` of a wheel gives: the command and the module `voxseg`, beside a `tools` of somebody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tools.bundles import REPOSITORY, locate_model, run_bundle
from tools.demonstration import EMBEDDED

SCAN = EMBEDDED / "msd04_hippocampus" / "imagesTr" / "hippocampus_011.nii.gz"
MODEL = "unetr_btcv/msd04_hippocampus"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages of a wheel of this repository."""
    folder = tmp_path_factory.mktemp("site")
    copy = tmp_path_factory.mktemp("source") / "copy"
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():  # building writes beside its sources
        if name.startswith(("tools/", "bundles/")) or "/" not in name:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).symlink_to(REPOSITORY / name)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(copy)]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder of a user, with a package `tools` of their own."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("raise ImportError('these are not the tools that are meant')\n")
    return tmp_path


def run(site: Path, folder: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_has_the_bundles_and_no_tests(site: Path):
    assert (site / "tools" / "_bundles" / "unetr_btcv" / "configs" / "train.yaml").is_file()
    assert not (site / "tests").exists()
    assert not list(site.rglob("*.pt"))


@pytest.mark.numeric
def test_command_and_module_give_the_voxels_of_the_repository_beside_other_tools(site, elsewhere, tmp_path):
    model = locate_model("unetr_btcv", "msd04_hippocampus")
    root = model.parents[1]
    overrides = {"bundle_root": root, "datalist": [str(SCAN)], "output_dir": tmp_path / "expected"}
    assert run_bundle([root / "configs" / "inference.yaml", model], overrides) == 0
    expected = np.asanyarray(nib.load(tmp_path / "expected" / "hippocampus_011_seg.nii.gz").dataobj)

    printed = run(site, elsewhere, str(site / "bin" / "voxseg"), "segment", str(SCAN), "-o", "out", "-m", MODEL)
    assert f"cd {site}/tools/_bundles/unetr_btcv && python -m monai.bundle run" in printed
    found = np.asanyarray(nib.load(elsewhere / "out" / "hippocampus_011_seg.nii.gz").dataobj)
    np.testing.assert_array_equal(found, expected)

    code = f"import voxseg; voxseg.segment({str(SCAN)!r}, model={MODEL!r}).to_filename('python.nii.gz')"
    (elsewhere / "program.py").write_text(code)  # Python imports from its folder first
    run(site, elsewhere, sys.executable, "program.py")
    found = np.asanyarray(nib.load(elsewhere / "python.nii.gz").dataobj)
    np.testing.assert_array_equal(found, expected)
