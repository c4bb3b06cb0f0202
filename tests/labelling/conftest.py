# SPDX-License-Identifier: Apache-2.0
"""A stand-in for MONAI Label's app: what `tools.labelling.holdings` asks of it, on a folder of studies."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SESSION = "0f8fad5b-d9cb-469f-a165-70867728950e"
INFO: dict[str, Any] = {
    "models": {
        "unet": {
            "labels": {"spleen": 1},
            "config": {"device": ["GPU (1)"], "model_filename": ["model.pt"], "overlap": 0.5, "mirroring": False},
        }
    },
    "trainers": {"unet": {"config": {"device": ["GPU (1)"], "max_epochs": 50, "tracking_uri": "", "run_id": ""}}},
    "strategies": {"first": {"description": "the first"}, "best": {"config": {"count": 3}}},
}


class Datastore:
    """Scans and labels of a folder, found and named as MONAI Label does."""

    def __init__(self, studies: Path) -> None:
        self.studies = studies
        self._datastore = self

    def image_path(self) -> str:
        return str(self.studies / ".")

    def label_path(self, tag: str) -> str:
        return str(self.studies / "labels" / tag)

    def list_images(self) -> list[str]:
        return sorted(path.name.removesuffix(".nii.gz") for path in self.studies.glob("*.nii.gz"))

    def get_image_uri(self, scan: str) -> str:
        return os.path.realpath(self.studies / f"{scan}.nii.gz")

    def get_labels_by_image_id(self, scan: str) -> dict[str, str]:
        return {path.parent.name: scan for path in self.studies.glob(f"labels/*/{scan}.nii.gz")}

    def get_label_uri(self, scan: str, tag: str) -> str:
        path = self.studies / "labels" / tag / f"{scan}.nii.gz"
        return os.path.realpath(path) if path.exists() else ""


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    (folder / "labels" / "final").mkdir(parents=True)
    (folder / "case.nii.gz").touch()
    (folder / "labels" / "final" / "case.nii.gz").touch()
    (tmp_path / "secret.nii.gz").touch()
    return folder


@pytest.fixture
def session() -> str:
    """The id of a session that is there."""
    return SESSION


@pytest.fixture
def app(studies: Path) -> SimpleNamespace:
    datastore, sessions = Datastore(studies), {SESSION: "a session"}
    return SimpleNamespace(
        studies=str(studies),
        datastore=lambda: datastore,
        info=lambda: INFO,
        sessions=lambda: SimpleNamespace(get_session=sessions.get),
    )
