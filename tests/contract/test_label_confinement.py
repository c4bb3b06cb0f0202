# SPDX-License-Identifier: Apache-2.0
"""No request of a real Label server's routes reads or writes outside of its folders; viewers work as before.

The server runs with an audit hook of Python, which writes down every file that it opens, makes or removes. Without
MONAI Label (`python -m tools label install`) these tests are skipped.
"""

from __future__ import annotations

import ast
import contextlib
import gzip
import hashlib
import http.client
import importlib.util
import inspect
import io
import json
import mimetypes
import pickle
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import nibabel as nib
import numpy as np
import pytest
import torch

from tools.bundles import REPOSITORY
from tools.demonstration import EMBEDDED
from tools.labelling.rules import CLOSED, OPEN, REPLACED, list_endpoints
from tools.release import export

if importlib.util.find_spec("monailabel") is None:
    pytest.skip("MONAI Label is not installed: python -m tools label install", allow_module_level=True)

import monailabel
import requests
from label_server import Served, serve
from monailabel.client import MONAILabelClient

BUNDLE = "unetr_btcv"
DEMO = EMBEDDED / "msd04_hippocampus"
CASES = sorted(path.name.removesuffix(".nii.gz") for path in (DEMO / "imagesTr").glob("*.nii.gz"))
CASE = CASES[0]
SECRET = b"SECRET-4711"
TOKEN = "token-of-the-test-0123456789"
TRAIN_SECONDS = 240
SESSION = "0f8fad5b-d9cb-469f-a165-70867728950e"
QUICKLY = {"device": "cpu", "max_epochs": 1, "multi_gpu": False, "tracking": "None"}


def read_scan(case: str = CASE) -> bytes:
    return (DEMO / "imagesTr" / f"{case}.nii.gz").read_bytes()


def read_label(case: str = CASE) -> bytes:
    return (DEMO / "labelsTr" / f"{case}.nii.gz").read_bytes()


