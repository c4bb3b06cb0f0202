# SPDX-License-Identifier: Apache-2.0
"""`models` and `info`: what there is, what a file is, and what fits what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.catalogue import read_catalogues
from tools.commands.choice import fits
from tools.datasets.scans import make_absolute
from tools.errors import ConfigValueError
from tools.models import Model, find_model, list_models
from tools.tables import format_table

_SCANS = (".nii", ".nii.gz")
_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".ts", ".safetensors", ".bin", ".npz")


def describe_models() -> list[dict[str, Any]]:
    """Return what each model of this repository segments, in what, and how well."""
    return [describe_model(model) for model in list_models()]


def describe_model(model: Model) -> dict[str, Any]:
    """Return what a model segments, in what, how well, and under which licence its data are."""
    return {
        "model": model.name,
        "modality": model.card.get("modality"),
        "structures": model.structures,
        "extent_mm": model.card.get("extent_mm"),
        "spacing_mm": model.config.get("pixdim"),
        "dice": model.dice,
        "data": model.card.get("title"),
        "licence_of_data": model.card.get("licence"),
        "bundle": str(model.bundle),
        "weights": str(model.checkpoint),
        "weights_mb": round(model.checkpoint.stat().st_size / 1e6, 1) if model.checkpoint.is_file() else None,
    }


def list_public_weights() -> list[dict[str, Any]]:
    """Return the public weights that can be fetched, to start a training from or as a model."""
    return [
        {
            "bundle": file.bundle.name,
            "name": file.name,
            "licence": file.licence,
            "size_mb": file.size_mb,
            "fetched": file.target.is_file(),
        }
        for file in read_catalogues()
    ]


def format_models() -> str:
    """Return the models and the public weights as text."""
    rows = []
    for model in describe_models():
        extent = model["extent_mm"]
        box = " x ".join(f"{low}-{high}" for low, high in zip(*extent, strict=True)) if extent else "any"
        structures = ", ".join(model["structures"])
        rows.append([model["model"], model["modality"], structures, box, model["dice"], model["licence_of_data"]])
    weights = [[file["bundle"], file["name"], "yes" if file["fetched"] else "no"] for file in list_public_weights()]
    return "\n".join(
        [
            "ready: voxseg segment -i SCAN -o FOLDER -m MODEL",
            "",
            format_table(
                ["model", "of", "segments", "scans of mm (right, front, head)", "Dice", "licence of data"], rows
            ),
            "",
            "to be fetched: voxseg weights fetch BUNDLE --name NAME; licences: voxseg weights list",
            "",
            format_table(["bundle", "name", "here"], weights),
        ]
    )


def describe(place: str) -> dict[str, Any]:
    """Return what a scan, a model or a checkpoint is.

    Raises:
        ToolsError: if it is none of them, or cannot be read.
    """
    path = make_absolute(place)
    if path.is_file() and path.name.lower().endswith(_SCANS):
        return describe_scan(path)
    if path.is_file() and path.suffix.lower() in _CHECKPOINTS:
        return {"checkpoint": str(path), "text": _inspect(path)}
    try:
        return describe_model(find_model(place, "info"))
    except ConfigValueError as error:
        wanted = f"a scan (.nii, .nii.gz), a checkpoint ({', '.join(_CHECKPOINTS)}), or {error.wanted}"
        raise ConfigValueError("info", error.found, wanted, error.remedy) from error


def describe_scan(path: Path) -> dict[str, Any]:
    """Return the grid of a scan, its intensities, what is odd, and which models are made for it."""
    from tools.scans import read_facts

    facts = read_facts(path)
    reasons = {model.name: fits(model, facts) for model in list_models()}
    return {
        "scan": str(path),
        "shape": list(facts.shape),
        "spacing_mm": list(facts.spacing_mm),
        "orientation": facts.orientation,
        "extent_mm": list(facts.extent_mm),
        "dtype": facts.dtype,
        "intensity_percentiles": dict(zip(("0", "1", "50", "99", "100"), facts.percentiles, strict=True)),
        "looks_like": facts.modality,
        "odd": list(facts.oddities),
        "fitting_models": [name for name, reason in reasons.items() if reason is None],
        "other_models": {name: reason for name, reason in reasons.items() if reason is not None},
    }


def format_description(content: dict[str, Any]) -> str:
    """Return a description as lines of `name  value`."""
    if "text" in content:
        return str(content["text"])
    lines = []
    for name, value in content.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key}: {entry}" for key, entry in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value)) or "nothing"
        lines.append(f"{name.replace('_', ' '):22} {'-' if value is None else value}")
    return "\n".join(lines)


def _inspect(path: Path) -> str:
    from tools.weights.conversion import inspect

    return inspect(path)
