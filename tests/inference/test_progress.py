# SPDX-License-Identifier: Apache-2.0
"""How far a segmentation is: windows are counted as they are, and a log file gets lines with the time to come."""

from __future__ import annotations

import logging

import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer

from tools.inference import MirroringInferer, SliceWindowInferer, progress
from tools.inference.progress import WindowProgress, count_passes, spell


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 30, 5), (40, 33, 48), (47, 16, 31)])
@pytest.mark.parametrize(
    "inferer",
    [
        SlidingWindowInferer((16, 16, 16), sw_batch_size=1, overlap=0.5),
        SlidingWindowInferer((16, 16, 16), sw_batch_size=3, overlap=0.25, mode="gaussian"),
        SlidingWindowInferer((16, 8, -1), overlap=(0.0, 0.9, 0.5)),
        MirroringInferer(SlidingWindowInferer((16, 16, 16), overlap=0.0), axes=[0, 2]),
        SliceWindowInferer(3, batch_size=4),
        MirroringInferer(SliceWindowInferer(1, batch_size=7), axes=[1], enabled=True),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, tuple) else None,
)
def test_as_many_passes_are_expected_as_there_are(inferer, shape):
    calls = 0

    def network(windows: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return (
            windows[:, :, :, :, 0] if isinstance(getattr(inferer, "inferer", inferer), SliceWindowInferer) else windows
        )

    inferer(torch.zeros(1, 1, *shape), network)
    assert count_passes(inferer, shape) == calls


def test_of_an_unknown_inferer_nothing_is_expected():
    assert count_passes(SimpleInferer(), (16, 16, 16)) is None


def test_a_log_gets_the_time_to_come_after_the_first_window_and_then_now_and_again(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    clock = iter(range(0, 1000, 10))  # ten seconds a window
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)) + 100)
    with WindowProgress(lambda x: x, "scan_7", total=10, is_terminal=False) as network:
        for _ in range(10):
            network(torch.zeros(1))
    assert [record.message for record in caplog.records] == [
        "scan_7: 1 of 10 windows, about 1:30 to come",
        "scan_7: 4 of 10 windows, about 1:00 to come",
        "scan_7: 7 of 10 windows, about 0:30 to come",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(4.6, "0:05"), (60, "1:00"), (3723, "1:02:03")])
def test_a_duration_is_spelled(seconds, text):
    assert spell(seconds) == text
