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
from committed_models import SAMPLED_BUNDLE
from products import sample

from tools.archives import name_bundle, unpack
from tools.bundles import BUNDLES, locate_card
from tools.demonstration import EMBEDDED
from tools.release import export

if importlib.util.find_spec("monailabel") is None:
    pytest.skip("MONAI Label is not installed: python -m tools label install", allow_module_level=True)

import requests
from monailabel.client import MONAILabelClient

# a bundle joins by its folder: one with a model, that of the demo if it has several
CARDS = {path.parents[1].name: path.stem for path in sorted(BUNDLES.glob("*/models/*.yaml"), reverse=True)}
CASES = {
    card: sorted(path.name.removesuffix(".nii.gz") for path in (EMBEDDED / card / "imagesTr").glob("*.nii.gz"))
    for card in sorted(set(CARDS.values()))
}
SMALL_CARD = "msd04_hippocampus"
CASE = CASES[SMALL_CARD][0]
BROKEN = "broken"
ALL_CASES = {case for cases in CASES.values() for case in cases}
LOWEST_DICE = {"msd04_hippocampus": 0.85, "openkbp_hn": 0.5}  # of all structures as one
# the hippocampus is little larger than a window: only a large overlap gives it more of them
OTHER_OVERLAP = {"msd04_hippocampus": 0.9, "openkbp_hn": 0.25}
START_SECONDS, TRAIN_SECONDS = 180, 240
QUICKLY = {"device": "cpu", "max_epochs": 1, "multi_gpu": False, "tracking": "None"}


@dataclass
class Server:
    """A running server, its client and what it knows."""

    url: str
    client: MONAILabelClient
    models: dict[str, Path]  # folders by name
    cards: dict[str, str]  # data sets by name of the model
    folder: Path

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    @property
    def smallest(self) -> str:
        """The model of the small scans that costs least, for what is the same with each."""
        names = [name for name, card in self.cards.items() if card == SMALL_CARD]
        return min(names, key=lambda name: (self.models[name] / "models" / "model.pt").stat().st_size)

    def list_cases(self, model: str) -> list[str]:
        return CASES[self.cards[model]]

    def locate_scan(self, case: str) -> Path:
        return self.folder / "studies" / f"{case}.nii.gz"

    def locate_label(self, case: str) -> Path:
        return self.folder / "labels" / f"{case}.nii.gz"

    def infer(self, model: str, **params: Any) -> nib.Nifti1Image:
        """Segment the first case of the model's data set."""
        path, self.answer = self.client.infer(model, self.list_cases(model)[0], {"device": "cpu", **params})
        return nib.load(path)

    def set_labels(self, *cases: str) -> None:
        """Save the true labels of these cases, as a viewer does, and remove all others."""
        for case in ALL_CASES:
            requests.delete(f"{self.url}/datastore/label", params={"id": case, "tag": "final"}, timeout=60)
        for case in cases:
            (card,) = (card for card, known in CASES.items() if case in known)
            info = [{"name": name, "idx": value} for name, value in number_labels(card).items()]
            saved = self.client.save_label(case, str(self.locate_label(case)), params={"label_info": info})
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


def read_card(card: str) -> dict[str, Any]:
    return yaml.safe_load(locate_card(card).read_text())


def number_labels(card: str) -> dict[str, int]:
    """Return the values of the structures in label files and segmentations."""
    content = read_card(card)
    values = {number: value for value, number in reversed(content["label_map"].items())}
    return {name: values[number] for number, name in enumerate(content["labels"]) if number}


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
    return {
        name_bundle(path): path for path in (export(bundle, dataset=card, out=folder) for bundle, card in CARDS.items())
    }


@pytest.fixture(scope="module")
def server(archives: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("label")
    studies, app, port = folder / "studies", folder / "app", find_port()
    studies.mkdir()
    (folder / "labels").mkdir()
    for card, cases in CASES.items():
        for case in cases:
            scan, label = (EMBEDDED / card / kind / f"{case}.nii.gz" for kind in ("imagesTr", "labelsTr"))
            (studies / scan.name).write_bytes(scan.read_bytes())
            (folder / "labels" / label.name).write_bytes(label.read_bytes())
    (studies / f"{BROKEN}.nii.gz").write_bytes((studies / f"{CASE}.nii.gz").read_bytes()[:5000])
    command = [sys.executable, "-m", "tools", "label", "start", str(studies)]
    command += ["--bundles", ",".join(map(str, archives.values())), "--app", str(app), "--port", str(port)]
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "MONAI_LABEL_SESSION_PATH": str(folder / "sessions")}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        models = {name: app / "model" / name for name in archives}
        cards = dict(zip(archives, CARDS.values(), strict=True))
        running = Server(url, MONAILabelClient(url, tmpdir=str(folder)), models, cards, folder)
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


# the one that takes least in each commit
@pytest.fixture(params=sample(CARDS, SAMPLED_BUNDLE))
def model(request: pytest.FixtureRequest, archives: dict[str, Path]) -> str:
    return list(archives)[list(CARDS).index(request.param)]


