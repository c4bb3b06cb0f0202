# SPDX-License-Identifier: Apache-2.0
"""What shapes a result, as a hash: where it differs, a scan is segmented again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from monai.transforms import Transform

from tools.inference.writers import SaveProbabilitiesd, SaveSegmentationd

# of an inferer: in how many passes, where and with which display it computes the same numbers
_SPEED = {
    "sw_batch_size",
    "sw_device",
    "device",
    "progress",
    "buffer_steps",
    "buffer_dim",
    "cpu_thresh",
    "roi_weight_map",
}
_DESCRIBED = (Transform, Inferer, torch.nn.Module)


def compute_fingerprint(*parts: object) -> str:
    """Return a hash that changes with any setting of transforms and inferers that shapes a result.

    Paths of results, the size of batches and the device shape nothing.

    Args:
        parts: a preprocessing, an inferer, a postprocessing and the like.
    """
    return hashlib.sha256(json.dumps([_describe(part) for part in parts]).encode()).hexdigest()[:16]


def _describe(value: Any) -> Any:
    if isinstance(value, SaveSegmentationd):
        return {"values": _describe(value.names)}  # not where it writes them
    if isinstance(value, SaveProbabilitiesd):
        return None  # beside the result; that the file is there is looked at
    if isinstance(value, Mapping):
        return {str(key): _describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [part for item in value if (part := _describe(item)) is not None or item is None]
    if isinstance(value, (np.ndarray, torch.Tensor)):
        array = np.ascontiguousarray(value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value)
        return [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(value, _DESCRIBED):
        inside = {key: item for key, item in vars(value).items() if key not in _SPEED}
        return {"class": type(value).__name__, **_describe(inside)}
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    # other objects, such as random generators, print their address
    return str(value) if isinstance(value, (str, Number, torch.dtype, Path)) else type(value).__name__
