# SPDX-License-Identifier: Apache-2.0
"""Zip files whose bytes depend on nothing but what is in them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

from tools.files import compute_sha256, write_atomically

EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can tell


def write_archive(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a zip file and, beside it, `<name>.zip.sha256` as `sha256sum --check` reads it.

    Files stand in the order of their names, with the same time and rights, and are stored, not compressed: what
    compression gives depends on the version of zlib, and weights hardly shrink.

    Args:
        path: the zip file.
        files: content by name inside the archive.
    """
    with write_atomically(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system = 3  # Unix, also where this runs on another system
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name])
    with write_atomically(path.with_name(f"{path.name}.sha256")) as temporary:
        temporary.write_text(f"{compute_sha256(path)}  {path.name}\n", encoding="utf-8")