def prepare(folder: Path) -> None:
    """Make a folder of studies, and one beside it that no request may touch."""
    (folder / "studies").mkdir()
    (folder / "outside").mkdir()
    for case in CASES:
        (folder / "studies" / f"{case}.nii.gz").write_bytes(read_scan(case))
    # readable as scans, so that a server that opened them would not fail on them
    (folder / "outside" / "secret.nii.gz").write_bytes(read_scan())
    (folder / "outside" / "secret.txt").write_bytes(SECRET)
    (folder / "work").mkdir()
    (folder / "work" / "here.nii.gz").write_bytes(read_scan())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(BUNDLE, out=tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("label")
    prepare(folder)
    with serve(folder, bundle) as served:
        yield served


@pytest.fixture(scope="module")
def model(server: Served) -> str:
    (name,) = requests.get(f"{server.url}/info/", timeout=60).json()["models"]
    return name


def hash_tree(*folders: Path) -> dict[str, str]:
    """Return the SHA-256 of all files, folders as such."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for folder in folders
        for path in folder.rglob("*")
    }


def list_readable(server: Served) -> list[Path]:
    """Return what a Python program reads of the system by itself: its packages, what the kernel tells, MIME types."""
    places = [*sys.path, sys.prefix, sys.base_prefix, REPOSITORY, server.folder / "audit"]
    places += ["/proc", "/sys", "/dev", "/usr/share/zoneinfo", "/etc/localtime", *mimetypes.knownfiles]
    return [Path(place).resolve() for place in places if str(place)]


@contextlib.contextmanager
def confined(server: Served) -> Iterator[None]:
    """Make sure that what happens inside stays in the server's folders and starts nothing."""
    canary = [server.folder / "outside", server.folder / "work"]
    before, start = hash_tree(*canary), server.num_event_bytes
    yield
    assert hash_tree(*canary) == before
    allowed = {"read": server.own + list_readable(server), "write": [*server.own, Path("/dev/null")]}
    for kind, path in server.list_events(start):
        assert kind in allowed, (kind, path)
        assert any(Path(path).is_relative_to(place) for place in allowed[kind]), (kind, path)


def send(server: Served, method: str, target: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """Send a request as it is written here: other clients mend paths."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=120)
    with contextlib.closing(connection):
        connection.request(method, target, body or None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def encode_form(fields: dict[str, str], files: dict[str, tuple[str, bytes]]) -> tuple[bytes, str]:
    request = requests.Request("POST", "http://x", data=fields, files=files or {"": ("", b"")}).prepare()
    return request.body, request.headers["Content-Type"]


# --- every route has a decision ---------------------------------------------------------------------------------------


def read_sources() -> set[tuple[str, str]]:
    """Return the routes of MONAI Label as its sources declare them."""
    package = Path(monailabel.__file__).parent
    found = {("GET", "/openapi.json"), ("HEAD", "/openapi.json"), ("GET", "/docs"), ("HEAD", "/docs")}  # of FastAPI
    for source in [package / "app.py", *sorted((package / "endpoints").glob("*.py"))]:
        tree = ast.parse(source.read_text())
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        prefix = ""
        for call in calls:
            if getattr(call.func, "id", "") == "APIRouter":
                prefix = next(keyword.value.value for keyword in call.keywords if keyword.arg == "prefix")
        for call in calls:
            owner, name = getattr(getattr(call.func, "value", None), "id", ""), getattr(call.func, "attr", "")
            if owner == "app" and name == "mount":
                found.add(("GET", call.args[0].value))
            elif owner in ("app", "router") and name in ("get", "post", "put", "delete", "head", "patch", "options"):
                found.add((name.upper(), prefix + call.args[0].value))
    return found


def test_every_route_of_monai_label_is_open_replaced_or_closed():
    decided = [*OPEN, *REPLACED, *CLOSED]
    assert len(decided) == len(set(decided))
    assert read_sources() == set(decided)


def test_the_application_has_the_routes_of_the_sources_and_no_others():
    from monailabel.app import app

    found = {(method, path) for method, path, _ in list_endpoints(app.routes)}
    login = {route for route in CLOSED if route[1].startswith("/auth/")}  # included where it is switched on
    assert found == read_sources() - login - {("GET", "/static")}


@pytest.mark.parametrize(("method", "path"), sorted(CLOSED))
def test_closed_route_is_not_there(server: Served, model: str, method: str, path: str):
    place = {"model": model, "method": "dice", "path": "studies"}
    for name, value in place.items():
        path = path.replace(f"{{{name}}}", value).replace(f"{{{name}:path}}", value)
    with confined(server):
        status, content = send(server, method, path)
    assert status in (404, 405)
    if method != "HEAD":
        assert json.loads(content)["detail"].startswith(f"request: found {method} {path}, wanted a request of ")


# --- no parameter leads out -------------------------------------------------------------------------------------------


def list_endings(outside: Path) -> list[str]:
    """Return texts that lead to a file, a site or code if a server uses them so."""
    target = str(outside / "secret")
    code = f"__import__('pathlib').Path('{outside}/code').touch()"
    return [
        target,
        f"{target}.nii.gz",
        f"{target}.txt",
        "../outside/secret",
        "../../outside/secret",
        "../../../../../../../../etc/passwd",
        f"{CASE}/../../outside/secret",
        f"./{CASE}",
        "..",
        ".",
        "/",
        "/etc/passwd",
        "..\\outside\\secret",
        "..%2foutside%2fsecret",
        f"{CASE}\x00",
        f"{CASE}\n",
        ".hidden",
        "here.nii.gz",
        "x" * 5000,
        f"file://{target}.txt",
        "http://127.0.0.1:9/x",
        f"${code}",
        "@network",
        "%configs/inference.json",
    ]


# sound as the name of a new scan, which lies in the studies then, or of a page of OHIF
INSIDE = {"here.nii.gz", "@network", "..%2foutside%2fsecret", "%configs/inference.json"}
KEYS = ["image", "images", "image_path", "label", "label_tag", "model", "model_filename", "bundle_path", "session"]
KEYS += ["result_dir", "result_extension", "result_dtype", "device", "logging", "timeout", "mirroring", "overlap"]
KEYS += ["strategy", "labels", "max_epochs", "val_split", "pretrained", "dataset", "train_batch_size", "run_id", "gpus"]
KEYS += ["tracking", "tracking_uri", "tracking_experiment_name", "tracking_run_name", "force_multi_gpu", "multi_gpu"]
KEYS += ["max_workers", "max_batch_size", "pred", "image_meta_dict", "foreground", "roi", "output_dir", "name", "path"]


def list_uploads(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    return [name for name, parameter in parameters.items() if "UploadFile" in str(parameter.annotation)]


def list_places() -> list[tuple[str, str, str]]:
    """Return method, path and parameter of everything that a request can say."""
    from monailabel.app import app

    routes = {(method, path): endpoint for method, path, endpoint in list_endpoints(app.routes)}
    places = []
    for method, path in [*OPEN, ("PUT", "/model/{model}")]:
        parameters = inspect.signature(routes[method, path]).parameters
        names = parameters.keys() - {"user", "background_tasks", "request"} - set(list_uploads(parameters))
        places += [(method, path, name) for name in sorted(names)]
    return places


class Attack:
    """Requests of one route with one odd value."""

    def __init__(self, server: Served, model: str, method: str, path: str, name: str) -> None:
        self.server, self.method, self.path, self.name = server, method, path, name
        self.valid = {"model": model, "image": CASE, "label": CASE, "id": CASE, "tag": "final", "strategy": "first"}
        self.valid |= {"session_id": SESSION, "path": "index.html", "params": "{}", "info": "{}"}
        from monailabel.app import app

        (endpoint,) = (found for verb, place, found in list_endpoints(app.routes) if (verb, place) == (method, path))
        self.parameters = inspect.signature(endpoint).parameters
        self.files = list_uploads(self.parameters)
        self.takes_json = method == "POST" and not path.startswith("/infer/") and "params" in self.parameters

    def send(self, value: str, filename: str = "x.nii.gz") -> tuple[int, bytes]:
        """Send the value in the place of this parameter, all others being sound."""
        given = {key: self.valid[key] for key in self.parameters if key in self.valid and key not in self.files}
        if self.name not in self.files:
            given[self.name] = value
        target = self.path
        for key in list(given):
            for place in (f"{{{key}}}", f"{{{key}:path}}"):
                if place in target:
                    target = target.replace(place, quote(given.pop(key), safe=""))
        form = {key: given.pop(key) for key in ("params", "info") if key in given}
        query = f"{target}?{urlencode(given)}" if given else target
        if self.takes_json:
            return send(
                self.server, self.method, query, form["params"].encode(), **{"Content-Type": "application/json"}
            )
        if self.method not in ("PUT", "POST") or (self.method == "POST" and not form):
            return send(self.server, self.method, query)
        needed = [key for key in self.files if key == self.name or self.path != "/infer/{model}"]
        body, kind = encode_form(form, {key: (filename, read_label()) for key in needed})
        return send(self.server, self.method, query, body, **{"Content-Type": kind})


@pytest.mark.parametrize(("method", "path", "name"), list_places())
def test_no_value_of_a_parameter_leads_out(server: Served, model: str, method: str, path: str, name: str):
    attack = Attack(server, model, method, path, name)
    new = (method, name) == ("PUT", "image") and path in ("/datastore/", "/datastore/image")
    for value in list_endings(server.folder / "outside"):
        if value in INSIDE and (new or path.startswith("/ohif/")):
            continue
        if f"{{{name}" in path and value in ("/", f"{CASE}\n"):
            continue  # two slashes at the end are a redirect to one; a line break at the end is left out by Starlette
        with confined(server):
            status, content = attack.send(value)
        assert 400 <= status < 500, (value, status, content)
        assert SECRET not in content
        if method != "HEAD":
            assert isinstance(json.loads(content)["detail"], str), content


@pytest.mark.parametrize(("method", "path"), [route for route in OPEN if route[0] == "POST"])
def test_no_key_of_params_leads_out(server: Served, model: str, method: str, path: str):
    attack = Attack(server, model, method, path, "params")
    endings = [text for text in list_endings(server.folder / "outside") if text.startswith(("/", "$", "..", "@"))]
    for key in KEYS:
        with confined(server):
            for value in endings:
                if value in INSIDE and (key in ("label", "labels") or key.endswith("_name")):
                    continue  # plain names there
                content = {key: [value] if key == "labels" else value}
                status, answer = attack.send(json.dumps({model: content} if path == "/train/" else content))
                assert 400 <= status < 500, (key, value, status, answer)
                assert SECRET not in answer


@pytest.mark.parametrize("path", ["/datastore/", "/datastore/image", "/datastore/label", "/session/", "/infer/{model}"])
def test_no_name_of_an_upload_leads_out(server: Served, model: str, path: str):
    method = "POST" if path.startswith("/infer") else "PUT"
    for value in list_endings(server.folder / "outside"):
        for ending in ("", ".nii.gz"):
            attack = Attack(server, model, method, path, "file")
            attack.valid["image"] = CASE if path == "/datastore/label" else "uploaded"
            with confined(server):
                _, content = attack.send("", filename=quote(value, safe="/.\\$@ ") + ending)
            assert SECRET not in content


# --- what the server did before ---------------------------------------------------------------------------------------


def put(server: Served, path: str, content: bytes, filename: str = "x.nii.gz", field: str = "file", **params: Any):
    files = {field: (filename, content)}
    return requests.put(f"{server.url}{path}", params=params, files=files, data={"params": "{}"}, timeout=300)


def infer(server: Served, model: str, case: str = CASE, **params: Any) -> requests.Response:
    return requests.post(
        f"{server.url}/infer/{model}",
        params={"image": case, "output": "image"},
        data={"params": json.dumps({"device": "cpu", "result_extension": ".nii.gz", **params})},
        timeout=300,
    )


def read_voxels(content: bytes) -> np.ndarray:
    return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(content)).dataobj)


def refuse(answer: requests.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    sentence = answer.json()["detail"]
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence


def test_scan_is_not_written_elsewhere(server: Served):
    outside = server.folder / "outside"
    for image in (str(outside / "planted"), "../outside/planted"):
        with confined(server):
            refuse(put(server, "/datastore/", read_scan(), image=image), 422, "image: found ", "a name of at most")


def test_label_is_not_written_elsewhere(server: Served):
    outside = server.folder / "outside"
    for tag in (str(outside / "planted"), "../../outside/planted"):
        with confined(server):
            answer = put(server, "/datastore/label", read_label(), field="label", image=CASE, tag=tag)
        refuse(answer, 422, "tag: found ", "letters, digits")


def test_settings_are_no_code(server: Served, model: str):
    code = f"$__import__('pathlib').Path('{server.folder}/outside/code').touch() or False"
    with confined(server):
        refuse(infer(server, model, mirroring=code), 422, "params, mirroring: found ", "wanted true or false")
        answer = requests.post(f"{server.url}/train/{model}", json=QUICKLY | {"max_epochs": code}, timeout=60)
        refuse(answer, 422, "params, max_epochs: found ", "wanted a whole number")


def test_scan_of_the_working_folder_is_not_opened(server: Served, model: str):
    with confined(server):
        refuse(infer(server, model, "here.nii.gz"), 404, "There is no image 'here.nii.gz' in the studies")


def test_links_out_of_the_studies_are_not_followed(server: Served, model: str):
    outside = server.folder / "outside"
    link, label = server.studies / "link.nii.gz", server.studies / "labels" / "final" / f"{CASE}.nii.gz"
    label.unlink(missing_ok=True)
    try:
        link.symlink_to(outside / "secret.nii.gz")
        label.symlink_to(outside / "secret.nii.gz")
        deadline = time.monotonic() + 30
        while "link" not in requests.get(f"{server.url}/datastore/?output=all", timeout=60).json()["objects"]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        found = "a link to a file outside of the studies"
        with confined(server):
            refuse(requests.get(f"{server.url}/datastore/image", params={"image": "link"}, timeout=60), 422, found)
            refuse(infer(server, model, "link"), 422, found, "--follow_links")
            refuse(put(server, "/datastore/", read_scan(), image="link"), 422, found)
            refuse(put(server, "/datastore/label", read_label(), field="label", image=CASE, tag="final"), 422, found)
            place = {"id": "link"}
            refuse(requests.delete(f"{server.url}/datastore/image", params=place, timeout=60), 422, found)
            refuse(requests.post(f"{server.url}/train/{model}", json=QUICKLY, timeout=60), 422, found)
    finally:
        link.unlink()
        label.unlink()


def make_nrrd(*fields: str, voxels: bytes = b"") -> bytes:
    lines = ["NRRD0004", "type: uint8", "dimension: 3", "endian: little", *fields]
    return "\n".join(lines).encode() + b"\n\n" + voxels


def test_uploads_are_scans(server: Served):
    secret = server.folder / "outside" / "secret.txt"
    detached = make_nrrd("sizes: 11 1 1", "encoding: raw", f"data file: {secret}")
    hidden = make_nrrd("sizes: 11 1 1", "encoding: raw", f"data file:={secret}")
    bomb = gzip.compress(read_label()[:0] + nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes()[:352])
    bomb += b"".join([gzip.compress(bytes(64 << 20))] * 33)  # members of a gzip file follow one another: 2.1 GiB
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(f"../../../../../../../../..{server.folder}/outside/planted"))
    cases = [
        (b"<html>no scan</html>", "x.nii.gz", "no gzip data under a .gz name"),
        (read_scan()[:5000], "x.nii.gz", "the file ends early"),
        (b"#!/bin/sh", "x.sh", "a file that ends in .nii.gz"),
        (detached, "x.nrrd", "the voxels lie elsewhere"),
        (hidden, "x.nrrd", "the voxels lie elsewhere"),
        (bomb, "x.nii.gz", "more bytes when unpacked"),
        (archive.getvalue(), "x.tar", "a file that ends in .nii.gz"),
    ]
    for content, filename, words in cases:
        with confined(server):
            refuse(put(server, "/datastore/", content, filename, image="uploaded"), 422, words)
            refuse(put(server, "/datastore/label", content, filename, "label", image=CASE), 422, words)
            refuse(put(server, "/session/", content, filename, "files"), 422, words)
    with confined(server):
        answer = put(server, "/session/", archive.getvalue(), "x.nii.gz", "files", uncompress=True)
        refuse(answer, 422, "uncompress: found True")


def test_too_large_a_body_is_refused_with_and_without_its_length(server: Served):
    with confined(server):
        status, content = send(server, "PUT", "/datastore/", **{"Content-Length": str(1 << 40)})
        assert status == 413
        assert "at most" in json.loads(content)["detail"]
        chunks = iter([b"x" * (1 << 20)] * 3)
        status, content = send(server, "POST", "/activelearning/first", chunks, **{"Content-Type": "application/json"})
        assert status == 413
        assert "at most 1,048,576" in json.loads(content)["detail"]


def test_notes_do_not_break_the_list_of_studies(server: Served):
    for info in (
        '{"x": NaN}',
        '{"x": 1e999}',
        '{"x": "\\ud800"}',
        "[" * 100_000,
        '{"name": "../x.nii.gz"}',
        '{"strategy": 1}',
    ):
        answer = requests.put(
            f"{server.url}/datastore/image/info", params={"image": CASE}, data={"info": info}, timeout=60
        )
        refuse(answer, 422, "info: found ")
    half = {"client_id": "\ud800"}
    refuse(requests.post(f"{server.url}/activelearning/first", json=half, timeout=60), 422, "params: found ")
    assert requests.get(f"{server.url}/datastore/?output=all", timeout=60).ok
    for strategy in ("first", "random"):
        assert requests.post(f"{server.url}/activelearning/{strategy}", json={}, timeout=60).json()["id"]


# --- who is served ----------------------------------------------------------------------------------------------------


def test_foreign_names_and_pages_are_refused(server: Served):
    host = server.url.removeprefix("http://")
    for wrong in ("evil.test", "127.0.0.1.evil.test", f"evil.test:{host.rpartition(':')[2]}", "10.0.0.1", "", "a b"):
        status, content = send(server, "GET", "/info/", Host=wrong)
        assert status in (400, 403), (wrong, status)
        assert b"models" not in content
    for origin in (
        "http://evil.test",
        "null",
        "http://127.0.0.1:1",
        f"https://evil.test/{host}",
        f"http://{host}.evil.test",
    ):
        with confined(server):
            refuse(
                requests.delete(f"{server.url}/train/", headers={"Origin": origin}, timeout=60), 403, "Origin: found"
            )
    for site in ("cross-site", "same-site"):
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
        refuse(requests.get(f"{server.url}/datastore/", headers=headers, timeout=60), 403, "Sec-Fetch-Site: found")
    headers = {"Origin": server.url, "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    assert requests.post(f"{server.url}/activelearning/first", json={}, headers=headers, timeout=60).ok
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert requests.get(f"{server.url}/ohif/", headers=headers, timeout=60).ok


def test_odd_requests_are_answered(server: Served):
    for method, target in (("OPTIONS", "*"), ("TRACE", "/info/"), ("GET", "http://evil.test/info/x"), ("PATCH", "//")):
        with confined(server):
            status, content = send(server, method, target)
        assert 400 <= status < 500, (method, target, status, content)


def test_form_of_another_page_starts_no_training(server: Served, model: str):
    """Plain text needs no permission of the browser; FastAPI takes JSON only for what it is said to be."""
    with confined(server):
        answer = requests.post(
            f"{server.url}/train/{model}", json.dumps(QUICKLY), headers={"Content-Type": "text/plain"}, timeout=60
        )
    assert answer.status_code == 422


def test_answers_cannot_be_taken_for_pages_or_framed(server: Served):
    for path in ("/info/", "/docs", "/datastore/image?image=" + CASE):
        headers = requests.get(server.url + path, timeout=60).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "SAMEORIGIN"
        assert not [name for name in headers if name.lower().startswith("access-control-")]


# --- as before --------------------------------------------------------------------------------------------------------


def test_model_is_replaced_by_a_checkpoint_that_fits_and_by_nothing_else(server: Served, model: str, tmp_path: Path):
    class Payload:
        def __reduce__(self):
            return Path.touch, (server.folder / "outside" / "code",)

    place = server.app / "model" / model / "models"
    original = (place / "model.pt").read_bytes()
    weights = torch.load(place / "model.pt", weights_only=True)
    weights = weights.get("model", weights)
    key = next(name for name, tensor in weights.items() if tensor.ndim == 2)

    def save(content: Any) -> bytes:
        torch.save(content, tmp_path / "saved.pt")
        return (tmp_path / "saved.pt").read_bytes()

    for content, words in [
        (b"<html>not found</html>", "text that starts with '<html>"),
        (b"", "an empty file"),
        (original[: len(original) // 2], "no whole file of weights"),
        (pickle.dumps(Payload()), "no whole file of weights"),
        (save({"model": Payload()}), "not just tensors"),
        (save(torch.nn.Conv3d(1, 2, 3).state_dict()), "tensors that fit"),
        (save({name: tensor for name, tensor in weights.items() if name != key}), "missing"),
        (save(weights | {key: weights[key][:1]}), "another shape"),
        (save(weights | {key: torch.full_like(weights[key], torch.nan)}), "infinite or none (NaN)"),
    ]:
        with confined(server):
            refuse(put(server, f"/model/{model}", content, "new.pt"), 422, "new.pt: found ", words)
        assert (place / "model.pt").read_bytes() == original
    refuse(put(server, "/model/nothing", original, "new.pt"), 404, "There is no model 'nothing'")

    before = read_voxels(infer(server, model).content)
    changed = save({name: tensor * 0 if name == key else tensor for name, tensor in weights.items()})
    with confined(server):
        answer = put(server, f"/model/{model}", changed, "new.pt")
    assert answer.ok, answer.text
    assert answer.json()["checksum"] == f"SHA256:{hashlib.sha256((place / 'model.pt').read_bytes()).hexdigest()}"
    assert (place / "model_previous.pt").read_bytes() == original
    stored = torch.load(place / "model.pt", weights_only=True)
    assert all(torch.equal(stored[name], tensor.float()) for name, tensor in weights.items() if name != key)
    assert not stored[key].any()
    assert not np.array_equal(read_voxels(infer(server, model).content), before)
    assert put(server, f"/model/{model}", original, "old.pt").ok
    assert np.array_equal(read_voxels(infer(server, model).content), before)


def test_3d_slicer_uploads_segments_labels_and_trains(server: Served, model: str, tmp_path: Path):
    """The requests of its extension: a scan of its own as session, then as study; every setting that is offered."""
    client = MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="user-xyz")
    scan, label = tmp_path / "scan.nii.gz", tmp_path / "label.nii.gz"
    scan.write_bytes(read_scan())
    label.write_bytes(read_label())
    info = client.info()
    offered = {
        key: value[0] if isinstance(value, list) else value for key, value in info["models"][model]["config"].items()
    }
    offered |= {"result_extension": ".nrrd", "result_dtype": "uint8"}
    assert not client.auth_enabled()
    with confined(server):
        session = client.create_session(str(scan))["session_id"]
        assert client.get_session(session)["name"] == session
        of_session, _ = client.infer(model, "Volume of mine", dict(offered), session_id=session)
        # the name that its client gives, and the one that 3D Slicer gives
        assert client.upload_image(str(scan), "scan.nii.gz")["image"] == "scan"
        of_file, _ = client.infer(model, "scan", dict(offered))
        assert client.upload_image(str(scan), "Volume of mine (1)")["image"] == "Volume of mine (1)"
        of_study, answer = client.infer(model, "Volume of mine (1)", dict(offered))
        assert Path(of_session).read_bytes() == Path(of_file).read_bytes() == Path(of_study).read_bytes()
        assert list(answer["label_names"]) == info["labels"]
        labels = {"label_info": [{"name": name, "idx": number} for number, name in enumerate(info["labels"], 1)]}
        saved = client.save_label("Volume of mine (1)", str(label), params=labels)
        assert saved["label"] == "Volume of mine (1)"
        path = client.download_label("Volume of mine (1)", "final")
        assert Path(path).read_bytes() == label.read_bytes()
        client.remove_session(session)
    with pytest.raises(Exception, match="404"):
        client.get_session(session)
    stored = client.datastore()["objects"]["Volume of mine (1)"]["labels"]["final"]["info"]
    assert stored["label_info"] == labels["label_info"]

    settings = {
        key: value[0] if isinstance(value, list) else value for key, value in info["trainers"][model]["config"].items()
    }
    start = server.num_event_bytes
    client.train_start(model, settings | {"max_epochs": 1})
    deadline = time.monotonic() + TRAIN_SECONDS
    while (status := client.train_status())["status"] in ("SUBMITTED", "RUNNING"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert status["status"] == "DONE", "\n".join(status["details"])
    written = {path for kind, path in server.list_events(start) if kind == "write" and "__pycache__" not in path}
    places = [*server.own, Path("/dev"), Path("/proc")]
    assert not {path for path in written if not any(Path(path).is_relative_to(place) for place in places)}
    assert not [event for event in server.list_events(start) if event[0] == "connect"]
    requests.delete(f"{server.url}/datastore/image", params={"id": "Volume of mine (1)"}, timeout=60).raise_for_status()
    assert not list(server.studies.rglob("Volume of mine*"))


def test_segmentations_of_all_scans_are_saved(server: Served, model: str):
    settings = {"device": "cpu", "multi_gpu": False, "save_label": True, "label_tag": "original", "max_workers": 1}
    answer = requests.post(f"{server.url}/batch/infer/{model}", params={"images": "all"}, json=settings, timeout=60)
    assert answer.ok, answer.text
    deadline = time.monotonic() + TRAIN_SECONDS
    while (task := requests.get(f"{server.url}/batch/infer", timeout=60).json())["status"] in ("SUBMITTED", "RUNNING"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert task["status"] == "DONE", "\n".join(task["details"])
    for case in CASES:
        saved = (server.studies / "labels" / "original" / f"{case}.nii.gz").read_bytes()
        assert np.array_equal(read_voxels(saved), read_voxels(infer(server, model, case).content))


# --- beyond this machine ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that listens on all addresses; it is asked on 127.0.0.1 only."""
    folder = tmp_path_factory.mktemp("guarded")
    prepare(folder)
    options = ("--host", "0.0.0.0", "--hostname", "seg.test")
    with serve(folder, bundle, *options, LABEL_TOKEN=TOKEN) as served:
        yield served


def test_token_is_asked_for(guarded: Served):
    for path in ("/info/", "/", "/ohif/", "/static/ohif/index.html", "/logs/", "/docs", "/nothing", "/favicon.ico"):
        refuse(requests.get(guarded.url + path, timeout=60), 401, "token: found none or another one")
    for wrong in ("x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), ""):
        headers = {"Authorization": f"Bearer {wrong}"}
        assert requests.get(f"{guarded.url}/info/", headers=headers, timeout=60).status_code == 401
        assert requests.get(f"{guarded.url}/info/?token={wrong}", timeout=60).status_code == 401
        assert requests.get(f"{guarded.url}/{wrong}/info/", timeout=60).status_code == 401
    assert requests.get(f"{guarded.url}/info/", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60).ok
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": "evil.test"}
    refuse(
        requests.get(f"{guarded.url}/info/", headers=headers, timeout=60), 403, "Host: found 'evil.test'", "--hostname"
    )
    assert requests.get(f"{guarded.url}/info/", headers=headers | {"Host": "seg.test"}, timeout=60).ok


def test_3d_slicer_gives_the_token_in_the_address(guarded: Served, tmp_path: Path):
    client = MONAILabelClient(f"{guarded.url}/{TOKEN}", tmpdir=str(tmp_path))
    (model,) = client.info()["models"]
    assert not client.auth_enabled()
    sample = client.next_sample("first", {})
    # 3D Slicer fetches the scan without MONAI Label's client
    fetched = requests.get(f"{guarded.url}/{TOKEN}/datastore/image", params={"image": sample["id"]}, timeout=60)
    assert fetched.content == read_scan(sample["id"])
    result, _ = client.infer(model, sample["id"], {"device": "cpu"})
    assert nib.load(result).shape == nib.load(guarded.studies / f"{sample['id']}.nii.gz").shape


def test_browser_gets_the_token_as_a_cookie(guarded: Served):
    browser = requests.Session()
    answer = browser.get(f"{guarded.url}/ohif/?token={TOKEN}&a=b", timeout=60)
    assert answer.ok
    assert answer.url == f"{guarded.url}/ohif/?a=b"
    assert "HttpOnly" in answer.history[0].headers["Set-Cookie"]
    assert "SameSite=Strict" in answer.history[0].headers["Set-Cookie"]
    assert browser.get(f"{guarded.url}/info/", timeout=60).ok
    assert requests.get(f"{guarded.url}/info/", cookies={"label_token": "x"}, timeout=60).status_code == 401
    # a name of two slashes in front would be that of another site
    status, _ = send(guarded, "GET", f"//evil.test/?token={TOKEN}")
    connection = http.client.HTTPConnection(guarded.url.removeprefix("http://"), timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", f"//evil.test/?token={TOKEN}")
        answer = connection.getresponse()
        assert (status, answer.status, answer.getheader("Location")) == (303, 303, "/evil.test/")


def test_token_is_shown_at_the_start_and_never_in_the_log(guarded: Served):
    assert f":{guarded.url.rpartition(':')[2]}/{TOKEN}" in guarded.log
    headers = {"Authorization": f"Bearer {TOKEN}"}
    served = requests.get(f"{guarded.url}/logs/", params={"lines": 10_000}, headers=headers, timeout=60)
    assert "INFO" in served.text
    assert TOKEN not in served.text
    assert TOKEN not in (guarded.app / "logs" / "app.log").read_text()
    assert guarded.log.count(TOKEN) == 2
    environment = Path(f"/proc/{guarded.process.pid}/environ")
    assert environment.exists()
