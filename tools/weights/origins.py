# SPDX-License-Identifier: Apache-2.0
"""What is known of a file of weights beside its tensors: who wrote it, and whether it is a public one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tools.bundles import BUNDLES
from tools.catalogue import PublicFile, read_catalogues
from tools.configs.files import find_overlay, read_config
from tools.networks.patch_merging import FORMS
from tools.weights.merging_forms import HEADER, MergingForm, Origin

PATCH_EMBEDDING = re.compile(r"(?:.*\.)?patch_embed\.proj\.weight")
RUN_KEYS = frozenset({"iteration", "max_epochs", "record"})  # of a checkpoint of `tools.handlers.TrainingCheckpoint`
# a run of this project whose state dict does not tell it: MONAI was 1.6.1 from the first one on
RUN = Origin(certain=MergingForm("corrected", "a training run of this project"))
MEGABYTE = 1_000_000


def find_origin(path: Path, state_dict: Mapping[str, Tensor], facts: Mapping[str, Any], sha256: str) -> Origin:
    """Return what is known of a file.

    Args:
        path: of the file.
        state_dict: its tensors.
        facts: what stands beside them, see `read_weights`.
        sha256: of the file.
    """
    written = facts.get(HEADER) or _read_form(path)
    if written in FORMS:
        return Origin(certain=MergingForm(str(written), "told by the file"))
    if facts.keys() >= RUN_KEYS:
        return RUN
    files = [file for file in read_catalogues() if file.patch_merging is not None]
    for file in files:
        if _has_hash(path, file, sha256):
            return Origin(certain=MergingForm(str(file.patch_merging), f"known by the hash of {file.path}"))
    for file in files:
        if path.name == Path(file.path).name and _is_as_wide(state_dict, file):
            form, other = str(file.patch_merging), "corrected" if file.patch_merging == "original" else "original"
            evidence = f"assumed from its name, {path.name}; --patch_merging {other} says otherwise"
            return Origin(likely=MergingForm(form, evidence))
    return Origin()


def _read_form(path: Path) -> object:
    """Return the form that the overlay of a committed model tells."""
    overlay = find_overlay(path) if path.parent.name == "models" and path.absolute().parents[2] == BUNDLES else None
    return read_config(overlay).get(HEADER) if overlay else None


def _has_hash(path: Path, file: PublicFile, sha256: str) -> bool:
    if file.hash_val is None:
        return False
    if file.hash_type == "sha256":
        return file.hash_val == sha256
    # another hash takes seconds for a large file: only where the size is right
    if file.size_mb is None or abs(path.stat().st_size / MEGABYTE - file.size_mb) > 1:
        return False
    with path.open("rb") as content:
        return hashlib.file_digest(content, file.hash_type).hexdigest() == file.hash_val


def _is_as_wide(state_dict: Mapping[str, Tensor], file: PublicFile) -> bool:
    """Tell whether the transformer has the features of the public one; a file may have its name and be another."""
    widths = {tensor.shape[0] for name, tensor in state_dict.items() if PATCH_EMBEDDING.fullmatch(name)}
    return file.network is not None and widths == {file.network.get("feature_size")}
