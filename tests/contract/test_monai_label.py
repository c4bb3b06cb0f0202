# SPDX-License-Identifier: Apache-2.0
"""A real server of MONAI Label offers every committed model, segments, saves labels, trains, and survives nonsense.

All models run in one server, driven by MONAI Label's own client and by the requests of 3D Slicer and OHIF. Without
MONAI Label (`python -m tools label install`) these tests are skipped.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from tools.bundles import BUNDLES
from tools.demonstration import EMBEDDED
from tools.labelling.archives import name_bundle, unpack
from tools.release import export

if importlib.util.find_spec("monailabel") is None:
    pytest.skip("MONAI Label is not installed: python -m tools label install", allow_module_level=True)

import requests
from monailabel.client import MONAILabelClient

CARD = "msd04_hippocampus"
SCANS = EMBEDDED / CARD / "imagesTr"
LABELS = EMBEDDED / CARD / "labelsTr"
CASES = sorted(path.name.removesuffix(".nii.gz") for path in SCANS.glob("*.nii.gz"))
CASE = CASES[0]
# a bundle joins by its folder: one with a model for the embedded scans
BUNDLE_NAMES = sorted(path.parents[1].name for path in BUNDLES.glob(f"*/models/{CARD}.safetensors"))
START_SECONDS, TRAIN_SECONDS = 180, 240
QUICKLY = {"device": "cpu", "max_epochs": 1, "multi_gpu": False, "tracking": "None"}


@dataclass
class Server:
    """A running server, its client and what it knows."""

    url: str
    client: MONAILabelClient
    models: dict[str, Path]  # folders by name
    folder: Path

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    @property
    def smallest(self) -> str:
        """The model that costs least, for what is the same with each."""
        return min(self.models, key=lambda name: (self.models[name] / "models" / "model.pt").stat().st_size)

    def infer(self, model: str, case: str = CASE, **params: Any) -> nib.Nifti1Image:
        path, self.answer = self.client.infer(model, case, {"device": "cpu", **params})
        return nib.load(path)

    def set_labels(self, *cases: str) -> None:
        """Save the true labels of these cases, as a viewer does, and remove all others."""
        for case in CASES:
            requests.delete(f"{self.url}/datastore/label", params={"id": case, "tag": "final"}, timeout=60)
        info = [{"name": name, "idx": value} for value, name in enumerate(read_labels()) if value]
        for case in cases:
            saved = self.client.save_label(case, str(LABELS / f"{case}.nii.gz"), params={"label_info": info})
            assert saved == {"image": case, "label": case}

    def train(self, model: str, **params: Any) -> dict[str, Any]:
        """Train and wait; return MONAI Label's account of it."""
        self.client.train_start(model, QUICKLY | params)
        deadline = time.monotonic() + TRAIN_SECONDS
        while time.monotonic() < deadline:
            status = self.client.train_status()
            if status["status"] not in ("SUBMITTED", "RUNNING"):
                return status
            time.sleep(0.5)
        self.client.train_stop()
        pytest.fail(f"{model} trains for more than {TRAIN_SECONDS} s")


