# SPDX-License-Identifier: Apache-2.0
"""Models are found by names and places, know what they are for, and are not confused with each other."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from tools.bundles import BUNDLES
from tools.configs import read_config
from tools.errors import BundleError, ConfigValueError, DownloadError, MissingFileError
from tools.models import find_model, list_models
from tools.release import export_model


def test_every_committed_model_is_listed_with_its_dice_and_what_it_needs():
    models = list_models()
    assert {model.overlay for model in models} == set(BUNDLES.glob("*/models/*.yaml"))
    for model in models:
        assert 0.5 < model.dice < 1
        assert model.card["modality"] in ("CT", "MR")
        assert len(model.card["extent_mm"]) == 2
        assert model.structures
        assert model.overrides == {}


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("unetr_btcv/msd04_hippocampus", "unetr_btcv/msd04_hippocampus"),
        ("unetr_btcv", "unetr_btcv/msd04_hippocampus"),
        ("voco_finetune", "voco_finetune/openkbp_hn"),
        ("swin_unetr_ssl", "swin_unetr_ssl/msd04_hippocampus"),  # that of the demonstration, of two
    ],
)
def test_a_short_name_is_enough_where_it_tells_one(name, full):
    assert find_model(name).name == full


@pytest.mark.parametrize("name", ["openkbp_hn", "msd04_hippocampus"])
def test_a_card_that_several_models_have_is_no_name(name):
    with pytest.raises(ConfigValueError, match="give one of"):
        find_model(name)


def test_the_folder_of_a_training_may_have_moved_and_its_bundle_too(tmp_path: Path):
    overlay = {"bundle_root": "/gone/unetr_btcv", "checkpoint": "/gone/best.pt", "labels": ["background", "a"]}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(overlay))
    (tmp_path / "last.pt").touch()
    model = find_model(str(tmp_path))
    assert model.checkpoint == tmp_path / "last.pt"
    assert model.overrides == {"checkpoint": tmp_path / "last.pt", "bundle_root": BUNDLES / "unetr_btcv"}
    (tmp_path / "best.pt").touch()
    assert find_model(str(tmp_path)).checkpoint == tmp_path / "best.pt", "the best epoch where there is one"
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(overlay | {"bundle_root": "/gone/nobody"}))
    with pytest.raises(MissingFileError, match="correct bundle_root"):
        find_model(str(tmp_path))


def test_a_bundle_that_stands_alone_is_not_exported_again(tmp_path: Path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "configs" / "inference.json").write_text("{}")
    (tmp_path / "models" / "model.pt").touch()
    with pytest.raises(BundleError, match="zip its folder"):
        export_model(find_model(str(tmp_path)))


class Hub(BaseHTTPRequestHandler):
    """What the Hugging Face Hub answers when a repository is fetched; `files` are its content by name."""

    files: ClassVar[dict[str, bytes]] = {}
    commit = "0123456789abcdef0123456789abcdef01234567"

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/owner/bundle"):
            if "/tree/" in self.path:
                kind = {"type": "file", "oid": "0" * 40}
                tree = [{**kind, "path": name, "size": len(content)} for name, content in self.files.items()]
                return self.answer(json.dumps(tree).encode(), "application/json")
            siblings = [{"rfilename": name} for name in self.files]
            content = json.dumps({"id": "owner/bundle", "sha": self.commit, "siblings": siblings}).encode()
            return self.answer(content, "application/json")
        name = self.path.partition(f"/resolve/{self.commit}/")[2]
        if name in self.files:
            return self.answer(self.files[name], "application/octet-stream")
        return self.send_error(404)

    do_HEAD = do_GET  # noqa: N815

    def answer(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", kind)
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        yield Hub
        server.shutdown()


@pytest.mark.parametrize("prefix", ["", "unetr_mine/"])
def test_a_bundle_of_the_hub_is_a_model(prefix, hub, caplog):
    hub.files = {
        f"{prefix}configs/inference.json": b'{"labels": ["background", "a"]}',
        f"{prefix}models/model.pt": b"x",
    }
    model = find_model("hf://owner/bundle")
    assert model.structures == ["a"]
    assert model.checkpoint.read_bytes() == b"x"
    assert "only those that you trust" in caplog.text


def test_a_bundle_that_the_hub_does_not_have_is_told(hub):
    for name in ("owner/nothing", "no name at all"):
        with pytest.raises(DownloadError, match=f"hf://{name}"):
            find_model(f"hf://{name}")


@pytest.mark.parametrize("text", ["- a", "a: [", "3"])
def test_a_config_that_is_no_mapping_is_refused(text, tmp_path: Path):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigValueError, match=r"x\.yaml"):
        read_config(tmp_path / "x.yaml")
