# SPDX-License-Identifier: Apache-2.0
"""Random damage to NIfTI files: each is read rightly or refused with a sentence, in time and in little memory.

    python tests/fuzz_scans.py --headers 20000 --truncations 5000 --flips 2000 --seed 0

A sample is part of the suite (tests/scans/test_fuzz.py).
"""

from __future__ import annotations

import argparse
import gzip
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import nibabel as nib
import numpy as np
from monai.transforms import Compose, EnsureChannelFirstd, Orientationd

from tools.errors import ToolsError
from tools.scans import read_facts
from tools.transforms import LoadScand

SHAPE = (8, 7, 6)
LIMIT_S = 5
LIMIT_BYTES = 2 << 30  # beyond what the imports take
CHAIN = Compose([LoadScand("image"), EnsureChannelFirstd("image"), Orientationd("image", axcodes="RAS", labels=None)])


def make_file() -> bytes:
    """Return an oblique scan of int16 with both forms, slope and intercept."""
    affine = np.array([[0.8, -0.6, 0, 3], [0.6, 0.8, 0, -7], [0, 0, 2.5, 11], [0, 0, 0, 1.0]])
    voxels = np.random.default_rng(1).integers(-1000, 1000, SHAPE).astype(np.int16)
    image = nib.Nifti1Image(voxels, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    return image.to_bytes()


def damage_headers(source: bytes, count: int, generator: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Yield files with one to four fields of the header replaced by random bytes or by telling numbers."""
    fields = nib.Nifti1Header.template_dtype.fields
    telling = [0, -1, 1, 2, 0.0, np.nan, np.inf, 1e30, 1e-30, 32767, -32768, 256]
    for _ in range(count):
        data = bytearray(source)
        for name in generator.choice(list(fields), generator.integers(1, 5)):
            dtype, offset = fields[name][:2]
            if generator.random() < 0.5:
                data[offset : offset + dtype.itemsize] = generator.bytes(dtype.itemsize)
            else:
                base = dtype.subdtype[0] if dtype.subdtype else dtype
                if base.kind in "iuf":
                    values = np.frombuffer(bytes(data[offset : offset + dtype.itemsize]), base).copy()
                    with np.errstate(all="ignore"), warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        number = np.asarray(telling[generator.integers(len(telling))], np.float64).astype(base)
                    values[generator.integers(values.size)] = number
                    data[offset : offset + dtype.itemsize] = values.tobytes()
        yield ".nii", bytes(data)


def truncate(source: bytes, count: int, generator: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Yield the first bytes of a plain and of a packed file."""
    packed = gzip.compress(source)
    for number in range(count):
        suffix, data = (".nii", source) if number % 2 else (".nii.gz", packed)
        yield suffix, data[: generator.integers(len(data))]


def flip_bits(source: bytes, count: int, generator: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Yield packed files with one bit changed."""
    packed = gzip.compress(source)
    for _ in range(count):
        data = bytearray(packed)
        data[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
        yield ".nii.gz", bytes(data)


def read(path: Path) -> str:
    """Return `read` or `refused`; anything else is raised."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {LIMIT_S} s")

    signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(LIMIT_S)
    try:
        read_facts(path)
        CHAIN({"image": str(path)})
    except ToolsError:
        return "refused"
    except RuntimeError as error:  # MONAI wraps what a transform raises
        if isinstance(error.__cause__, ToolsError):
            return "refused"
        raise
    finally:
        signal.alarm(0)
    return "read"


def fuzz(files: Iterator[tuple[str, bytes]], expected: np.ndarray | None = None) -> tuple[Counter, list[str]]:
    """Return how many files were read and refused, and what went wrong with the others."""
    counts: Counter[str] = Counter()
    faults = []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for suffix, data in files:
            path = Path(folder) / f"scan{suffix}"
            path.write_bytes(data)
            try:
                outcome = read(path)
                if outcome == "read" and expected is not None:
                    found = CHAIN({"image": str(path)})["image"].numpy()
                    if not np.array_equal(found, expected):
                        outcome = "read wrongly"
            except BaseException as error:
                outcome = f"{type(error).__name__}: {str(error.__cause__ or error)[:200]}"
            counts[outcome if outcome in ("read", "refused") else "fault"] += 1
            if outcome not in ("read", "refused"):
                faults.append(outcome)
    return counts, faults


def main() -> int:
    """Fuzz and print; status 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, count in (("headers", 20_000), ("truncations", 5_000), ("flips", 2_000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=count)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, used + LIMIT_BYTES))
    source, generator = make_file(), np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "scan.nii").write_bytes(source)
        expected = CHAIN({"image": str(Path(folder) / "scan.nii")})["image"].numpy()
    status = 0
    for name, files, right in (
        ("headers", damage_headers(source, arguments.headers, generator), None),
        ("truncations", truncate(source, arguments.truncations, generator), expected),
        ("flips", flip_bits(source, arguments.flips, generator), expected),
    ):
        start = time.monotonic()
        counts, faults = fuzz(files, right)
        sys.stdout.write(f"{name}: {dict(counts)} in {time.monotonic() - start:.0f} s\n")
        for fault, number in Counter(faults).most_common(10):
            sys.stdout.write(f"    {number} x {fault}\n")
        status |= bool(faults)
    return status


if __name__ == "__main__":
    sys.exit(main())
