# SPDX-License-Identifier: Apache-2.0
"""The server of MONAI Label with bundles, in the foreground, without a look-up on the internet."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from tools.bundles import REPOSITORY
from tools.errors import ConfigValueError, MissingFileError, MissingPackageError
from tools.files import write_atomically
from tools.labelling.access import TOKEN_VARIABLE, Access, is_local, make_access
from tools.labelling.conditions import Conditions, set_conditions
from tools.labelling.environment import REMEDY, check_packages
from tools.labelling.models import place_bundles

logger = logging.getLogger(__name__)

SAMPLE_APP = ("sample-apps", "monaibundle")
SESSION_VARIABLE = "MONAI_LABEL_SESSION_PATH"  # where MONAI Label keeps scans that are segmented, but no studies
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
    hostname: str | Sequence[str] | None = None,
    follow_links: bool = False,
) -> None:
    """Make an app of MONAI Label with some bundles and serve it until Ctrl+C.

    Requests are confined to the studies and the app, see `tools.labelling.rules`. Beyond this machine they need a
    token, a new one for each start unless the environment variable LABEL_TOKEN has one.

    Args:
        studies: folder of the scans, where labels are saved too, or the address of a DICOMweb server.
        bundles: bundles of this repository, or zips or folders of any MONAI bundles, separated by commas.
        dataset: of the bundles of this repository; default: that of their committed model.
        app: folder of the app.
        port: where the server listens.
        host: 127.0.0.1 answers this machine only, 0.0.0.0 the whole network.
        overwrite: replace models that the app has already.
        hostname: names under which the server is reached beside its address, that of a proxy for instance.
        follow_links: whether scans and labels in the studies may be links to files elsewhere.

    Raises:
        MissingPackageError: if MONAI Label is not installed.
        MissingFileError: if there is no such folder of scans.
        ConfigValueError: if a name is unknown, or the port in use.
        BundleError: if a bundle lacks what MONAI Label needs.
    """
    check_packages()
    studies = check_studies(str(studies))
    check_address(host, port)
    # out of the environment: the processes that train do not need it
    access = make_access(host, hostname, os.environ.pop(TOKEN_VARIABLE, None))
    entries = [entry.strip() for entry in bundles.split(",")] if isinstance(bundles, str) else list(bundles)
    app = Path(app).expanduser().resolve()
    write_app(app)
    names = place_bundles(entries, app, dataset, overwrite)
    logger.info("models: %s\nstudies: %s\n%s", ", ".join(names), studies, describe_address(host, port, access))
    if not is_local(host):
        logger.warning("%s: requests are not encrypted; put a proxy with TLS in front of the server", host)
    set_conditions(Conditions(access, follow_links))
    _serve(app, studies, names, host, port)


def describe_address(host: str, port: int, access: Access) -> str:
    """Return where 3D Slicer and a browser find the server, with the token if one is needed."""
    name = min(access.hostnames, default=host)
    if host in ("0.0.0.0", "::") and not access.hostnames:
        name = socket.gethostname()
    address = f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
    if access.token is None:
        return f"server: {address}"
    return f"server: {address}/{access.token}\nbrowser: {address}/ohif/?token={access.token}"


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
    sessions = Path(os.environ.get(SESSION_VARIABLE) or app / "sessions")
    os.environ[SESSION_VARIABLE] = str(sessions.expanduser().absolute())
    main = importlib.import_module("monailabel.main").Main()
    # not from the internet: `zoo_source local`, with any other word for it; the weights of SAM 2
    settings = {"models": ",".join(names), "zoo_source": "local", "sam2": "false"}
    words = ["start_server", "--app", str(app), "--studies", studies, "--host", host, "--port", str(port)]
    words += ["--uvicorn_app", "tools.labelling.application:app"]
    words += [word for setting in settings.items() for word in ("--conf", *setting)]
    with _work_in_own_folder():
        main.action_start_server(main.args_parser().parse_args(words))


@contextlib.contextmanager
def _work_in_own_folder() -> Iterator[None]:
    """Keep temporary files where no other user sees them, and work in an empty folder.

    MONAI Label takes the name of a scan for a path if there is such a file in the working folder.
    """
    before = os.environ.get("TMPDIR")
    # not in the app: sockets of processes that load data lie there, and their paths have at most 107 characters
    folder = tempfile.mkdtemp(prefix="label-")
    empty = Path(folder, "empty")
    empty.mkdir()

    def stop(number: int, frame: object) -> None:  # uvicorn ends by the signal that it was sent
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    handler = signal.signal(signal.SIGTERM, stop)
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    try:
        with contextlib.chdir(empty):
            yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        tempfile.tempdir = None
        os.environ.pop("TMPDIR")
        if before is not None:
            os.environ["TMPDIR"] = before
        shutil.rmtree(folder, ignore_errors=True)
