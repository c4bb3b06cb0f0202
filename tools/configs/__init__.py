# SPDX-License-Identifier: Apache-2.0
"""What configs say: the one that runs, and the keys of it that make a model."""

from __future__ import annotations

from tools.configs.files import RUN_OVERLAY, find_overlay, read_config
from tools.configs.keys import KEYS, Key, list_keys
from tools.configs.models import MODEL_KEYS, select_model, write_overlay
from tools.configs.running import RunningConfig, read_running

__all__ = [
    "KEYS",
    "MODEL_KEYS",
    "RUN_OVERLAY",
    "Key",
    "RunningConfig",
    "find_overlay",
    "list_keys",
    "read_config",
    "read_running",
    "select_model",
    "write_overlay",
]
