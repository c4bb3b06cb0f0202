# SPDX-License-Identifier: Apache-2.0
"""Exported bundles: JSON beside YAML, code of their own, one model."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.linting import lint_bundle
from tools.release import export


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    with zipfile.ZipFile(export("unetr_btcv", "msd04_hippocampus", out=folder)) as archive:
        for name in archive.namelist():
            archive.extract(name, folder)
    return next(path for path in folder.iterdir() if path.is_dir())


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, 1))

    return plant


FAULTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "json that differs": (
        replace("configs/inference.json", '"orientation": "RAS"', '"orientation": "LPS"'),
        ("configs/inference.json, key orientation", "found LPS", "wanted RAS, as in configs/inference.yaml"),
    ),
    "unknown target in json": (
        replace("configs/train.json", '"Orientationd"', '"Orientatoind"'),
        ("configs/train.json", "Orientatoind, which is not there", "write Orientationd"),
    ),
    "vendored module missing": (
        lambda root: (root / "tools/networks/unetr.py").unlink(),
        ("configs/inference.yaml", "tools.networks.ModifiedUNETR, which is not there"),
    ),
    "vendored module broken": (
        replace("tools/files.py", "def ", "dfe "),
        ("tools/files.py", "source that cannot be parsed"),
    ),
    "no code": (lambda root: shutil.rmtree(root / "tools"), ("tools: found no such folder", "export")),
    "no weights": (lambda root: (root / "models/model.pt").unlink(), ("models/model.pt", "no such file")),
    "requirements": (
        replace("requirements.txt", "monai==", "monai==1."),
        ("requirements.txt", "as in configs/metadata.json"),
    ),
}


def test_an_export_has_no_faults(exported: Path):
    assert [str(finding) for finding in lint_bundle(exported)] == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_an_export_is_told(fault: str, exported: Path, tmp_path: Path):
    root = tmp_path / exported.name
    shutil.copytree(exported, root)
    plant, words = FAULTS[fault]
    plant(root)
    sentences = [str(finding) for finding in lint_bundle(root)]
    assert [s for s in sentences if all(word in s for word in words)], sentences
