# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import gc, sys, torch
from torch.nn.parallel import DistributedDataParallel
from tools import distribution

class Watched(torch.nn.Linear):
    def __del__(self):
        print("freed too late" if sys.is_finalizing() else "freed in time")

distribution.join_processes(torch.device("cpu"))
network = DistributedDataParallel(Watched(2, 2))
network.circle = [network]  # as handlers and engines hold each other
network(torch.rand(1, 2)).sum().backward()
distribution.leave_processes()
print("left" if not torch.distributed.is_initialized() else "still joined")
gc.disable()
del network
"""


@pytest.mark.costs(processes=1)
def test_what_holds_the_process_group_is_freed_while_python_runs():
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    result = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:2] == ["left", "freed in time"]
