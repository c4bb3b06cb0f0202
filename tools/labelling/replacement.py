# SPDX-License-Identifier: Apache-2.0
"""Uploaded weights: they replace a model if they are tensors that fit its network wholly, and only then."""

from __future__ import annotations

import copy
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from tools.errors import CheckpointError, RequestError
from tools.files import compute_sha256
from tools.handlers.models import replace_model
from tools.labelling.uploads import Upload
from tools.weights import load

# 4 GiB: the largest network with public weights, VoCo H with 847 million parameters, has 3.4 GB in float32
WEIGHTS_BYTES = 4 << 30
SUFFIXES = (".pt", ".pth", ".safetensors")


def take_weights(network: torch.nn.Module | None, upload: Upload, path: Path) -> dict[str, Any]:
    """Replace the model at `path` by an upload that fits `network`, and keep the one before as `<name>_previous`.

    Args:
        network: that of the model, which is not changed; None: the model is a TorchScript program.
        upload: a checkpoint in any layout that fits without approximation.
        path: the model.

    Returns:
        The checksum and the time of the new file, as MONAI Label answers.

    Raises:
        CheckpointError: if the upload is no checkpoint, holds code, or does not fit; the model is as it was then.
        RequestError: if the model cannot be replaced.
    """
    if network is None or path.suffix != ".pt":
        found, remedy = f"{path.name}, a program", "start the server with another bundle"
        raise RequestError("model", found, "weights of a network in its config", remedy)
    name = Path(upload.filename or "upload").name
    suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")
    if not suffix:
        raise CheckpointError(name, "another kind of file", f"one of {', '.join(SUFFIXES)}", "give a checkpoint")
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        upload.file.seek(0)
        shutil.copyfileobj(upload.file, file)
        file.flush()
        try:
            _check_size(Path(file.name))
            filled = load(copy.deepcopy(network).cpu(), file.name, complete=True)
        except CheckpointError as error:
            raise CheckpointError(name, error.found, error.wanted, error.remedy) from error
    weights = filled.state_dict()
    if faulty := [key for key, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        found = f"{len(faulty)} tensors with NaN or infinity ({faulty[0]})"
        raise CheckpointError(name, found, "finite numbers", "give the checkpoint of a training that did not diverge")
    replace_model(path, weights)
    return {"checksum": f"SHA256:{compute_sha256(path)}", "modified_time": int(path.stat().st_mtime)}


def _check_size(path: Path) -> None:
    """Raise `CheckpointError` if a zip file, which a checkpoint is, holds far more than its size says."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return  # what is wrong with it is told when it is read
    if size > WEIGHTS_BYTES:
        raise CheckpointError(path, f"{size:,} bytes when unpacked", f"at most {WEIGHTS_BYTES:,}", "give a checkpoint")
