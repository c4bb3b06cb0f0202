# SPDX-License-Identifier: Apache-2.0
"""The packages of MONAI Label in an environment that keeps its torch, numpy and monai.

`pip install monailabel` gives a server that does not start (pydicom 3) and replaces numpy and torch, because of what
two packages say they need. Those two come without their dependencies; the others are pinned in `requirements.txt`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.errors import MissingPackageError

logger = logging.getLogger(__name__)

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
# pydicom-seg wants numpy 1, and MONAI Label wants numpymaxflow, built for it, and sam2, which the app does not use
ALONE = ("monailabel==0.8.5", "pydicom-seg==0.4.1")
# later versions lack modules that MONAI Label 0.8.5 imports: they are replaced, all else stays as it is
REPLACED = frozenset({"pydicom", "pynetdicom", "dicomweb-client"})
REMEDY = "run `python -m tools label install`"


def install() -> str:
    """Add MONAI Label to the environment of this Python and return what was done in a sentence.

    Raises:
        MissingPackageError: if pip cannot install a package.
    """
    installed = list_installed()
    missing = select_missing(read_requirements(), installed)
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        kept = {name: version for name, version in installed.items() if name not in REPLACED}
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in kept.items()), encoding="utf-8")
        if missing:
            _run_pip([*missing, "--constraint", str(constraints)])
    alone = select_missing(map(Requirement, ALONE), installed)
    if alone:
        _run_pip([*alone, "--no-deps"])
    check_packages()
    return (
        f"MONAI Label {importlib.metadata.version('monailabel')} in {sys.prefix}: {len(missing + alone)} packages new"
    )


def check_packages() -> None:
    """Raise `MissingPackageError` unless this Python can start MONAI Label."""
    installed = list_installed()
    if canonicalize_name("monailabel") not in installed:
        raise MissingPackageError("MONAI Label", f"no package monailabel in {sys.prefix}", ALONE[0], REMEDY)
    if missing := select_missing([*read_requirements(), Requirement(ALONE[1])], installed):
        found = "none or another version of " + ", ".join(Requirement(text).name for text in missing)
        raise MissingPackageError("MONAI Label", found, ", ".join(missing), REMEDY)
    if importlib.util.find_spec("distutils") is None:
        version = ".".join(map(str, sys.version_info[:2]))
        wanted = "the one in setuptools, as Python has had none since 3.12"
        raise MissingPackageError(f"Python {version}", "no module distutils", wanted, REMEDY)


def read_requirements() -> list[Requirement]:
    """Return the pinned packages that this version of Python needs."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]


def list_installed() -> dict[str, str]:
    """Return the versions of all packages of this environment by their canonical names."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        if name := distribution.metadata["Name"]:  # None: what an interrupted pip left
            found.setdefault(canonicalize_name(name), distribution.version)
    return found


def select_missing(pins: Iterable[Requirement], installed: Mapping[str, str]) -> list[str]:
    """Return the pins that are not fulfilled, as pip takes them: any version will do, but for some packages.

    Args:
        pins: packages with exact versions.
        installed: versions by canonical name.
    """
    exact = REPLACED | {canonicalize_name(Requirement(text).name) for text in ALONE}
    return [
        f"{pin.name}{pin.specifier}"
        for pin in pins
        if (version := installed.get(canonicalize_name(pin.name))) is None
        or (canonicalize_name(pin.name) in exact and not pin.specifier.contains(version, prereleases=True))
    ]


def _run_pip(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    logger.info("pip install %s", " ".join(arguments))
    status = subprocess.run(command, check=False).returncode
    if status:
        raise MissingPackageError("pip install", f"exit status {status}", "0", "see its message above")
