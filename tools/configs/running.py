# SPDX-License-Identifier: Apache-2.0
"""The config that runs: files, overlays and overrides merged, references and expressions still as they are typed."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunningConfig:
    """A config that runs.

    Attributes:
        values: what it says.
        bundle: the folder of the bundle that its first file belongs to, None where a parser runs it without a workflow.
    """

    values: dict[str, Any]
    bundle: Path | None


def read_running() -> RunningConfig | None:
    """Return the config whose component or expression calls this, None where no config does.

    MONAI gives components the values of their references only, and no component a way to its config. While it builds
    them, parser and workflow are on the call stack, in every way of running a bundle (command, `ConfigWorkflow`, MONAI
    Label); the command line, which could be read again instead, is there in one of them only.
    """
    from monai.bundle import ConfigParser, ConfigWorkflow

    values, frame = None, sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigParser) and values is None:
            values = copy.deepcopy(owner.get())
        if isinstance(owner, ConfigWorkflow) and values is not None:
            return RunningConfig(values, Path(owner.config_root_path).resolve().parent)
        frame = frame.f_back  # type: ignore[assignment]
    return None if values is None else RunningConfig(values, None)
