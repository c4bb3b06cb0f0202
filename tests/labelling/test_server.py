# SPDX-License-Identifier: Apache-2.0
"""The server is not started before all it needs is there; MONAI Label itself is in tests/contract."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tools.errors import ConfigValueError, MissingFileError, MissingPackageError
from tools.labelling import server
from tools.labelling.server import check_address, check_studies, start, write_app


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Give the list of what `start` serves, without a server."""
    calls: list[Any] = []
    monkeypatch.setattr(server, "check_packages", lambda: None)
    monkeypatch.setattr(server, "write_app", lambda folder: None)
    monkeypatch.setattr(server, "place_bundles", lambda entries, *rest: calls.append((entries, *rest)) or entries)
    monkeypatch.setattr(server, "_serve", lambda *arguments: calls.append(arguments))
    return calls


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("bundles", ["one, two", ("one", "two")])
def test_bundles_come_as_text_or_list(served: list[Any], tmp_path: Path, port: int, bundles: str | tuple[str, ...]):
    start(tmp_path, bundles, app=tmp_path / "app", port=port)
    placed, arguments = served
    assert placed == (["one", "two"], tmp_path / "app", None, False)
    assert arguments == (tmp_path / "app", str(tmp_path), ["one", "two"], "127.0.0.1", port)


def test_listening_to_the_network_is_warned_about(
    served: list[Any], tmp_path: Path, port: int, caplog: pytest.LogCaptureFixture
):
    start(tmp_path, "one", app=tmp_path, port=port)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    start(tmp_path, "one", app=tmp_path, port=port, host="0.0.0.0")
    assert "everyone who reaches this machine can read and change the studies" in caplog.text


def test_missing_studies_are_told_and_not_made(tmp_path: Path):
    with pytest.raises(MissingFileError, match=r"studies: found no such folder"):
        check_studies(str(tmp_path / "studies"))
    assert not (tmp_path / "studies").exists()


def test_dicomweb_address_stays_as_it_is():
    assert check_studies("http://127.0.0.1:8042/dicom-web") == "http://127.0.0.1:8042/dicom-web"


def test_port_in_use_is_told(port: int):
    check_address("127.0.0.1", port)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        with pytest.raises(ConfigValueError, match=rf"--port: found 127.0.0.1:{port}, where the server cannot listen"):
            check_address("127.0.0.1", port)


@pytest.mark.parametrize("wrong", [0, 65536, "http", True, 80.5])
def test_impossible_port_is_told(wrong: Any):
    with pytest.raises(ConfigValueError, match=r"--port: found .*, wanted a number from 1 to 65535"):
        check_address("127.0.0.1", wrong)


def test_app_is_the_one_that_comes_with_monai_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "prefix" / "lib" / "site-packages").mkdir(parents=True)
    package = tmp_path / "prefix" / "monailabel" / "sample-apps"
    names = [
        "monaibundle/main.py",
        "monaibundle/lib/__init__.py",
        "monaibundle/__pycache__/main.pyc",
        "radiology/main.py",
    ]
    for name in names:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(f"# {name}\n")

    class Listed(str):
        def locate(self) -> Path:
            return tmp_path / "prefix" / "lib" / "site-packages" / self

    files = [Listed(f"../../monailabel/sample-apps/{name}") for name in names]
    monkeypatch.setattr(importlib.metadata, "files", lambda name: files)
    app = tmp_path / "app"
    write_app(app)
    assert sorted(path.relative_to(app).as_posix() for path in app.rglob("*.py*")) == ["lib/__init__.py", "main.py"]
    assert (app / "main.py").read_text() == f"{server.PRELUDE}# monaibundle/main.py\n"
    (app / "main.py").write_text("# mine\n")
    write_app(app)
    assert (app / "main.py").read_text() == "# mine\n"


def test_monai_label_without_its_apps_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(MissingPackageError, match="found no app monaibundle in its package"):
        write_app(tmp_path)


def test_server_gets_the_models_and_looks_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words: list[str] = []
    main = SimpleNamespace(
        args_parser=lambda: SimpleNamespace(parse_args=words.extend), action_start_server=lambda arguments: None
    )
    monkeypatch.setattr(server.importlib, "import_module", lambda name: SimpleNamespace(Main=lambda: main))
    monkeypatch.setenv("PYTHONPATH", "mine")
    server._serve(tmp_path / "app", "studies", ["a", "b"], "127.0.0.1", 8124)
    line = " ".join(words)
    assert line.startswith(f"start_server --app {tmp_path}/app --studies studies --host 127.0.0.1 --port 8124")
    assert "--conf models a,b --conf zoo_source local --conf sam2 false" in line
    assert os.environ["PYTHONPATH"] == f"{server.REPOSITORY}{os.pathsep}mine"