def test_every_bundle_takes_part():
    assert set(CARDS) == {path.parents[1].name for path in BUNDLES.glob("*/configs/metadata.json")}
    assert len(CASES[SMALL_CARD]) == 3


def test_models_are_offered_with_labels_version_and_settings(server: Server, model: str):
    info = server.client.info()
    assert set(info["models"]) == set(info["trainers"]) == set(server.models)
    described = info["models"][model]
    metadata = json.loads((server.models[model] / "configs" / "metadata.json").read_text())
    assert described["labels"] == number_labels(server.cards[model])
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
    assert set(server.client.datastore()["objects"]) == {*ALL_CASES, BROKEN}
    server.set_labels()
    for strategy in ("first", "random"):
        sample = server.client.next_sample(strategy, {})
        assert sample["id"] in {*ALL_CASES, BROKEN}
        assert Path(sample["path"]).is_file()


@pytest.mark.numeric
def test_segmentation_is_that_of_the_bundle_itself(
    server: Server, model: str, archives: dict[str, Path], tmp_path: Path
):
    unpack(archives[model], tmp_path / model)
    card, case = server.cards[model], server.list_cases(model)[0]
    scan, output = server.locate_scan(case), tmp_path / "out"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml"]
    command += ["--device", "cpu", "--dataset_dir", str(scan), "--output_dir", str(output)]
    subprocess.run(command, cwd=tmp_path / model, env=os.environ | {"PYTHONWARNINGS": "ignore"}, check=True)
    expected = nib.load(output / f"{case}_seg.nii.gz")

    found = server.infer(model)

    assert np.array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
    assert found.shape == nib.load(scan).shape
    assert np.allclose(found.affine, nib.load(scan).affine, atol=1e-6)
    assert server.answer["label_names"] == number_labels(card)
    truth = np.asarray(nib.load(server.locate_label(case)).dataobj) > 0
    voxels = np.asarray(found.dataobj) > 0
    assert 2 * (voxels & truth).sum() / (voxels.sum() + truth.sum()) > LOWEST_DICE[card]


def test_settings_of_a_request_count_and_last_for_it_alone(server: Server, model: str):
    before = np.asarray(server.infer(model).dataobj)
    config = server.client.info()["models"][model]["config"]
    card = server.cards[model]
    mirror_axes = json.loads((server.models[model] / "configs/inference.json").read_text())["mirror_axes"]
    settings = [{"mirroring": True}] if mirror_axes else []
    settings += [{"overlap": OTHER_OVERLAP[card]}] if "overlap" in config else []
    assert settings
    for setting in settings:
        changed = np.asarray(server.infer(model, **setting).dataobj)
        assert not np.array_equal(changed, before)
        assert np.mean(changed == before) > 0.95
        assert set(np.unique(changed)) <= {0, *number_labels(card).values()}
    assert np.array_equal(np.asarray(server.infer(model, result_dtype="uint8").dataobj), before)


@pytest.mark.parametrize(
    ("route", "status", "sentence"),
    [
        (f"nothing?image={CASE}", 404, "There is no model 'nothing' available"),
        ("{model}?image=nobody", 404, "There is no image 'nobody' in the studies"),
        (f"{{model}}?image={BROKEN}", 422, "broken.nii.gz: found that the file ends early"),
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
    case, card = server.list_cases(model)[0], server.cards[model]
    sample = requests.post(f"{server.url}/activelearning/random", json={}, timeout=60).json()
    assert sample["id"] in server.client.datastore()["objects"]
    name = min(number_labels(card), key=number_labels(card).get)
    answer = requests.post(
        f"{server.url}/infer/{model}",
        params={"image": case, "output": "image"},
        data={"params": json.dumps({"result_dtype": "uint16", "result_extension": ".nrrd"})},
        timeout=120,
    )
    assert answer.ok, answer.text
    assert answer.content.startswith(b"NRRD")
    with server.locate_label(case).open("rb") as label:
        saved = requests.put(
            f"{server.url}/datastore/label",
            params={"image": case, "tag": "final"},
            data={"params": json.dumps({"label_info": [{"name": name, "idx": 1}]})},
            files={"label": (f"{case}.nii.gz", label)},
            timeout=60,
        )
    assert saved.json() == {"image": case, "label": case}
    place = {"label": case, "tag": "final"}
    fetched = requests.get(f"{server.url}/datastore/label", params=place, timeout=60)
    assert fetched.content == server.locate_label(case).read_bytes()
    info = requests.get(f"{server.url}/datastore/label/info", params=place, timeout=60).json()
    assert info["label_info"] == [{"name": name, "idx": 1}]
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
    assert set(np.unique(voxels)) == {0, *number_labels(server.cards[model]).values()}
    offered = server.client.info()["models"][model]["config"]["model_filename"]
    assert offered[0] == "model.pt"  # the first is the default


def test_training_replaces_the_model_and_the_server_uses_it(server: Server, model: str):
    cases = server.list_cases(model)
    server.set_labels(*cases)
    check_training(server, model, val_split=1.01 / len(cases))  # MONAI Label rounds down
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
