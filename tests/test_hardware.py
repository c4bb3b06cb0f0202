# SPDX-License-Identifier: Apache-2.0
"""What is told about the machine."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from tools import hardware
from tools.hardware import describe_hardware, find_memory_gb, measure_peak_memory_gb


def test_the_threads_in_use_are_named():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert describe_hardware().endswith(", 1 thread")
        torch.set_num_threads(2)
        assert describe_hardware().endswith(", 2 threads")
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell the peak of a process this way")
def test_the_peak_of_the_memory_counts_what_is_freed_again():
    before_gb = measure_peak_memory_gb(torch.device("cpu"))
    size = int(before_gb * 1e9) + 300_000_000  # over the peak, however large a test before this one has made it
    block = np.ones(size, np.uint8)
    del block
    assert measure_peak_memory_gb(torch.device("cpu")) - before_gb > 0.2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell its memory this way")
def test_the_memory_is_that_of_the_machine_or_of_the_container(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(hardware, "_CONTAINER_LIMIT", limit)
    cpu = torch.device("cpu")
    whole_gb = find_memory_gb(cpu)
    assert measure_peak_memory_gb(cpu) < whole_gb
    for text, expected_gb in (("max\n", whole_gb), ("250000000\n", 0.25), (f"{10**18}\n", whole_gb)):
        limit.write_text(text)
        assert find_memory_gb(cpu) == expected_gb
