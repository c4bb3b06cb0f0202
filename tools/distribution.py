# SPDX-License-Identifier: Apache-2.0
"""Several processes in one training: how they find each other, and how they part."""

from __future__ import annotations

import atexit
import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def join_processes(device: str | torch.device) -> None:
    """Join the process group that torchrun describes in the environment: NCCL on GPUs, gloo on CPUs.

    Args:
        device: of this process.
    """
    import torch  # here and below: it takes seconds, and the module is imported by configs that use it later

    device = torch.device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # The network of a run holds the group beyond `leave_processes`, in cycles that Python need not free at its end; a
    # thread of gloo that outlives Python then aborts the process now and then (pytorch/pytorch, issue 190489).
    atexit.register(gc.collect)


def leave_processes() -> None:
    """Leave the process group, after the last step of all processes."""
    from torch import distributed

    distributed.barrier()
    distributed.destroy_process_group()
