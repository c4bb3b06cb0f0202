# SPDX-License-Identifier: Apache-2.0
"""How far a segmentation is: a bar on a screen, lines in a log file, and the time to come after the first window."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from monai.inferers import Inferer, SlidingWindowInferer
from monai.utils import fall_back_tuple
from torch import Tensor
from tqdm import tqdm

from tools.inference.mirroring import MirroringInferer
from tools.inference.slice_windows import SliceWindowInferer

logger = logging.getLogger(__name__)

_WORTH_TELLING_S = 10.0  # what takes less is done before the line is read
_BETWEEN_LINES_S = 30.0


def count_passes(inferer: Inferer, shape: Sequence[int]) -> int | None:
    """Return how often an inferer will call the network for one volume, None if it is none of those known here.

    Args:
        inferer: of a config.
        shape: of the volume, `(H, W, D)`.
    """
    if isinstance(inferer, MirroringInferer):
        once = count_passes(inferer.inferer, shape)
        return None if once is None else once * (len(inferer.mirrorings) + 1)
    if isinstance(inferer, SliceWindowInferer):
        return math.ceil(shape[-1] / inferer.batch_size)
    if not isinstance(inferer, SlidingWindowInferer):
        return None
    windows = fall_back_tuple(inferer.roi_size, shape)
    overlaps = [inferer.overlap] * 3 if isinstance(inferer.overlap, (int, float)) else list(inferer.overlap)
    counts = []
    for size, window, overlap in zip(shape, windows, overlaps, strict=True):
        step = max(1, int(window * (1 - overlap)))
        counts.append(math.ceil(max(0, size - window) / step) + 1)
    return math.ceil(math.prod(counts) / inferer.sw_batch_size)


class WindowProgress:
    """A network that tells how often it was called; used as `with WindowProgress(...) as network`.

    On a terminal it is a bar. Elsewhere, in the log file of a cluster for instance, it is a line after the first window
    and another one every half a minute.

    Args:
        network: what is called.
        name: of the scan.
        total: how often it will be called, None if nobody knows.
        is_terminal: whether a bar can be drawn; None: whether the error stream is a terminal.
    """

    def __init__(
        self, network: Callable[..., Tensor], name: str, total: int | None, is_terminal: bool | None = None
    ) -> None:
        self.network, self.name, self.total = network, name, total
        self._is_terminal = sys.stderr.isatty() if is_terminal is None else is_terminal
        self._count, self._start_s, self._told_s = 0, 0.0, 0.0
        self._bar: tqdm | None = None

    def __enter__(self) -> WindowProgress:
        self._start_s = time.monotonic()
        if self._is_terminal:
            self._bar = tqdm(total=self.total, unit="window", leave=False, dynamic_ncols=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Call the network, and tell how far it is."""
        result = self.network(*args, **kwargs)
        self._count += 1
        if self._bar is not None:
            self._bar.update()
        elif self.total is not None and self._count < self.total:
            self._tell(time.monotonic())
        return result

    def _tell(self, now_s: float) -> None:
        assert self.total is not None
        passed_s = now_s - self._start_s
        to_come_s = passed_s / self._count * (self.total - self._count)
        is_due = self._told_s == 0 or now_s - self._told_s >= _BETWEEN_LINES_S
        if is_due and to_come_s >= _WORTH_TELLING_S:
            self._told_s = now_s
            logger.info("%s: %d of %d windows, about %s to come", self.name, self._count, self.total, spell(to_come_s))


def spell(seconds: float) -> str:
    """Return a duration such as 0:05, 2:30 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
