# SPDX-License-Identifier: Apache-2.0
"""The demonstration: a committed model on the embedded scans, by the same command a user would type."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

from tools.bundles import CARDS, choose_model, locate_bundle, locate_model, run_bundle
from tools.configs.files import read_config
from tools.datasets import name_case, read_datalist
from tools.errors import FailedScansError, MissingFileError
from tools.evaluation import measure_dice
from tools.tables import format_table

logger = logging.getLogger(__name__)

EMBEDDED = CARDS / "demo"


def demonstrate(bundle: str, card: str | None, output_dir: str | Path) -> str:
    """Segment the embedded scans of a data set and return the tables of Dice and volumes as text.

    Args:
        bundle: name of the bundle.
        card: name of the data set; the bundle needs a committed model for it. None: that of its only model, of several
            msd04_hippocampus.
        output_dir: folder of the results.

    Raises:
        ConfigValueError: if there is no such bundle, or it has no model to choose.
        MissingFileError: if there is no model or no embedded data for that data set.
        FailedScansError: if the run ends with an error; its own message is on the screen then.
    """
    card = card or choose_model(bundle, "--card")
    root, model, output_dir = locate_bundle(bundle), locate_model(bundle, card), Path(output_dir)
    data = EMBEDDED / card
    if not data.is_dir():
        known = ", ".join(sorted(path.name for path in EMBEDDED.iterdir() if path.is_dir()))
        raise MissingFileError(data, "no embedded scans", f"one of: {known}", "choose one of those with --card")
    status = run_bundle(
        [root / "configs" / "inference.yaml", model],
        {
            "bundle_root": root,
            "dataset_dir": data / "imagesTr",
            "output_dir": output_dir,
            "overwrite": True,
        },
    )
    if status:
        raise FailedScansError("demo", f"exit status {status} of the run above", "0", "see its message")
    report = json.loads((output_dir / "run.json").read_text(encoding="utf-8"))
    labels = list(report["labels"].values())
    label_map = read_config(model)["label_map"]
    rows = []
    for pair in read_datalist(data, "validation"):
        name = name_case(pair["image"])
        dice = measure_dice(output_dir / report["scans"][name]["segmentation"], pair["label"], labels, label_map)
        volumes_ml = report["scans"][name]["volumes_ml"]
        seconds = sum(report["scans"][name]["seconds"].values())
        rows.append([name, *dice.values(), *volumes_ml.values(), seconds])
    means = [_mean([row[column] for row in rows]) for column in range(1, len(labels))]
    rows.append(["mean", *means, *[math.nan] * (len(labels) - 1), math.nan])
    header = ["scan", *[f"Dice {label}" for label in labels[1:]], *[f"{label} mL" for label in labels[1:]], "s"]
    return "\n".join(
        [
            format_table(header, rows),
            "",
            f"mean Dice      {_mean(means):.4f}",
            f"segmentations  {output_dir}/*_seg.nii.gz",
            f"previews       {output_dir}/*_seg.png",
            f"volumes        {output_dir / 'volumes.csv'}",
            f"run report     {output_dir / 'run.json'}",
        ]
    )


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
