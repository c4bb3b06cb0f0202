# SPDX-License-Identifier: Apache-2.0
"""The machine a figure comes from, and the part of it that this process is."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

if sys.platform != "win32":
    import resource

_MEMORY_INFO = Path("/proc/meminfo")  # of Linux, in KiB
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of Linux, in bytes or "max"


def describe_hardware() -> str:
    """Return the processor, its threads in use and the GPU, for tables that must say where a figure comes from."""
    name = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        models = [line.split(":", 1)[1].strip() for line in cpu_info.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    import torch  # here and below: it takes seconds, which not every caller has spent already

    threads = torch.get_num_threads()
    description = f"{name}, {threads} {'thread' if threads == 1 else 'threads'}"
    return f"{torch.cuda.get_device_name()}; {description}" if torch.cuda.is_available() else description


def find_free_memory_gb(device: str | torch.device) -> float | None:
    """Return the memory that a process on `device` can still get, in GB of 1e9 bytes; None where it is not told.

    On Linux that is what the machine has free, swap included, or the limit of the container, if it is less; on macOS
    all that the machine has.
    """
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0] / 1e9
    if sys.platform == "win32":
        return None
    if not _MEMORY_INFO.is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    kib = {line.split(":")[0]: int(line.split()[1]) for line in _MEMORY_INFO.read_text().splitlines()}
    free_gb = (kib["MemAvailable"] + kib["SwapFree"]) * 1024 / 1e9
    limit = _CONTAINER_LIMIT.read_text().strip() if _CONTAINER_LIMIT.is_file() else "max"
    return free_gb if limit == "max" else min(free_gb, int(limit) / 1e9)


def limit_memory(more_gb: float) -> None:
    """Let allocations fail in this process, on Linux, once it has got `more_gb` of 1e9 bytes more than it has now.

    Linux grants more than there is and kills the process when it uses it, without a word.
    """
    if sys.platform == "linux":
        has = _read_status_kib("VmData") * 1024
        _, hardest = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = has + int(more_gb * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if hardest < 0 else min(wanted, hardest), hardest))


def measure_peak_memory_gb(device: torch.device) -> float | None:
    """Return the most memory this process has held so far, in GB of 1e9 bytes; None where the system does not tell.

    On a GPU that is the memory of its tensors there, else that of the whole process.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 1e9
    if sys.platform == "win32":
        return None
    if sys.platform == "linux":  # whose getrusage(2) counts the memory of the program that started this one, too
        return _read_status_kib("VmHWM") * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # bytes on macOS


def _read_status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def is_main_process() -> bool:
    """Tell whether this process writes files: rank 0 of a distributed run, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0
