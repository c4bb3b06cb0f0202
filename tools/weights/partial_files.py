# SPDX-License-Identifier: Apache-2.0
"""Files that arrive piece by piece: kept beside their place until they are whole, for one process at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tools.errors import DownloadError
from tools.files import write_json

logger = logging.getLogger(__name__)


class PartialFile:
    """The bytes of a file that have arrived, and a note beside them of what they are the beginning; for one process.

    The lock is on the part itself, through which alone it is written: no lock file is left over, and the system
    ends the lock with the process, however that ends. Other processes wait for it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.file_path = path, path.with_name(f".{path.name}.part")
        self.note_path = path.with_name(f".{path.name}.part.json")

    def __enter__(self) -> PartialFile:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self._file = self.file_path.open("ab", buffering=0)  # nothing is lost when the program dies
            _lock(self._file, self.path)
            if self._is_current():
                return self
            self._file.close()  # who held the lock has renamed or removed this file

    def __exit__(self, *_: object) -> None:
        if not self.measure() and self._is_current():
            self.clear()
            self.file_path.unlink()
        self._file.close()

    def _is_current(self) -> bool:
        try:
            named, held = self.file_path.stat(), os.fstat(self._file.fileno())
        except FileNotFoundError:
            return False
        return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)

    def measure(self) -> int:
        """Return the number of bytes that have arrived."""
        return os.fstat(self._file.fileno()).st_size

    def read_note(self, url: str) -> tuple[str | None, int | None]:
        """Return validator and total length if the bytes are the beginning of what `url` gave, else (None, None)."""
        try:
            note = json.loads(self.note_path.read_text(encoding="utf-8"))
            return (note["validator"], note["total_bytes"]) if note["url"] == url else (None, None)
        except (FileNotFoundError, ValueError, LookupError, TypeError):  # none, or not ours
            return None, None

    def clear(self) -> None:
        """Forget all bytes."""
        self._file.truncate(0)
        self.note_path.unlink(missing_ok=True)

    def begin(self, url: str, validator: str | None, total_bytes: int | None) -> None:
        """Forget all bytes and note what the next ones are the beginning of."""
        self.clear()  # first: old bytes under a new note would be taken for the beginning of the new file
        write_json(self.note_path, {"url": url, "validator": validator, "total_bytes": total_bytes})

    def append(self, chunks: Iterator[bytes], total_bytes: int | None) -> None:
        """Add bytes, with a progress bar."""
        start = self.measure()
        missing = None if total_bytes is None else total_bytes - start
        interval_s = 0.5 if sys.stderr.isatty() else 30
        bar = tqdm(None, self.path.name, total_bytes, initial=start, unit="B", unit_scale=True, mininterval=interval_s)
        with bar, explain_disk_errors(self.path, missing):
            if missing is not None and missing > shutil.disk_usage(self.path.parent).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for chunk in chunks:
                rest = memoryview(chunk)
                while rest:  # without a buffer, a nearly full disk takes a piece of it
                    rest = rest[self._file.write(rest) :]
                bar.update(len(chunk))

    def publish(self) -> None:
        """Give the complete file its name."""
        os.fsync(self._file.fileno())
        self.file_path.replace(self.path)
        self.note_path.unlink(missing_ok=True)


def _lock(file: Any, path: Path) -> None:
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("%s is being downloaded by another process: waiting for it", path)
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
            raise
        logger.warning("%s: this file system has no locks, so download it only once at a time", path)


@contextlib.contextmanager
def explain_disk_errors(path: Path, missing_bytes: int | None = None) -> Iterator[None]:
    """Turn an `OSError` of the block into a `DownloadError` that tells what the disk lacks.

    Args:
        path: the file to be made.
        missing_bytes: what of it has yet to arrive, if known.
    """
    try:
        yield
    except OSError as error:
        found, wanted = f"no access ({error.strerror or error})", "a file that can be made"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            folder = next(folder for folder in path.absolute().parents if folder.exists())
            found = f"{shutil.disk_usage(folder).free} bytes free"
            wanted = "room for the file" if missing_bytes is None else f"{missing_bytes} bytes"
        remedy = "make room there or correct the permissions, or choose another folder, and run the same command again"
        raise DownloadError(path, found, wanted, remedy) from error
