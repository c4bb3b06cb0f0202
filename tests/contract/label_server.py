# SPDX-License-Identifier: Apache-2.0
"""A real server of MONAI Label for tests, in a process that writes down what it opens, makes, removes and calls."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

START_SECONDS = 400
# Python runs it at the start of the server and of each process that the server starts
AUDIT = """
import os, sys

_log = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
_changes = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}

def _write(event, arguments):
    try:
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            written = (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            line = ["write" if written else "read", os.fsdecode(arguments[0])]
        elif event in ("os.listdir", "os.scandir") and isinstance(arguments[0], (str, bytes)):
            line = ["read", os.fsdecode(arguments[0])]
        elif event in _changes and isinstance(arguments[0], (str, bytes)):
            line = ["write", os.fsdecode(arguments[0])]
        elif event == "socket.connect":
            line = ["connect", repr(arguments[1])]
        elif event == "subprocess.Popen":
            line = ["start", repr(arguments[1])[:200]]
        else:
            return
        if line[0] in ("read", "write"):
            line[1] = os.path.realpath(line[1])
        os.write(_log, ("\\t".join(line).replace("\\n", " ") + "\\n").encode(errors="replace"))
    except Exception:
        pass

sys.addaudithook(_write)
"""


@dataclass
class Served:
    """A running server in a folder of its own.

    `studies` and `app` are its folders, `temporary` is what the system offers for temporary files, `home` holds caches.
    """

    url: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def studies(self) -> Path:
        return self.folder / "studies"

    @property
    def app(self) -> Path:
        return self.folder / "app"

    @property
    def own(self) -> list[Path]:
        """Where it may write."""
        return [(self.folder / name).resolve() for name in ("studies", "app", "temporary", "home")]

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def list_events(self, start: int = 0) -> list[tuple[str, str]]:
        """Return what the server has done, as pairs of `read`, `write`, `connect` or `start` with a path or address."""
        text = (self.folder / "audit.log").read_bytes()[start:].decode(errors="replace")
        return [(kind, path) for kind, _, path in (line.partition("\t") for line in text.splitlines())]

    @property
    def num_event_bytes(self) -> int:
        return (self.folder / "audit.log").stat().st_size


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serve(folder: Path, bundle: Path, *options: str, prefix: str = "", **variables: str) -> Iterator[Served]:
    """Start a server on the scans in `folder / "studies"` and wait until it answers under `prefix`."""
    for name in ("temporary", "audit", "work", "home"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "audit" / "sitecustomize.py").write_text(AUDIT)
    port = find_port()
    command = [sys.executable, "-m", "tools", "label", "start", str(folder / "studies"), "--bundles", str(bundle)]
    command += ["--app", str(folder / "app"), "--port", str(port), *options]
    paths = [str(folder / "audit"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "ignore",
        "AUDIT_LOG": str(folder / "audit.log"),
        "TMPDIR": str(folder / "temporary"),
        "HOME": str(folder / "home"),  # where libraries keep what they make for themselves
        **variables,
    }
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)  # of the process that runs the tests
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder / "work", env=environment, stdout=log, stderr=subprocess.STDOUT)
    served = Served(f"http://127.0.0.1:{port}", folder, process)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(f"{served.url}{prefix}/info/", timeout=60).status_code in (200, 401):
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server does not answer:\n{served.log}")
            time.sleep(0.5)
        yield served
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
