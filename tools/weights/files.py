# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files: read as data only, written atomically."""

from __future__ import annotations

import argparse
import io
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tools.errors import CheckpointError, MissingFileError
from tools.files import write_atomically

# keys under which trainers wrap a network's state dict. "model" is MONAI's and ours, "network_weights" nnU-Net's;
# where there are two networks the teacher counts: its weights are the averaged ones (DINO, VoCo)
STATE_DICT_KEYS = ("state_dict", "network_weights", "model", "net", "network", "teacher", "student")
OTHERS = "others"  # what `read_weights` says of further networks in the file


class ScriptNode:
    """Stands in for any class of a TorchScript program: it keeps attributes and has no behaviour."""


def _rebuild_number(dtype: np.dtype, content: bytes) -> float | int | bool | complex:
    """Do what NumPy's unpickler does for numbers; objects, which could be anything, are refused."""
    if dtype.kind not in "biufc":
        raise pickle.UnpicklingError(f"a NumPy scalar of type {dtype}")
    return np.frombuffer(content, dtype)[0].item()


# What old checkpoints hold beside tensors: a best score as a NumPy number, the arguments of the training script.
# None of it runs code; everything else that is no tensor or plain container is refused by torch.
HARMLESS: list[Any] = [
    (_rebuild_number, "numpy.core.multiarray.scalar"),
    (_rebuild_number, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"},
    argparse.Namespace,
]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, as tensors and plain containers; code in the file is refused, never run.

    Args:
        path: a `.safetensors` file, or one written by `torch.save` or `torch.jit.save`. Of a TorchScript program the
            parameters and buffers are read and the program is not even opened.

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
        content = load_file(path) if _is_safetensors(path) else _unpickle(path)
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
    return read_weights(path)[0]


def read_weights(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a network's state dict, and what stands beside it: the header of a safetensors file, keys of a wrapper.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if no state dict can be found in it.
    """
    content = read_checkpoint(path)
    wrapped: Mapping[str, Any] = content
    others: list[str] = []
    taken = ""
    while key := next((key for key in STATE_DICT_KEYS if isinstance(wrapped.get(key), Mapping)), None):
        taken = key
        others += [str(other) for other, value in wrapped.items() if other != key and _is_twin(value, wrapped[key])]
        wrapped = wrapped[key]
    state_dict = {name: value for name, value in wrapped.items() if isinstance(value, torch.Tensor)}
    if nameless := [name for name in state_dict if not isinstance(name, str)]:
        remedy = "save the network's state_dict(), whose keys are the names of its parameters"
        raise CheckpointError(path, f"tensors under keys like {nameless[0]!r}", "names of a network's tensors", remedy)
    if not state_dict:
        raise CheckpointError(
            path,
            f"no tensors under the keys {', '.join(map(str, list(content)[:5])) or '(none)'}",
            f"a state dict, bare or under one of {', '.join(STATE_DICT_KEYS)}",
            "give the checkpoint of a network",
        )
    facts = {key: value for key, value in content.items() if not isinstance(value, torch.Tensor | Mapping)}
    if others:
        facts[OTHERS] = f"the file holds several networks: {taken} is taken, {', '.join(others)} left out"
    return state_dict, facts | read_metadata(path)


def _is_twin(value: object, chosen: Mapping[str, Any]) -> bool:
    """Tell whether an entry of a checkpoint is the network once more, the average of its weights for instance."""
    if not isinstance(value, Mapping):
        return False
    names = {name for name, entry in value.items() if isinstance(entry, torch.Tensor)}
    return len(names & chosen.keys()) > len(chosen) / 2


def save_checkpoint(content: Mapping[str, Any], path: str | Path) -> None:
    """Write `content` with `torch.save`, atomically: `path` is the old file or the new one at every moment."""
    # torch.save gives the file's name, here a random one, to what is inside; the same content shall be the same bytes
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        torch.save(dict(content), file)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the texts in the header of a `.safetensors` file; of any other file none."""
    path = Path(path).expanduser()
    if not _is_safetensors(path):
        return {}
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _is_safetensors(path: Path) -> bool:
    """Tell whether a file is in the safetensors format, by its name or its first bytes."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"  # eight bytes of length, then the JSON header


def _unpickle(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                return _read_script(archive)
    with torch.serialization.safe_globals(HARMLESS):
        return torch.load(path, "cpu", weights_only=True)


def _read_script(archive: zipfile.ZipFile) -> dict[str, torch.Tensor]:
    """Read the tensors of a TorchScript archive as data: the program's code is left out before torch sees it."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as stripped:
        for entry in archive.infolist():
            part = entry.filename.partition("/")[2]
            if part in ("data.pkl", "version", "byteorder") or part.startswith(("data/", ".data/")):
                stripped.writestr(entry.filename, archive.read(entry))
    classes = torch.serialization.get_unsafe_globals_in_checkpoint(_rewind(data))
    stand_ins: list[Any] = [
        (type("ScriptNode", (ScriptNode,), {}), name) for name in classes if name.startswith("__torch__.")
    ]
    # annotations of lists and dictionaries: their values are kept as they are
    stand_ins += [(_keep_value, name) for name in classes if name.startswith("torch.jit._pickle.")]
    with torch.serialization.safe_globals(stand_ins):
        program = torch.load(_rewind(data), "cpu", weights_only=True)
    return dict(_iterate_tensors(program))


def _iterate_tensors(node: object, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in vars(node).items():
        if isinstance(value, ScriptNode):
            yield from _iterate_tensors(value, f"{prefix}{name}.")
        elif isinstance(value, torch.Tensor) and value.numel():  # MONAI keeps empty tensors as placeholders
            yield f"{prefix}{name}", value


def _keep_value(value: Any, *_: Any) -> Any:
    return value


def _rewind(data: io.BytesIO) -> io.BytesIO:
    data.seek(0)
    return data


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
    reason = (
        type(error).__name__ if isinstance(error, pickle.UnpicklingError) else re.split(r"\n|\. ", str(error))[0][:160]
    )
    return f"{path.stat().st_size} bytes that are no whole file of weights ({reason or type(error).__name__})"
