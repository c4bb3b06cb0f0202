# SPDX-License-Identifier: Apache-2.0
"""Tiny scans, good and bad, and what every message for a user has to be like."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tools.errors import ToolsError

AFFINE = np.diag([1.5, 1.5, 2, 1])


@pytest.fixture
def write_scan(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str = "scan.nii.gz", voxels: Any = None, affine: Any = AFFINE, kind: Any = nib.Nifti1Image) -> Path:
        voxels = np.arange(8 * 9 * 10, dtype=np.int16).reshape(8, 9, 10) if voxels is None else voxels
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        # nibabel looks at the suffix and cannot write every name that it can read
        plain = tmp_path / ("written.nii.gz" if name.lower().endswith(".gz") else "written.nii")
        nib.save(kind(voxels, affine, dtype=voxels.dtype), plain)
        return plain.rename(path)

    return write


@pytest.fixture
def patch_header(write_scan: Callable[..., Path]) -> Callable[..., Path]:
    def patch(offset: int, layout: str, *values: Any) -> Path:
        """Write a NIfTI-1 scan and overwrite header bytes, https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h."""
        path = write_scan("scan.nii")
        content = bytearray(path.read_bytes())
        struct.pack_into(layout, content, offset, *values)
        path.write_bytes(content)
        return path

    return patch


@pytest.fixture
def assert_readable() -> Callable[..., None]:
    def check(error: ToolsError, subject: object, found: str, remedy: str) -> None:
        text = str(error)
        assert text.startswith(f"{subject}: found "), text
        assert found in error.found, text
        assert remedy in error.remedy, text
        assert error.wanted, text
        assert text.endswith("."), text
        assert "\n" not in text, text

    return check
