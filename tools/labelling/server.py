# SPDX-License-Identifier: Apache-2.0
"""The server of MONAI Label with bundles, in the foreground, without a look-up on the internet."""

from __future__ import annotations

import importlib
import importlib.metadata
import ipaddress
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tools.bundles import REPOSITORY
from tools.errors import ConfigValueError, MissingFileError, MissingPackageError
from tools.files import write_atomically
from tools.labelling.environment import REMEDY, check_packages
from tools.labelling.models import place_bundles

logger = logging.getLogger(__name__)

SAMPLE_APP = ("sample-apps", "monaibundle")
# MONAI Label puts the folder of each bundle first in the path, and the copy of the first serves all
PRELUDE = "import tools  # noqa: F401  the installed package, before a bundle brings a part of it\n\n"


def start(
    studies: str | Path,
    bundles: str | Sequence[str],
    dataset: str | None = None,
    app: str | Path = "runs/label",
    port: int = 8000,
    host: str = "127.0.0.1",
    overwrite: bool = False,
) -> None:
    """Make an app of MONAI Label with some bundles and serve it until Ctrl+C.

    Args:
        studies: folder of the scans, where labels are saved too, or the address of a DICOMweb server.
        bundles: bundles of this repository, or zips or folders of any MONAI bundles, separated by commas.
        dataset: of the bundles of this repository; default: that of their committed model.
        app: folder of the app.
        port: where the server listens.
        host: 127.0.0.1 answers this machine only, 0.0.0.0 the whole network.
        overwrite: replace models that the app has already.

    Raises:
        MissingPackageError: if MONAI Label is not installed.
        MissingFileError: if there is no such folder of scans.
        ConfigValueError: if a name is unknown, or the port in use.
        BundleError: if a bundle lacks what MONAI Label needs.
    """
    check_packages()
    studies = check_studies(str(studies))
    check_address(host, port)
    entries = [entry.strip() for entry in bundles.split(",")] if isinstance(bundles, str) else list(bundles)
    app = Path(app).expanduser().resolve()
    write_app(app)
    names = place_bundles(entries, app, dataset, overwrite)
    logger.info("models: %s\nstudies: %s\nserver: http://%s:%d", ", ".join(names), studies, host, port)
    if not _is_local(host):
        logger.warning("%s: everyone who reaches this machine can read and change the studies: no login", host)
    _serve(app, studies, names, host, port)


def check_studies(studies: str) -> str:
    """Return the folder of scans as an absolute path, or the address of a DICOMweb server as it is.

    Raises:
        MissingFileError: if there is no such folder; MONAI Label would make an empty one.
    """
    if studies.startswith(("http://", "https://")):
        return studies
    path = Path(studies).expanduser()
    if not path.is_dir():
        raise MissingFileError(studies, "no such folder", "a folder of NIfTI files", "correct the path")
    return str(path.resolve())


def check_address(host: str, port: int) -> None:
    """Raise `ConfigValueError` if the server could not listen there."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
        raise ConfigValueError("--port", repr(port), "a number from 1 to 65535", "choose one, 8000 for instance")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigValueError("--host", repr(host), "an address of this machine", "give 127.0.0.1") from error
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn: a port that was just left is free
        try:
            probe.bind(address)
        except OSError as error:
            found = f"{host}:{port}, where the server cannot listen ({error.strerror})"
            raise ConfigValueError(
                "--port", found, "a free port", "choose another, or end what listens there"
            ) from error


def write_app(folder: Path) -> None:
    """Copy the app `monaibundle`, which comes with MONAI Label, to `folder`; files that are there stay.

    Raises:
        MissingPackageError: if MONAI Label came without its apps.
    """
    count = len(SAMPLE_APP)
    found = 0
    for file in importlib.metadata.files("monailabel") or []:
        parts = PurePosixPath(file).parts
        starts = [index for index in range(len(parts) - count) if parts[index : index + count] == SAMPLE_APP]
        if not starts or "__pycache__" in parts or "model" in parts:
            continue
        found += 1
        target = folder.joinpath(*parts[starts[0] + count :])
        if target.exists():
            continue
        content = Path(str(file.locate())).read_bytes()
        if target == folder / "main.py":
            content = PRELUDE.encode() + content
        with write_atomically(target) as temporary:
            temporary.write_bytes(content)
    if not found:
        raise MissingPackageError("MONAI Label", "no app monaibundle in its package", "the app", REMEDY)


def _serve(app: Path, studies: str, names: Sequence[str], host: str, port: int) -> None:
    """Run the server in this process: `tools` is imported already, so no bundle's copy comes before it."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # for the processes that train
    main = importlib.import_module("monailabel.main").Main()
    # not from the internet: `zoo_source local`, with any other word for it; the weights of SAM 2
    settings = {"models": ",".join(names), "zoo_source": "local", "sam2": "false"}
    words = ["start_server", "--app", str(app), "--studies", studies, "--host", host, "--port", str(port)]
    words += ["--uvicorn_app", "tools.labelling.application:app"]
    words += [word for setting in settings.items() for word in ("--conf", *setting)]
    main.action_start_server(main.args_parser().parse_args(words))


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
