# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers for evaluation: Dice per case."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from tqdm import tqdm

from tools.files import write_json
from tools.hardware import describe_hardware
from tools.tables import format_table

logger = logging.getLogger(__name__)


class DiceReport:
    """Write Dice per case and class of an evaluation to `evaluation.json` and log the table.

    The mean is that of the key metric, over volumes and the classes that they have; a class that no reference of a
    case (or of all cases) has is null. `offset_mm` is how far the centre of all structures lies beside that of the
    reference, to the right, front and head, mean and standard error over the cases: half a voxel is a fault of the
    resampling, which Dice does not tell from a weak network.

    Args:
        output_dir: folder of the file.
        labels: names of the classes, background first.
        checkpoint: noted in the file.
    """

    def __init__(self, output_dir: str | Path, labels: Sequence[str], checkpoint: str | Path) -> None:
        self.output_dir = Path(output_dir)
        self.labels = list(labels)
        self.checkpoint = checkpoint
        self._cases: list[Path] = []
        self._offsets_mm: list[np.ndarray] = []
        self._bar: tqdm | None = None
        self._start_s = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._note_case)
        engine.add_event_handler(Events.COMPLETED, self._report)

    def _start(self, engine: Engine) -> None:
        self._cases, self._offsets_mm = [], []
        self._start_s = time.monotonic()
        self._bar = tqdm(total=len(engine.data_loader), unit="scan", dynamic_ncols=True)

    def _note_case(self, engine: Engine) -> None:
        self._cases += [Path(item["image"].meta["filename_or_obj"]) for item in engine.state.batch]
        offsets = (measure_offset_mm(item["pred"], item["label"]) for item in engine.state.output)
        self._offsets_mm += [offset for offset in offsets if offset is not None]
        if self._bar is not None:
            self._bar.update()

    def _report(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()
        name = engine.state.key_metric_name
        mean, details = float(engine.state.metrics[name]), engine.state.metric_details[name].float()
        measured = ~torch.isnan(details)
        num_cases, num_classes = (int(measured.any(dim=axis).sum()) for axis in (1, 0))
        if not num_cases:
            mean = math.nan  # MONAI calls that 0
        cases = [path.name for path in self._cases]
        if len(set(cases)) < len(cases):
            cases = [str(path) for path in self._cases]
        foreground = self.labels[1:]
        per_case = {
            case: dict(zip(foreground, row, strict=True)) for case, row in zip(cases, details.tolist(), strict=True)
        }
        per_class = dict(zip(foreground, torch.nanmean(details, dim=0).tolist(), strict=True))
        write_json(
            self.output_dir / "evaluation.json",
            {
                "checkpoint": Path(self.checkpoint).name,
                "metric": "Dice without background, per volume, in the grid of the source image",
                "mean": mean,
                "mean_over": {"cases": num_cases, "classes": num_classes},
                "offset_mm": self._describe_offsets(),
                "per_class": per_class,
                "per_case": per_case,
                "seconds": time.monotonic() - self._start_s,
                "hardware": describe_hardware(),
            },
        )
        rows = [[case, *dice.values()] for case, dice in [*per_case.items(), ("mean", per_class)]]
        logger.info("Dice per case\n%s", format_table(["case", *foreground], rows))
        told = f"{num_cases} of {len(cases)} cases and {num_classes} of {len(foreground)} classes"
        if offset := self._describe_offsets():
            places = ", ".join(
                f"{mean:+.2f} +- {error:.2f}"
                for mean, error in zip(offset["mean"], offset["standard_error"], strict=True)
            )
            logger.info("centres beside those of the references, to the right, front and head: %s mm", places)
        if num_cases:
            logger.info("mean Dice %.4f over %s, in %s", mean, told, self.output_dir / "evaluation.json")
        else:
            logger.warning("Dice is not defined: no reference of %d cases has a structure", len(cases))

    def _describe_offsets(self) -> dict[str, list[float]] | None:
        if len(self._offsets_mm) < 2:
            return None
        offsets = np.array(self._offsets_mm)
        errors = offsets.std(axis=0, ddof=1) / math.sqrt(len(offsets))
        return {"mean": offsets.mean(axis=0).tolist(), "standard_error": errors.tolist()}


def measure_offset_mm(prediction: torch.Tensor, label: torch.Tensor) -> np.ndarray | None:
    """Return where the centre of all structures lies beside that of the reference, to the right, front and head.

    Args:
        prediction: classes as 0 and 1, `(K, H, W, D)`, background first.
        label: likewise, with its affine in mm; without one voxels are 1 mm.

    Returns:
        Three lengths in mm, None if one of the two is empty.
    """
    centres = []
    for classes in (prediction, label):
        plain = classes.as_tensor() if isinstance(classes, MetaTensor) else classes
        places = torch.nonzero(plain[1:].any(dim=0)).double()
        if not len(places):
            return None
        centres.append(places.mean(dim=0).cpu().numpy())
    affine = label.affine.cpu().numpy() if isinstance(label, MetaTensor) else np.eye(4)
    return affine[:3, :3] @ (centres[0] - centres[1])
