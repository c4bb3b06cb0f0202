# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a data set of images alone: scans that cannot be used are left out, with their reasons."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tqdm import tqdm

from tools.errors import EmptyDatasetError, ToolsError
from tools.scans import check_scan

logger = logging.getLogger(__name__)


def select_readable(
    datalist: Sequence[Mapping[str, str]],
    num_workers: int = 2,
    num_channels: int = 1,
    option: str = "--dataset_dir",
) -> list[dict[str, str]]:
    """Return the entries whose image passes `check_scan` and is not constant, and log one summary of the others.

    Large collections of unlabelled scans have a broken file now and then; a pre-training of days should neither fail
    on it nor meet it in the middle. A constant image is left out too: its crops are all the same, whatever the task.
    All voxels are read once.

    Args:
        datalist: entries `{"image": path}`.
        num_workers: threads; decompression, most of the work, runs outside the interpreter lock.
        num_channels: how many volumes each file must hold.
        option: what gave the scans, for messages.

    Raises:
        EmptyDatasetError: if no scan can be used; the first reason is in the text, all of them are in the log.
    """
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        found = pool.map(partial(_find_problem, num_channels=num_channels), datalist)
        # a short check should not leave a bar on the screen: it is shown after 2 s only
        shown = tqdm(found, "checking scans", len(datalist), unit="scan", delay=2, disable=len(datalist) <= 20)
        problems = list(shown)
    reasons = [problem for problem in problems if problem is not None]
    if reasons:
        lines = "".join(f"\n  {reason}" for reason in reasons)
        logger.warning("%d of %d scans cannot be used and are skipped:%s", len(reasons), len(datalist), lines)
    readable = [dict(entry) for entry, problem in zip(datalist, problems, strict=True) if problem is None]
    if not readable:
        first = f" ({reasons[0].subject}: found {reasons[0].found})" if reasons else ""
        raise EmptyDatasetError(
            "the data set",
            f"no usable scan among {len(datalist)}{first}",
            "at least one NIfTI volume",
            f"correct {option} or the files, see the log",
        )
    return readable


def _find_problem(entry: Mapping[str, str], num_channels: int) -> ToolsError | None:
    try:
        check_scan(entry["image"], num_channels, need_contrast=True)
    except ToolsError as problem:
        return problem
    return None
