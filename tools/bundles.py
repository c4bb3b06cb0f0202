# SPDX-License-Identifier: Apache-2.0
"""The bundles of this repository: where they are, how they are run, which committed models they have."""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tools.errors import ConfigValueError, MissingFileError

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[1]
BUNDLES = REPOSITORY / "bundles"
if not BUNDLES.is_dir():  # installed from a wheel, which has them inside
    BUNDLES = Path(__file__).resolve().parent / "_bundles"
CARDS = Path(__file__).resolve().parent / "datasets"
DEMO_CARD = "msd04_hippocampus"  # the first choice among several committed models: its scans are the smallest


def list_bundles() -> list[str]:
    """Return the names of the bundles."""
    return sorted(path.parents[1].name for path in BUNDLES.glob("*/configs/metadata.json"))


def locate_bundle(name: str) -> Path:
    """Return the folder of a bundle.

    Raises:
        ConfigValueError: if there is no bundle of that name.
    """
    known = list_bundles()
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


def choose_model(bundle: str, option: str) -> str:
    """Return the name of the card of the bundle's committed model, of several the demo's.

    Args:
        bundle: name of the bundle.
        option: which names another model on the command line, for the message.

    Raises:
        ConfigValueError: if there is none, or several of which none is the demo's.
    """
    models = sorted(path.stem for path in (locate_bundle(bundle) / "models").glob("*.yaml"))
    if DEMO_CARD in models:
        return DEMO_CARD
    if len(models) != 1:
        found = f"{len(models)} committed models ({', '.join(models)})" if models else "no committed model"
        raise ConfigValueError(option, f"none, and {found} in {bundle}", "the name of a card", f"give {option}")
    return models[0]


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


def make_command(config_files: Sequence[Path], overrides: Mapping[str, object]) -> list[str]:
    """Return the words of `python -m monai.bundle run` with config files, merged in order, and overrides.

    Raises:
        ConfigValueError: if the command line cannot carry an override's name or value.
    """
    files = json.dumps([str(path) for path in config_files])
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", files]
    for key, value in overrides.items():
        command += [f"--{key}", _spell(key, value)]
    return command


def run_bundle(
    config_files: Sequence[Path],
    overrides: Mapping[str, object],
    output: IO[bytes] | None = None,
    folder: Path | None = None,
) -> int:
    """Run `python -m monai.bundle run` in a process of its own and return its exit status.

    Args:
        config_files: merged in order; the bundle's own file first.
        overrides: keys and values of the command line.
        output: an open file that gets the command and all it prints; default: the screen.
        folder: the working directory, a bundle whose files are then named without it. Python imports from there first:
            an exported bundle brings its own `tools`, and a `tools` in the folder of the user is not in the way.
    """
    if folder is not None:
        config_files = [path.relative_to(folder) if path.is_relative_to(folder) else path for path in config_files]
    command = make_command(config_files, overrides)
    line = shlex.join(["python", *command[1:]])
    if folder is not None:
        line = f"cd {shlex.quote(str(folder))} && {line}"
    if output is None:
        logger.info("%s", line)
    else:
        output.write(f"$ {line}\n".encode())
        output.flush()
    # MONAI warns at each start that configs are code; these are the repository's own
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    errors = None if output is None else subprocess.STDOUT
    return subprocess.run(command, env=environment, cwd=folder, stdout=output, stderr=errors, check=False).returncode


def _spell(key: str, value: object) -> str:
    """Return the text that fire and MONAI read as `value`: plain where that is enough, else quoted."""
    if any(sign in key for sign in "-+="):
        remedy = "write it in a config file"
        raise ConfigValueError(f"--{key}", "a name with -, + or =", "one that the command line keeps", remedy)
    from fire.parser import DefaultParseValue

    value = _make_literal(value)
    # a text like 0.5 would become a number without quotes, and one like -x an option
    candidates = [repr(value)] if isinstance(value, str) and value.startswith("-") else [str(value), repr(value)]
    for text in candidates:
        read = DefaultParseValue(text)
        if read == value and type(read) is type(value):
            return text
    raise ConfigValueError(f"--{key}", repr(value), "text, numbers, lists and mappings", "write it in a config file")


def _make_literal(value: object) -> object:
    """Replace what the command line loses, null (MONAI drops it), infinity and `#`, by expressions of MONAI."""
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and "#" in value and not value.startswith(("$", "@", "%")):
        return "$" + repr(value).replace("#", "\\x23")  # MONAI takes it for the separator of ids, in values, too
    if isinstance(value, Mapping):
        return {name: _make_literal(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_make_literal(entry) for entry in value]
    if value is None:
        return "$None"
    return f"$float('{value}')" if isinstance(value, float) and not math.isfinite(value) else value
