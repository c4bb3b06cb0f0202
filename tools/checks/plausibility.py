# SPDX-License-Identifier: Apache-2.0
"""What is odd about a scan, or about the settings, for a model that was trained on others: told, never refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.configs import read_running
from tools.configs.keys import PREPROCESSING
from tools.models import Model, find_owner
from tools.scans import Scan
from tools.weights.classes import read_facts

logger = logging.getLogger(__name__)

# Fat, and the mixture of air with anything else, lie there in every CT: at least 0.56 % of the voxels of each of the 79
# labelled scans of OpenKBP (head and neck). Of CT values that were shifted, scaled or made into bytes, none do.
_FAT_HU, _LEAST_FAT = (-200, -20), 0.001
_AIR_HU = -200
_NO_DATA = 1e30  # no intensity is that large
_FAR = 3.0  # times the spacing of the model
_LOOKED_AT = 3  # scans of a data set
_SHOWN = 80  # characters of a value


def find_oddities(
    scan: Scan, voxels: np.ndarray, model: Model | None, pixdim: Sequence[float] | None, expects_hu: bool
) -> list[str]:
    """Return what sets a scan apart from those that a model was made for, as clauses for people.

    Args:
        scan: its grid.
        voxels: its intensities, of any shape.
        model: which knows modality and extent of its data; None: nothing is known of them.
        pixdim: spacing in mm that the network sees.
        expects_hu: whether intensities are scaled as those of a CT.
    """
    found = []
    modality = model.card.get("modality") if model else None
    if voxels.dtype.kind == "f":
        voxels = voxels[np.abs(voxels) < _NO_DATA]  # NaN is not less than anything
    if not voxels.size:
        return []
    lowest, highest = float(voxels.min()), float(voxels.max())
    span = f"values from {lowest:g} to {highest:g}"
    if modality == "CT" or expects_hu:
        share = float(((voxels > _FAT_HU[0]) & (voxels < _FAT_HU[1])).mean())
        if share < _LEAST_FAT:
            found.append(f"{span} are no Hounsfield units, in which fat is at -100 and air at -1000")
    elif modality == "MR" and lowest <= _AIR_HU:
        found.append(f"{span} look like CT, and the model is for MR")
    if pixdim is not None:
        ratio = np.sort(scan.spacing_mm) / np.sort(np.asarray(pixdim, float))
        if ratio.max() > _FAR or ratio.min() < 1 / _FAR:
            own, wanted = (" x ".join(f"{length:.3g}" for length in lengths) for lengths in (scan.spacing_mm, pixdim))
            found.append(f"voxels of {own} mm are far from the {wanted} mm of the model")
    if model and (reason := model.compare_extent(scan.extent_mm.tolist())):
        found.append(reason)
    return found


def list_changes(trained: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Return in which settings a config differs from those that a model was trained with, as clauses for people.

    Args:
        trained: what the weights were trained with.
        config: the one that runs, references and expressions as they are typed.
    """
    return [
        f"{key} is {_spell(config[key])}, and the model was trained with {_spell(trained[key])}"
        for key in PREPROCESSING
        if key in config and key in trained and _normalize(config[key]) != _normalize(trained[key])
    ]


def check_model_settings(checkpoint: str | Path, datalist: Sequence[Mapping[str, str]] = ()) -> list[str]:
    """Warn of settings of the running config that are not those of the training that `checkpoint` is from.

    A model is one piece: weights that were trained at 1 mm are worth little at 2 mm. What was trained with is read from
    the overlay beside the weights, from the exported bundle that they are in, or from the checkpoint itself.

    Args:
        checkpoint: file of the weights.
        datalist: entries `{"image": path}` that it will be applied to; what is odd about the first of them is told.

    Returns:
        The changes.
    """
    path = Path(checkpoint).expanduser()
    running, model = read_running(), find_owner(path)
    trained = model.config if model else read_facts(path) if path.is_file() else {}
    changes = list_changes(trained, running.values) if running else []
    for change in changes:
        logger.warning("%s; expect a worse result", change)
    for case in datalist[:_LOOKED_AT]:
        scan = Scan(case["image"], num_channels=None)
        pixdim = model.config.get("pixdim") if model else None
        for oddity in find_oddities(scan, scan.read(), model, pixdim, expects_hu=False):
            logger.warning("%s: %s; expect a worse result", case["image"], oddity)
    return changes


def _normalize(value: Any) -> str:
    return json.dumps(value, default=str, sort_keys=True).replace("#", "::")


def _spell(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
