# SPDX-License-Identifier: Apache-2.0
"""Ignite handler that looks at what a network will see before it is trained on it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ignite.engine import Engine, Events
from monai.data import Dataset

from tools.checks.samples import describe_prepared, read_prepared, spread
from tools.hardware import is_main_process
from tools.reports import plot_crops

logger = logging.getLogger(__name__)

_CROPS = 8


class SampleCheck:
    """Warn of structures that the network will not see, and draw `crops.png`: crops as it gets them.

    Label files may be sound and what is made of them not: a structure of two voxels at 1 mm has none at 2 mm.

    Args:
        dataset: of the training.
        labels: names of the classes, background first.
        label_map: class of each value in the label files.
        output_dir: folder of the picture.
        orientation: where the axes of an image point to when nothing is flipped.
    """

    def __init__(
        self,
        dataset: Dataset,
        labels: Sequence[str],
        label_map: Mapping[int, int],
        output_dir: str | Path,
        orientation: str = "RAS",
    ) -> None:
        self.dataset = dataset
        self.labels = list(labels)
        self.label_map = dict(label_map)
        self.output_dir = Path(output_dir)
        self.orientation = orientation

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Look, once, before the first step."""
        if not is_main_process():
            return
        prepared = read_prepared(self.dataset, len(self.labels))
        for sentence in describe_prepared(prepared, self.labels, self.label_map):
            logger.warning("%s", sentence)
        places = spread(len(self.dataset), _CROPS)
        drawn = [self.dataset[place] for place in places]
        crops = [samples[0] if isinstance(samples, list) else samples for samples in drawn]
        shown = sum(bool((crop["label"] > 0).any()) for crop in crops)
        names = [Path(self.dataset.data[place]["image"]).name for place in places]
        plot_crops(crops, self.labels, self.output_dir / "crops.png", names, self.orientation)
        told = "looked at %d of %d cases; %d of %d crops show a structure, in %s"
        level = logging.INFO if shown else logging.WARNING
        logger.log(level, told, len(prepared.names), prepared.total, shown, len(crops), self.output_dir / "crops.png")
