# SPDX-License-Identifier: Apache-2.0
"""The bundles of this repository: where they are, how they are run, which committed models they have."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.errors import ConfigValueError, MissingFileError

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[1]
BUNDLES = REPOSITORY / "bundles"
CARDS = Path(__file__).resolve().parent / "datasets"


def locate_bundle(name: str) -> Path:
    """Return the folder of a bundle.

    Raises:
        ConfigValueError: if there is no bundle of that name.
    """
    known = sorted(path.parent.parent.name for path in BUNDLES.glob("*/configs/metadata.json"))
    if name not in known:
        raise ConfigValueError("--bundle", repr(name), f"one of {', '.join(known)}", "correct the name")
    return BUNDLES / name


def locate_card(name: str) -> Path:
    """Return the config overlay of a data set.

    Raises:
        ConfigValueError: if there is no card of that name.
    """
    known = sorted(path.stem for path in CARDS.glob("*.yaml"))
    if name not in known:
        raise ConfigValueError("--card", repr(name), f"one of {', '.join(known)}", "correct the name")
    return CARDS / f"{name}.yaml"


def locate_model(bundle: str, card: str) -> Path:
    """Return the overlay `models/<card>.yaml` of a committed model.

    Raises:
        MissingFileError: if the bundle has no model for that data set.
    """
    models = locate_bundle(bundle) / "models"
    path = models / f"{card}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in models.glob("*.yaml"))) or "none"
        raise MissingFileError(path, "no such model", f"one of: {known}", "choose one of those with --card")
    return path


def run_bundle(config_files: Sequence[Path], overrides: Mapping[str, object]) -> int:
    """Run `python -m monai.bundle run` in a process of its own and return its exit status.

    Args:
        config_files: merged in order; the bundle's own file first.
        overrides: keys and values of the command line.
    """
    command = [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        json.dumps([str(path) for path in config_files]),
    ]
    command += [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
    logger.info("%s", shlex.join(["python", *command[1:]]))
    # MONAI warns at each start that configs are code; these are the repository's own
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, env=environment, check=False).returncode
