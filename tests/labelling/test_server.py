# SPDX-License-Identifier: Apache-2.0
"""The server is not started before all it needs is there; MONAI Label itself is in tests/contract."""

from __future__ import annotations

import importlib.metadata
import logging
import multiprocessing
import os
import signal
import socket
import stat
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tools.errors import ConfigValueError, MissingFileError, MissingPackageError
from tools.labelling import access, conditions, server
from tools.labelling.access import TOKEN_VARIABLE, Access
from tools.labelling.conditions import get_conditions
from tools.labelling.server import check_address, check_studies, describe_address, start, write_app


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Give the list of what `start` serves, without a server."""
    calls: list[Any] = []
    monkeypatch.setattr(server, "check_packages", lambda: None)
    monkeypatch.setattr(server, "write_app", lambda folder: None)
    monkeypatch.setattr(server, "place_bundles", lambda entries, *rest: calls.append((entries, *rest)) or entries)
    monkeypatch.setattr(server, "_serve", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(access, "_list_own_hosts", frozenset)
    monkeypatch.setattr(conditions, "_current", [])
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
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


def test_server_of_this_machine_needs_no_token(
    served: list[Any], tmp_path: Path, port: int, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO):
        start(tmp_path, "one", app=tmp_path, port=port)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"server: http://127.0.0.1:{port}" in caplog.text
    assert get_conditions().access.token is None
    assert not get_conditions().follow_links


def test_server_of_the_network_shows_a_token_once_and_warns(
    served: list[Any], tmp_path: Path, port: int, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO):
        start(tmp_path, "one", app=tmp_path, port=port, host="0.0.0.0", hostname="seg.test", follow_links=True)
    token = get_conditions().access.token
    assert token is not None
    assert f"server: http://seg.test:{port}/{token}\n" in caplog.text
    assert f"browser: http://seg.test:{port}/ohif/?token={token}\n" in caplog.text
    assert sum(token in record.getMessage() for record in caplog.records) == 1
    assert "requests are not encrypted" in caplog.text
    assert get_conditions().follow_links


def test_chosen_token_is_asked_for_and_handed_on_to_no_other_process(
    served: list[Any], tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(TOKEN_VARIABLE, "token-of-the-test-0123456789")
    start(tmp_path, "one", app=tmp_path, port=port)
    assert get_conditions().access.token == "token-of-the-test-0123456789"
    assert TOKEN_VARIABLE not in os.environ
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    with pytest.raises(ConfigValueError, match="LABEL_TOKEN: found 5 characters"):
        start(tmp_path, "one", app=tmp_path, port=port)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("::1", "http://[::1]:8000"),
        ("0.0.0.0", f"http://{socket.gethostname()}:8000"),
        ("10.0.0.1", "http://10.0.0.1:8000"),
    ],
)
def test_address_can_be_typed(host: str, address: str):
    assert describe_address(host, 8000, Access(frozenset())) == f"server: {address}"


def test_application_is_not_served_in_another_way(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(conditions, "_current", [])
    with pytest.raises(RuntimeError, match="start the server with `python -m tools label start`"):
        get_conditions()


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


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Give a stand-in for MONAI Label's command line, which keeps its words and what was around it."""
    found = SimpleNamespace(words=[], place=None, temporary=None, act=lambda: None)

    def serve(arguments: None) -> None:
        found.place, found.temporary = Path.cwd(), Path(tempfile.gettempdir())
        found.listed = list(found.place.iterdir())
        found.mode = stat.S_IMODE(found.temporary.stat().st_mode)
        found.act()

    parser = SimpleNamespace(parse_args=found.words.extend)
    command = SimpleNamespace(args_parser=lambda: parser, action_start_server=serve)
    monkeypatch.setattr(server.importlib, "import_module", lambda name: SimpleNamespace(Main=lambda: command))
    monkeypatch.setenv("PYTHONPATH", "mine")
    monkeypatch.delenv(server.SESSION_VARIABLE, raising=False)
    return found


def test_server_gets_the_models_and_looks_nothing_up(tmp_path: Path, main: SimpleNamespace):
    server._serve(tmp_path / "app", "studies", ["a", "b"], "127.0.0.1", 8124)
    line = " ".join(main.words)
    assert line.startswith(f"start_server --app {tmp_path}/app --studies studies --host 127.0.0.1 --port 8124")
    assert "--conf models a,b --conf zoo_source local --conf sam2 false" in line
    assert os.environ["PYTHONPATH"] == f"{server.REPOSITORY}{os.pathsep}mine"
    assert os.environ[server.SESSION_VARIABLE] == str(tmp_path / "app" / "sessions")


def test_server_works_in_an_empty_folder_with_temporary_files_of_its_own(
    tmp_path: Path, main: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(server.SESSION_VARIABLE, "mine")
    before, temporary = Path.cwd(), tempfile.gettempdir()
    handler = signal.getsignal(signal.SIGTERM)
    server._serve(tmp_path, "studies", [], "127.0.0.1", 8124)
    assert (main.listed, main.mode) == ([], 0o700)
    assert main.place.parent == main.temporary
    assert main.temporary.parent == Path(temporary)
    assert os.environ[server.SESSION_VARIABLE] == str(before / "mine")
    assert not main.temporary.exists()
    assert (Path.cwd(), tempfile.gettempdir()) == (before, temporary)
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.costs(processes=1)
def test_temporary_files_are_removed_when_the_server_fails_or_is_ended(
    tmp_path: Path, main: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    def fail() -> None:
        raise RuntimeError

    main.act = fail
    with pytest.raises(RuntimeError):
        server._serve(tmp_path, "studies", [], "127.0.0.1", 8124)
    assert not main.temporary.exists()

    def be_ended() -> None:
        with server._work_in_own_folder():
            (tmp_path / "name").write_text(tempfile.gettempdir())
            os.kill(os.getpid(), signal.SIGTERM)

    process = multiprocessing.get_context("fork").Process(target=be_ended)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGTERM
    folder = Path((tmp_path / "name").read_text())
    assert folder.name.startswith("label-")
    assert not folder.exists()
