# SPDX-License-Identifier: Apache-2.0
"""The overlay that turns a bundle's configs into one model: what its data were and what its network is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tools.configs.keys import list_keys
from tools.files import write_atomically

# what the data were, how they reach the network, and what it is
_PIECE_KEYS = tuple(key for key in list_keys("data", "geometry", "network") if key != "card")
# how it is applied; the defaults of training are not those of inference, so that only what was asked for is kept
_INFERENCE_KEYS = list_keys("inference")
MODEL_KEYS = (*_PIECE_KEYS, *_INFERENCE_KEYS)
NETWORK = "network_def"


def select_model(config: Mapping[str, Any], default: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the keys and values of a training that inference, evaluation and an export of its result need.

    Args:
        config: the config that was trained with, not resolved.
        default: the bundle's `train.yaml` alone, so that only what differs is said of the network; None: all of it.
    """
    default = default or {}
    kept = {key: config[key] for key in _PIECE_KEYS if key in config}
    kept |= {key: config[key] for key in _INFERENCE_KEYS if key in config and config[key] != default.get(key)}
    network, usual = config[NETWORK], default.get(NETWORK, {})
    if network["_target_"] != usual.get("_target_"):
        return kept | {NETWORK: network}
    changed = {name: value for name, value in network.items() if name not in usual or value != usual[name]}
    return kept | {f"{NETWORK}#{name}": value for name, value in changed.items()}


def collect_facts(config: Mapping[str, Any]) -> str:
    """Return what weights must know of themselves as JSON: the data, how they reach the network, and what it is.

    Args:
        config: the config that they were trained with, not resolved.
    """
    return json.dumps(select_model(config), default=str, sort_keys=True)


def write_overlay(path: Path, values: Mapping[str, Any], head: str) -> None:
    """Write keys and values as a config file, one line each, atomically.

    Args:
        path: the file.
        values: keys (`a` or `a#b`) and plain values.
        head: what the file is, one or more lines.
    """
    comment = "".join(f"# {line}\n" for line in head.splitlines())
    with write_atomically(path) as temporary:
        temporary.write_text(comment + "".join(f"{key}: {_flow(value)}\n" for key, value in values.items()), "utf-8")


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()
