# SPDX-License-Identifier: Apache-2.0
"""Phantoms: small NIfTI scans with any grid, so that tests need no data; and one seed for all random numbers."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import costs
import nibabel as nib
import numpy as np
import pytest
from processes import run_as_library

from tools import bundles

AFFINES = {
    "RAS": np.array([[1.5, 0, 0, -17], [0, 1.5, 0, 8], [0, 0, 2, -30], [0, 0, 0, 1]]),
    "LPI": np.array([[-1.2, 0, 0, 40], [0, -0.9, 0, 21], [0, 0, -2.2, 11], [0, 0, 0, 1]]),
    # 35° about x after 20° about z, voxels of 0.8 × 2.6 × 1.1 mm along the axes x, z, y
    "oblique": np.array(
        [
            [0.751754, 0.0, -0.376222, 12.5],
            [0.224133, -1.491299, 0.846726, -40.25],
            [0.15694, 2.129795, 0.592884, 7.75],
            [0, 0, 0, 1],
        ]
    ),
}

ROOM_BYTES = 4e9  # several times what the suite has at once: passed tests keep nothing
# glibc keeps freed memory for what is asked for next, in place of asking the kernel: a tenth of the suite's time
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_TOP_PAD_": "67108864"}

WritePhantom = Callable[..., Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--costs FILE`."""
    parser.addoption("--costs", metavar="FILE", help="append the seconds of the processor of each test: tests/costs.py")


def pytest_configure(config: pytest.Config) -> None:
    """Keep temporary files in memory where there is room for them, and count what tests do."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > ROOM_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))
    os.environ.update({name: value for name, value in MALLOC.items() if name not in os.environ})  # of the workers
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):  # where tests are run
        costs.install()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Measure a test with its fixtures."""
    return (yield from costs.watch_protocol(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Hold a test to its budget."""
    return (yield from costs.watch_call(item))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the full products, of which samples stay, unless `-m` speaks of them: they are for releases."""
    if "exhaustive" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("exhaustive")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes by their number: packed ones hold the time, and all processes must give a test the same name."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch  # here, so that the process that only hands out tests does without

    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    """Let a test draw the same numbers alone and after any others."""
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def commands_in_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands that the library starts run in forks, which need not import everything anew."""
    monkeypatch.setattr(bundles, "subprocess", SimpleNamespace(run=run_as_library, STDOUT=subprocess.STDOUT))


@pytest.fixture
def write_phantom(tmp_path: Path) -> WritePhantom:
    """Give a function that writes a CT-like phantom: a bright ball and a dark one in noise, -1000 to 400 HU."""

    def write(
        name: str = "scan.nii.gz",
        shape: tuple[int, ...] = (24, 22, 20),
        grid: str = "RAS",
        dtype: type = np.int16,
        seed: int = 0,
        codes: tuple[int, int] = (1, 1),
        units: tuple[str, str] = ("mm", "sec"),
        slope_inter: tuple[float, float] | None = None,
        kind: type[nib.Nifti1Image] = nib.Nifti1Image,
    ) -> Path:
        generator = np.random.default_rng(seed)
        points = np.indices(shape[:3]).reshape(3, -1).T / np.array(shape[:3])
        values = generator.normal(0, 40, len(points))
        values[np.linalg.norm(points - generator.uniform(0.3, 0.7, 3), axis=1) < 0.25] += 300
        values[np.linalg.norm(points - generator.uniform(0.2, 0.8, 3), axis=1) < 0.2] -= 500
        affine = AFFINES[grid]
        image = kind(values.clip(-1000, 400).reshape(shape).astype(dtype), affine)
        image.set_data_dtype(dtype)
        if slope_inter is not None:
            image.header.set_slope_inter(*slope_inter)
        image.set_qform(affine, codes[0])
        image.set_sform(affine, codes[1])
        image.header.set_xyzt_units(*units)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)
        return path

    return write
