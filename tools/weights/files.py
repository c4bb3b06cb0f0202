# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files: read as data only, written atomically."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tools.errors import CheckpointError, MissingFileError
from tools.files import write_atomically

# keys under which trainers wrap a network's state dict; "model" is MONAI's and MONAI Label's
STATE_DICT_KEYS = ("model", "state_dict", "network")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, as tensors and plain containers; code in the file is refused, never run.

    Args:
        path: a `.safetensors` file, or one written by `torch.save`.

    Returns:
        The mapping in the file: a bare state dict or a wrapper around one.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is no checkpoint, is damaged, or holds anything but data.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingFileError(
            path,
            "no such file",
            "a checkpoint (.safetensors or .pt)",
            "give an existing file with --checkpoint, or the bundle's folder with --bundle_root",
        )
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # 8000 files with a few wrong bytes made torch.load raise a dozen different classes
        raise CheckpointError(
            path,
            _describe_content(path, error),
            "tensors saved as .safetensors or by torch.save",
            "download or copy the file again; a file that needs code to load is refused for safety",
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            path, f"a {type(content).__name__}", "a state dict", "save the network's state_dict() and give that file"
        )
    return dict(content)


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a network's state dict from a bare or wrapped checkpoint, see `read_checkpoint`.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if no state dict can be found in it.
    """
    content = read_checkpoint(path)
    wrapped = next((content[key] for key in STATE_DICT_KEYS if isinstance(content.get(key), Mapping)), content)
    state_dict = {name: value for name, value in wrapped.items() if isinstance(value, torch.Tensor)}
    if not state_dict:
        raise CheckpointError(
            path,
            f"no tensors under the keys {', '.join(map(str, list(content)[:5])) or '(none)'}",
            f"a state dict, bare or under one of {', '.join(STATE_DICT_KEYS)}",
            "give the checkpoint of a network",
        )
    return state_dict


def save_checkpoint(content: Mapping[str, Any], path: str | Path) -> None:
    """Write `content` with `torch.save`, atomically: `path` is the old file or the new one at every moment."""
    # torch.save gives the file's name, here a random one, to what is inside; the same content shall be the same bytes
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        torch.save(dict(content), file)


def _describe_content(path: Path, error: Exception) -> str:
    """Say in a few words what is in an unreadable file; torch's own text advises to run the code in it."""
    if isinstance(error, OSError):
        return f"a file that cannot be opened ({error.strerror})"
    with path.open("rb") as file:
        line = file.read(80).partition(b"\n")[0]
    if not path.stat().st_size:
        return "an empty file of 0 bytes"
    if line.isascii() and line.decode().isprintable():  # an error page, or the pointer that Git LFS leaves
        return f"text that starts with {line.decode()!r}"
    if code := re.search(r"GLOBAL (\S+)", str(error)):
        return f"code ({code[1]}), not just tensors"
    if "TorchScript" in str(error):
        return "a TorchScript program"
    reason = type(error).__name__ if isinstance(error, pickle.UnpicklingError) else str(error).partition("\n")[0][:160]
    return f"{path.stat().st_size} bytes that are no whole file of weights ({reason or type(error).__name__})"
