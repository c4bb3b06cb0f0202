# SPDX-License-Identifier: Apache-2.0
"""Files that are either whole or not there: atomic writing and content hashes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it there when the block ends well, remove it when it does not.

    The name keeps the suffixes of `path`, so that writers which choose a format by name still do. The data are
    flushed to disk before the move: after a power cut the old file or the new one is there, never half of one.

    Args:
        path: the final name; missing parent folders are made.

    Raises:
        OSError: if the folder cannot be written, or the block wrote nothing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # not from `random`, which a seeded run makes the same in each process
    temporary = path.with_name(f".partial-{secrets.token_hex(8)}-{path.name}")
    temporary.touch()
    mode = stat.S_IMODE(temporary.stat().st_mode)
    temporary.unlink()
    try:
        yield temporary
        # safetensors makes private files (0600), as tempfile does; a result should be as readable as any other file
        temporary.chmod(mode)
        with temporary.open("r+b") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically; NaN and infinity, which JSON lacks, become null."""
    with write_atomically(path) as temporary:
        text = json.dumps(_nullify(content), indent=2, ensure_ascii=False, allow_nan=False)
        # a file name need not be UTF-8
        temporary.write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")


def compute_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _nullify(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _nullify(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_nullify(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
