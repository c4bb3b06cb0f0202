# SPDX-License-Identifier: Apache-2.0
"""Bundles in the folder where MONAI Label looks for models, each with all that it reads.

MONAI Label leaves a bundle out without a word to the user, or does not start, if something is missing: so that is
looked up first.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

import tools
from tools.archives import name_bundle, unpack
from tools.bundles import locate_bundle
from tools.configs.files import RUN_OVERLAY
from tools.errors import BundleError, ConfigValueError
from tools.models import find_model
from tools.release import export, export_model

logger = logging.getLogger(__name__)

PACKAGE = Path(tools.__file__).resolve().parent
INFERENCE = ("configs/inference.json", "configs/inference.yaml")  # MONAI Label takes the first of these
WEIGHTS = ("models/model.pt", "models/model.ts")
PREPROCESSING = ("preprocessing", "pre_transforms")
VERSION = re.compile(r"^__version__ = \"([^\"]+)\"", re.MULTILINE)
NOT_COPIED = shutil.ignore_patterns("__pycache__", "eval", ".*")


def place_bundles(entries: Sequence[str], app: Path, dataset: str | None = None, overwrite: bool = False) -> list[str]:
    """Put bundles into `<app>/model/` and return their names, which are those of the models in MONAI Label.

    A model that is there already stays, because it may have been trained there.

    Args:
        entries: each a bundle of this repository or the folder of a training, which are exported, or the zip or folder
            of any MONAI bundle.
        app: folder of the MONAI Label app.
        dataset: of the exported bundles, see `tools.release.export`.
        overwrite: replace what is there.

    Raises:
        ConfigValueError: if an entry is neither, or two have the same name.
        BundleError: if a bundle lacks what MONAI Label needs.
    """
    names: list[str] = []
    with tempfile.TemporaryDirectory() as exports:
        for entry in entries:
            source = _find_source(entry, dataset, Path(exports))
            name = name_bundle(source) if source.is_file() else source.name
            if name in names or "," in name:
                found = f"a second bundle {name}" if name in names else f"a comma in the name {name}"
                raise ConfigValueError("--bundles", found, "a name for each", "rename the folder of one of them")
            place_bundle(source, app / "model" / name, overwrite)
            names.append(name)
    return names


def place_bundle(source: Path, folder: Path, overwrite: bool = False) -> None:
    """Copy or unpack a bundle to `folder`, whole or not at all, and check what MONAI Label needs of it.

    Raises:
        BundleError: if something is missing; `folder` is as it was then.
    """
    if folder.exists() and not overwrite:
        check_model(folder)
        logger.info("%s stays as it is, with what was trained in it; --overwrite replaces it", folder)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (folder.with_name(f".{kind}-{secrets.token_hex(8)}-{folder.name}") for kind in ("partial", "old"))
    try:
        if source.is_file():
            unpack(source, fresh)
        else:
            shutil.copytree(source, fresh, ignore=NOT_COPIED)
        check_model(fresh, name=source)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        logger.info("%s has the bundle of %s", folder, source.name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check_model(folder: Path, name: Path | None = None) -> None:
    """Raise `BundleError` unless MONAI Label would offer this bundle.

    Args:
        folder: the bundle.
        name: what errors call it; default: the folder.
    """
    name = name or folder
    config_path = _choose(folder, name, INFERENCE, "give the zip or folder of a bundle for inference")
    remedy = "give the name of a bundle of this repository, or a zip made by `python -m tools export`"
    weights = _choose(folder, name, WEIGHTS, remedy)
    config = _read(config_path, name)
    needed = [*(["network_def"] if weights.suffix == ".pt" else []), PREPROCESSING]
    for keys in needed:
        keys = (keys,) if isinstance(keys, str) else keys
        if not any(config.get(key) for key in keys):
            subject = f"{name}: {config_path.relative_to(folder)}"
            raise BundleError(subject, f"no {keys[0]}", "what MONAI Label makes of it", "add it to the config")
    _check_metadata(folder, name)
    _check_package(folder, name)


def _find_source(entry: str, dataset: str | None, exports: Path) -> Path:
    try:
        locate_bundle(entry)
    except ConfigValueError as error:
        path = Path(entry).expanduser().resolve()
        if not path.exists():
            wanted = f"{error.wanted}, or the zip or folder of a bundle"
            raise ConfigValueError("--bundles", repr(entry), wanted, "correct the name or path") from error
        return export_model(find_model(str(path)), out=exports) if (path / RUN_OVERLAY).is_file() else path
    return export(entry, dataset=dataset, out=exports)


def _choose(folder: Path, name: Path, candidates: Sequence[str], remedy: str) -> Path:
    for candidate in candidates:
        if (folder / candidate).is_file():
            return folder / candidate
    raise BundleError(name, f"no {' and no '.join(candidates)}", "one of them, or MONAI Label ignores it", remedy)


def _read(path: Path, name: Path) -> Mapping[str, Any]:
    try:
        content = ConfigParser.load_config_file(path)
    except Exception as error:  # errors of json, yaml, encodings
        reason = " ".join(str(error).split())
        raise BundleError(
            f"{name}: {path.name}", f"text that cannot be read ({reason})", "a config", "correct it"
        ) from error
    if not isinstance(content, Mapping):
        raise BundleError(f"{name}: {path.name}", type(content).__name__, "a mapping", "correct it")
    return content


def _check_metadata(folder: Path, name: Path) -> None:
    """MONAI Label takes the keys of image and prediction, the labels and the dimension from the metadata."""
    path = folder / "configs" / "metadata.json"
    if not path.is_file():
        raise BundleError(name, "no configs/metadata.json", "one, which MONAI Label reads", "add it")
    subject, remedy = f"{name}: metadata.json", "correct it; `python -m tools lint` tells all that is wrong"
    formats = _read(path, name).get("network_data_format")
    entries = {}
    for side, wanted in (("inputs", "image"), ("outputs", "pred")):
        tensors = formats.get(side) if isinstance(formats, Mapping) else None
        first, tensor = next(iter(tensors.items()), (None, None)) if isinstance(tensors, Mapping) else (None, None)
        if first != wanted or not isinstance(tensor, Mapping):
            raise BundleError(subject, f"network_data_format#{side} that begins with {first}", wanted, remedy)
        entries[side] = tensor
    channels = entries["outputs"].get("channel_def", {})
    if not isinstance(channels, Mapping) or not all(str(number).isdigit() for number in channels):
        raise BundleError(subject, f"channel_def {json.dumps(channels)}", "labels by their number", remedy)
    labels = [str(label).lower() for label in channels.values()]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise BundleError(subject, f"two labels {', '.join(twice)}", "names that differ in lower case", remedy)


def _check_package(folder: Path, name: Path) -> None:
    """One package `tools` serves all bundles of a server, the installed one: all copies must be of its version."""
    if not (folder / "tools").is_dir():
        return
    text = (
        (folder / "tools" / "__init__.py").read_text(encoding="utf-8")
        if (folder / "tools" / "__init__.py").is_file()
        else ""
    )
    match = VERSION.search(text)
    if match is None or match[1] != tools.__version__:
        found = f"version {match[1]} of tools" if match else "a package tools without a version"
        wanted = f"version {tools.__version__}, the installed one"
        raise BundleError(name, found, wanted, "export the bundle again, or check out and install its version")
    copies = [path for path in (folder / "tools").rglob("*.py") if "__pycache__" not in path.parts]
    changed = [path for path in copies if not _equals(path, PACKAGE / path.relative_to(folder / "tools"))]
    if changed:
        logger.warning("%s: %d files of tools differ from those installed, which the server uses", name, len(changed))


def _equals(path: Path, other: Path) -> bool:
    return other.is_file() and path.read_bytes() == other.read_bytes()
