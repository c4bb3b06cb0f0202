# SPDX-License-Identifier: Apache-2.0
"""The machine a figure comes from, and the part of it that this process is."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import torch

if sys.platform != "win32":
    import resource

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of Linux, in bytes or "max"


def describe_hardware() -> str:
    """Return the processor, its threads in use and the GPU, for tables that must say where a figure comes from."""
    name = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        models = [line.split(":", 1)[1].strip() for line in cpu_info.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    threads = torch.get_num_threads()
    description = f"{name}, {threads} {'thread' if threads == 1 else 'threads'}"
    return f"{torch.cuda.get_device_name()}; {description}" if torch.cuda.is_available() else description


def find_memory_gb(device: str | torch.device) -> float | None:
    """Return the memory that a process on `device` can have at the most, in GB of 1e9 bytes; None where it is not told.

    On a GPU that is all of its memory, else that of the machine or, if it is less, of the container.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 1e9
    if sys.platform == "win32":
        return None
    total_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    limit = _CONTAINER_LIMIT.read_text().strip() if _CONTAINER_LIMIT.is_file() else "max"
    return total_gb if limit == "max" else min(total_gb, int(limit) / 1e9)


def measure_peak_memory_gb(device: torch.device) -> float | None:
    """Return the most memory this process has held so far, in GB of 1e9 bytes; None where the system does not tell.

    On a GPU that is the memory of its tensors there, else that of the whole process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if sys.platform == "win32":
        return None
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, whose getrusage(2) counts the memory of the program that started this one, too
        peak_kib = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak_kib) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # bytes on macOS


def is_main_process() -> bool:
    """Tell whether this process writes files: rank 0 of a distributed run, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0
