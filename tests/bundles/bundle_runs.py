# SPDX-License-Identifier: Apache-2.0
"""What goes into the runs of the tests, small scans, and what comes out of them: records, curves and weights."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SHAPE = (36, 34, 66)


def make_image(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Return a ball in noise, in HU, of one channel or, with a fourth axis, of several."""
    generator = np.random.default_rng(seed)
    distance = np.linalg.norm((np.indices(shape[:3]).T - generator.uniform(8, 24, 3)).T, axis=0)
    ball = np.where(distance < 10, 100.0, -200.0).reshape(*shape[:3], *(1 for _ in shape[3:]))
    return ball + generator.normal(0, 20, shape)


def write_scan(path: Path, image: np.ndarray) -> Path:
    """Write voxels of 1 x 1 x 2 mm."""
    path.parent.mkdir(exist_ok=True, parents=True)
    nib.save(nib.Nifti1Image(image, np.diag([-1.0, 1.0, 2.0, 1.0])), path)
    return path


def write_bad_scans(folder: Path) -> list[str]:
    """Write one scan with holes, which can be used, and four that cannot; return what is said of these."""
    holes = make_image(5).astype(np.float32)
    holes[:4] = np.nan
    write_scan(folder / "holes.nii.gz", holes)
    write_scan(folder / "nothing.nii.gz", np.full_like(holes, np.nan))
    write_scan(folder / "constant.nii.gz", np.full(SHAPE, -1024, np.int16))
    cut = write_scan(folder / "cut.nii.gz", holes)
    cut.write_bytes(cut.read_bytes()[:-300])
    (folder / "page.nii").write_text("<html>404</html>")
    return [
        "constant.nii.gz: found the same value -1024",
        "cut.nii.gz: found that the file ends early",
        "nothing.nii.gz: found 80784 NaN",
        "page.nii: found no NIfTI header",
    ]


def read_epochs(folder: Path) -> list[dict[str, float]]:
    """Return the entries of a finished run, without what the clock says."""
    epochs = json.loads((folder / "training.json").read_text())["epochs"]
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in epochs]


def read_events(folder: Path) -> dict[str, list[float]]:
    """Return the curves that TensorBoard shows."""
    scalars: dict[str, list[float]] = {}
    for file in folder.glob("events*"):
        events = EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            scalars[tag] = [event.value for event in events.Scalars(tag)]
    return scalars


def read_weights(path: Path, *prefixes: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint's network whose names start in one of these ways."""
    state = torch.load(path, weights_only=True)["model"]
    return {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}
