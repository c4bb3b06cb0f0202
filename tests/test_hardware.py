# SPDX-License-Identifier: Apache-2.0
"""What is told about the machine."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from tools import hardware
from tools.hardware import describe_hardware, find_free_memory_gb, measure_peak_memory_gb


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


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what is free this way")
def test_free_memory_is_that_of_the_machine_or_of_the_container(tmp_path, monkeypatch):
    machine, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    monkeypatch.setattr(hardware, "_MEMORY_INFO", machine)
    monkeypatch.setattr(hardware, "_CONTAINER_LIMIT", limit)
    machine.write_text("MemTotal: 9000000 kB\nMemAvailable: 1000000 kB\nSwapFree: 2000000 kB\nHugePages_Total: 0\n")
    assert find_free_memory_gb("cpu") == pytest.approx(3.072)
    for text, expected_gb in (("max\n", 3.072), ("250000000\n", 0.25), (f"{10**18}\n", 3.072)):
        limit.write_text(text)
        assert find_free_memory_gb("cpu") == pytest.approx(expected_gb)


@pytest.mark.costs(processes=1)
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_a_limited_process_gets_an_exception_where_it_would_be_killed():
    code = """
import torch
from tools.hardware import limit_memory
torch.ones(1000).sum()
limit_memory(1.0)
kept = torch.ones(100_000_000)  # 0.4 GB
try:
    torch.ones(200_000_000)
except RuntimeError as error:
    print("can't allocate memory" in str(error), int(kept.sum()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "True 100000000\n"
