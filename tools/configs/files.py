# SPDX-License-Identifier: Apache-2.0
"""Config files, and the one that belongs to a file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tools.errors import ConfigValueError

RUN_OVERLAY = "model.yaml"  # what a training leaves beside its weights


def read_config(path: Path) -> dict[str, Any]:
    """Return what a config file says, YAML or JSON, not resolved.

    Raises:
        ConfigValueError: if it is no mapping of keys and values.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigValueError(path, f"no YAML ({error})".replace("\n", " "), "a config file", "correct it") from error
    if not isinstance(content, Mapping):
        raise ConfigValueError(path, f"{type(content).__name__}", "a mapping of keys and values", "correct it")
    return dict(content)


def find_overlay(checkpoint: Path) -> Path | None:
    """Return the overlay that makes weights a model: of the training or the committed model beside which they lie.

    Args:
        checkpoint: the file of the weights.
    """
    files = (checkpoint.with_name(RUN_OVERLAY), checkpoint.with_suffix(".yaml"))
    return next((path for path in files if path.is_file()), None)
