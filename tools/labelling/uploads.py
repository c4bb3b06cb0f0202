# SPDX-License-Identifier: Apache-2.0
"""Uploaded scans and labels: read before they are kept, never beyond a size, whatever their headers promise."""

from __future__ import annotations

import gzip
import math
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from tools.checks import check_scan
from tools.errors import RequestError, UnreadableScanError
from tools.labelling.values import NAME_BYTES, count_bytes, shorten

# of MONAI Label's own list; its pictures and whole slides are no input of 3D networks
SUFFIXES = (".nii.gz", ".nii", ".nrrd")
# 2 GiB: a CT of 512 x 512 x 2000 voxels has 1 GiB, and deflate makes 2 MB of 2 GiB of zeros
SCAN_BYTES = 2 << 30
BLOCK_BYTES = 1 << 20
NRRD_HEADER_BYTES = 64 << 10
NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), 8),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), 8),
    "float": 4,
    "double": 8,
}
REMEDY = "save it again as .nii.gz"


class Upload(Protocol):
    """A file in a form, as Starlette has it."""

    filename: str | None
    file: IO[bytes]


def check_upload(subject: str, upload: Upload) -> None:
    """Raise unless an upload is a scan or label that can be read; its file stands at its beginning then.

    Raises:
        RequestError: if its name or size is not allowed, or the NRRD file points to another one.
        UnreadableScanError: if it is damaged, or no scan.
    """
    name = check_filename(subject, upload.filename)
    suffix = next(suffix for suffix in SUFFIXES if name.endswith(suffix))
    with tempfile.NamedTemporaryFile(suffix=suffix) as copy:
        upload.file.seek(0)
        shutil.copyfileobj(upload.file, copy)
        copy.flush()
        upload.file.seek(0)
        path = Path(copy.name)
        try:
            if suffix == ".nrrd":
                check_nrrd(path)
            else:
                _check_size(path)
                check_scan(path, num_channels=None)
        except (UnreadableScanError, RequestError) as error:
            raise type(error)(name, error.found, error.wanted, error.remedy) from error


def check_filename(subject: str, filename: str | None) -> str:
    """Return the last part of an upload's name, which must be that of a scan.

    3D Slicer sends the path that the file has on its machine; MONAI Label uses all suffixes of the last part.
    """
    name = PurePosixPath(filename or "").name
    if (
        not name.endswith(SUFFIXES)
        or name.startswith(".")
        or count_bytes(name) > NAME_BYTES
        or re.search(r"[\\\x00-\x1f\x7f]", name)
    ):
        found = f"the name {shorten(name)}"
        raise RequestError(subject, found, f"a file that ends in {', '.join(SUFFIXES)}", REMEDY)
    return name


def check_nrrd(path: Path) -> None:
    """Raise unless a NRRD file holds all of its voxels itself.

    Format: https://teem.sourceforge.net/nrrd/format.html

    Raises:
        RequestError: if it holds more than is allowed, or names another file, which readers would open.
        UnreadableScanError: if it is no NRRD file, or damaged.
    """
    with path.open("rb") as file:
        fields = _read_nrrd_header(path, file)
        kind, encoding = fields.get("type", ""), fields.get("encoding", "")
        sizes = fields.get("sizes", "").split()
        if kind not in NRRD_BYTES or encoding not in ("raw", "gzip", "gz") or not 3 <= len(sizes) <= 4:
            found = f"NRRD of type {kind!r}, encoding {encoding!r}, sizes {shorten(' '.join(sizes))}"
            raise UnreadableScanError(path, found, "3D or 4D numbers, raw or gzip", REMEDY)
        if not all(re.fullmatch(r"[1-9][0-9]{0,8}", size) for size in sizes):
            raise UnreadableScanError(path, f"the sizes {shorten(' '.join(sizes))}", "positive numbers", REMEDY)
        wanted = math.prod(map(int, sizes)) * NRRD_BYTES[kind]
        if wanted > SCAN_BYTES:
            raise _make_size_error(path, f"{wanted:,} bytes of voxels")
        found_bytes = _count(path, _inflate(file) if encoding != "raw" else _read_blocks(file))
    if found_bytes != wanted:
        raise UnreadableScanError(path, f"{found_bytes:,} bytes of voxels", f"{wanted:,}", REMEDY)


def _check_size(path: Path) -> None:
    """Raise `RequestError` if more than is allowed is in a file, packed or not; what is damaged is told later."""
    try:
        with path.open("rb") as file:
            packed = path.suffix == ".gz"
            _count(path, _read_blocks(gzip.GzipFile(fileobj=file) if packed else file))  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error):
        return


def _read_nrrd_header(path: Path, file: IO[bytes]) -> dict[str, str]:
    """Return the fields of a NRRD header; the file stands at the first byte behind it then.

    Readers differ in what ends a line, in how they take bytes that are no ASCII, and in whether `key:=value` is a
    field: so a word that makes one of them open another file is looked for in all of the header.
    """
    start = file.read(NRRD_HEADER_BYTES)
    end = re.search(rb"\n\r?\n", start)
    if end is None or not re.match(rb"NRRD000[1-5]\r?\n", start):
        raise UnreadableScanError(path, "no NRRD header", "a NRRD file", REMEDY)
    header = re.sub(rb"[^\x00-\x7f]", b"", start[: end.start()])
    if pointer := re.search(rb"data\s*file|(line|byte)\s*skip|[\x00-\x08\x0b\x0c\x0e-\x1f]", header, re.IGNORECASE):
        found = f"a header with {shorten(pointer[0].decode())}: the voxels lie elsewhere"
        raise RequestError(path, found, "voxels right behind the header", REMEDY)
    file.seek(end.end())
    lines = [line.partition(":") for line in header.decode().splitlines()[1:] if not line.startswith("#")]
    fields = [(field.strip(), value.strip()) for field, _, value in lines if not value.startswith("=")]
    names = [re.sub(r"[\s_]", "", field.lower()) for field, _ in fields]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UnreadableScanError(path, f"the field {shorten(twice)} twice in its header", "each field once", REMEDY)
    return dict(fields)


def _read_blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(BLOCK_BYTES):
        yield block


def _inflate(file: IO[bytes]) -> Iterator[bytes]:
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        while not inflater.eof and (packed := file.read(BLOCK_BYTES)):
            while packed and not inflater.eof:
                yield inflater.decompress(packed, BLOCK_BYTES)
                packed = inflater.unconsumed_tail
        yield inflater.flush()
    except zlib.error as error:
        raise UnreadableScanError(file.name, f"damaged data ({error})", "a whole NRRD file", REMEDY) from error


def _count(path: Path, blocks: Iterator[bytes]) -> int:
    total = 0
    for block in blocks:
        total += len(block)
        if total > SCAN_BYTES:
            raise _make_size_error(path, "more bytes when unpacked")
    return total


def _make_size_error(path: Path, found: str) -> RequestError:
    return RequestError(path, found, f"at most {SCAN_BYTES:,}", "crop or resample the scan")