def read_labels() -> list[str]:
    return yaml.safe_load((BUNDLES / BUNDLE_NAMES[0] / "models" / f"{CARD}.yaml").read_text())["labels"]


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the exports of all bundles by the name of their model."""
    folder = tmp_path_factory.mktemp("exports")
    paths = [export(bundle, dataset=CARD, out=folder) for bundle in BUNDLE_NAMES]
    return {name_bundle(path): path for path in paths}


@pytest.fixture(scope="module")
def server(archives: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("label")
    studies, app, port = folder / "studies", folder / "app", find_port()
    studies.mkdir()
    for case in CASES:
        (studies / f"{case}.nii.gz").write_bytes((SCANS / f"{case}.nii.gz").read_bytes())
    (studies / "broken.nii.gz").write_bytes((SCANS / f"{CASE}.nii.gz").read_bytes()[:5000])
    command = [sys.executable, "-m", "tools", "label", "start", str(studies)]
    command += ["--bundles", ",".join(map(str, archives.values())), "--app", str(app), "--port", str(port)]
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "MONAI_LABEL_SESSION_PATH": str(folder / "sessions")}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        models = {name: app / "model" / name for name in archives}
        running = Server(url, MONAILabelClient(url, tmpdir=str(folder)), models, folder)
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(f"{url}/info/", timeout=60).ok:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server does not answer:\n{running.log}")
            time.sleep(0.5)
        yield running
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(autouse=True)
def _show_log(server: Server) -> Iterator[None]:
    """Print what the server logged during a test; pytest shows it where the test failed."""
    start = len(server.log)
    yield
    sys.stdout.write(server.log[start:])


@pytest.fixture(params=BUNDLE_NAMES)
def model(request: pytest.FixtureRequest, archives: dict[str, Path]) -> str:
    return list(archives)[BUNDLE_NAMES.index(request.param)]


def test_every_bundle_with_a_model_takes_part():
    committed = {path.parents[1].name for path in BUNDLES.glob("*/models/*.yaml") if path.stem in path.read_text()}
    assert committed == set(BUNDLE_NAMES)
    assert len(CASES) == 3


def test_models_are_offered_with_labels_version_and_settings(server: Server, model: str):
    info = server.client.info()
    assert set(info["models"]) == set(info["trainers"]) == set(server.models)
    described = info["models"][model]
    metadata = json.loads((server.models[model] / "configs" / "metadata.json").read_text())
    assert described["labels"] == {name: value for value, name in enumerate(read_labels()) if value}
    assert described["version"] == info["trainers"][model]["version"] == metadata["version"]
    assert (described["type"], described["dimension"]) == ("segmentation", 3)
    assert described["config"]["mirroring"] is False
    assert described["config"]["model_filename"] == ["model.pt"]


def test_windowed_models_let_their_overlap_be_chosen(server: Server):
    configs = {name: entry["config"] for name, entry in server.client.info()["models"].items()}
    with_windows = {
        name
        for name in configs
        if "roi_size" in json.loads((server.models[name] / "configs/inference.json").read_text())
    }
    assert {name for name, config in configs.items() if config.get("overlap") == 0.5} == with_windows


def test_scans_are_in_the_datastore_and_offered_one_by_one(server: Server):
    assert set(server.client.datastore()["objects"]) == {*CASES, "broken"}
    server.set_labels()
    for strategy in ("first", "random"):
        sample = server.client.next_sample(strategy, {})
        assert sample["id"] in {*CASES, "broken"}
        assert Path(sample["path"]).is_file()


def test_segmentation_is_that_of_the_bundle_itself(
    server: Server, model: str, archives: dict[str, Path], tmp_path: Path
):
    unpack(archives[model], tmp_path / model)
    scan, output = SCANS / f"{CASE}.nii.gz", tmp_path / "out"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml"]
    command += ["--device", "cpu", "--dataset_dir", str(scan), "--output_dir", str(output)]
    subprocess.run(command, cwd=tmp_path / model, env=os.environ | {"PYTHONWARNINGS": "ignore"}, check=True)
    expected = nib.load(output / f"{CASE}_seg.nii.gz")

    found = server.infer(model)

    assert np.array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
    assert found.shape == nib.load(scan).shape
    assert np.allclose(found.affine, nib.load(scan).affine, atol=1e-6)
    assert server.answer["label_names"] == {name: value for value, name in enumerate(read_labels()) if value}
    truth = np.asarray(nib.load(LABELS / f"{CASE}.nii.gz").dataobj) > 0
    voxels = np.asarray(found.dataobj) > 0
    assert 2 * (voxels & truth).sum() / (voxels.sum() + truth.sum()) > 0.85


def test_settings_of_a_request_count_and_last_for_it_alone(server: Server, model: str):
    before = np.asarray(server.infer(model).dataobj)
    config = server.client.info()["models"][model]["config"]
    # the scan is little larger than a window: only a large overlap gives it more windows
    settings = [{"mirroring": True}, *([{"overlap": 0.9}] if "overlap" in config else [])]
    for setting in settings:
        changed = np.asarray(server.infer(model, **setting).dataobj)
        assert not np.array_equal(changed, before)
        assert np.mean(changed == before) > 0.95
        assert set(np.unique(changed)) <= set(range(len(read_labels())))
    assert np.array_equal(np.asarray(server.infer(model, result_dtype="uint8").dataobj), before)


@pytest.mark.parametrize(
    ("route", "status", "sentence"),
    [
        (f"nothing?image={CASE}", 404, "There is no model 'nothing' available"),
        ("{model}?image=nobody", 404, "There is no image 'nobody' in the studies"),
        ("{model}?image=broken", 422, "broken.nii.gz: found that the file ends early"),
    ],
)
def test_wrong_request_is_told_in_a_sentence_and_survived(server: Server, route: str, status: int, sentence: str):
    name = server.smallest
    answer = requests.post(f"{server.url}/infer/{route.format(model=name)}", data={"params": "{}"}, timeout=120)
    assert answer.status_code == status, answer.text
    assert sentence in answer.json()["detail"]
    assert server.infer(name).shape


def test_viewers_requests_are_answered(server: Server, model: str):
    """3D Slicer and OHIF: the scan by its name, the segmentation back, the label stored and fetched again."""
    server.set_labels()
    sample = requests.post(f"{server.url}/activelearning/random", json={}, timeout=60).json()
    assert sample["id"] in server.client.datastore()["objects"]
    answer = requests.post(
        f"{server.url}/infer/{model}",
        params={"image": CASE, "output": "image"},
        data={"params": json.dumps({"result_dtype": "uint16", "result_extension": ".nrrd"})},
        timeout=120,
    )
    assert answer.ok, answer.text
    assert answer.content.startswith(b"NRRD")
    with (LABELS / f"{CASE}.nii.gz").open("rb") as label:
        saved = requests.put(
            f"{server.url}/datastore/label",
            params={"image": CASE, "tag": "final"},
            data={"params": json.dumps({"label_info": [{"name": read_labels()[1], "idx": 1}]})},
            files={"label": (f"{CASE}.nii.gz", label)},
            timeout=60,
        )
    assert saved.json() == {"image": CASE, "label": CASE}
    place = {"label": CASE, "tag": "final"}
    fetched = requests.get(f"{server.url}/datastore/label", params=place, timeout=60)
    assert fetched.content == (LABELS / f"{CASE}.nii.gz").read_bytes()
    info = requests.get(f"{server.url}/datastore/label/info", params=place, timeout=60).json()
    assert info["label_info"] == [{"name": read_labels()[1], "idx": 1}]
    log = requests.get(f"{server.url}/logs/", params={"lines": 20, "text": True, "html": False}, timeout=60)
    assert "INFO" in log.text
    assert requests.get(f"{server.url}/train/", params={"check_if_running": True}, timeout=60).status_code == 404


def test_pages_of_other_sites_get_no_permission(server: Server):
    headers = requests.get(f"{server.url}/info/", headers={"Origin": "http://elsewhere.test"}, timeout=60).headers
    assert not [name for name in headers if name.lower().startswith("access-control-")]


def check_training(server: Server, model: str, val_split: float) -> None:
    path = server.models[model] / "models" / "model.pt"
    server.infer(model)
    before, start = hash_file(path), len(server.log)

    status = server.train(model, val_split=val_split)

    assert status["status"] == "DONE", "\n".join(status["details"])
    assert hash_file(path) != before
    assert hash_file(path.with_name("model_previous.pt")) == before
    voxels = np.asarray(server.infer(model).dataobj)
    assert "Reload model from cache" in server.log[start:]
    assert set(np.unique(voxels)) == set(range(len(read_labels())))
    offered = server.client.info()["models"][model]["config"]["model_filename"]
    assert offered[0] == "model.pt"  # the first is the default


def test_training_replaces_the_model_and_the_server_uses_it(server: Server, model: str):
    server.set_labels(*CASES)
    check_training(server, model, val_split=0.34)
    record = json.loads((server.models[model] / "eval" / "training.json").read_text())
    assert len(record["epochs"]) == 1


def test_training_on_one_scan_has_none_to_validate_on(server: Server):
    server.set_labels(CASE)
    check_training(server, server.smallest, val_split=0.2)


def test_training_without_a_label_ends_in_a_sentence(server: Server):
    server.set_labels()
    status = server.train(server.smallest, val_split=0.2)
    assert status["status"] == "ERROR"
    details = "\n".join(status["details"])
    assert "Error: " in details, details
    assert requests.get(f"{server.url}/info/", timeout=60).ok
