# SPDX-License-Identifier: Apache-2.0
"""How well a Swin transformer's patch merging is told from its weights: many small networks, trained in both forms.

    python -m tools.studies.merging_forms train --dataset_dir Task04_Hippocampus --out runs/merging_forms.json
    python -m tools.studies.merging_forms summarize runs/merging_forms.json

Each network is trained by itself on crops of the data set, with or without its labels. After some steps the distances
between the blocks of its reductions are written, which is all that `tools.weights.merging_numbers` looks at.
The file is written after each network; a second start goes on where the first one ended.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn

from tools.datasets import read_datalist
from tools.errors import ConfigValueError, MissingFileError, report_plainly
from tools.files import write_json
from tools.hardware import describe_hardware
from tools.networks import ScriptableSwinUNETR
from tools.networks.patch_merging import choose_form
from tools.pretraining import ProxyTaskLoss, ProxyTasks, SwinSSL, SwinUNETREncoder, VoCo, VolumeContrastLoss
from tools.pretraining.volume_crops import VolumeCrops
from tools.tables import format_markdown
from tools.weights.merging_numbers import judge_distances, measure_distances

logger = logging.getLogger(__name__)

CROP = (64, 32, 32)  # the smallest one with two tokens in the deepest map
GRID, GRID_CROP = (2, 1, 1), (32, 32, 64)  # of the volume contrast: base crops, beside two random ones
FORMS = ("original", "corrected")
STEPS = (50, 100)  # after which the blocks are measured
LEARNING_RATES = (2e-3, 1e-3, 3e-3)  # of the seeds 0, 1, 2, 0, ...
WEIGHT_DECAYS = (1e-5, 1e-2, 1e-1, 1e-3)
OPTIONS: dict[str, Any] = {"feature_size": 12, "window_size": 4}


def train(
    dataset_dir: str,
    out: str,
    kinds: Sequence[str] | str = ("segmentation", "proxy_tasks", "segmentation_v2"),
    seeds: int | Sequence[int] = 20,
    steps: Sequence[int] | int = STEPS,
    threads: int = 1,
) -> None:
    """Train the networks that the file does not have yet.

    Args:
        dataset_dir: a labelled data set of MR, for its training cases.
        out: JSON file.
        kinds: of the networks, of `KINDS`.
        seeds: how many, from 0, or which ones.
        steps: after which the blocks are measured; training ends with the last.
        threads: of the processor.
    """
    torch.set_num_threads(threads)
    path = Path(out)
    records = _read_networks(path) if path.is_file() else []
    numbers = range(seeds) if isinstance(seeds, int) else seeds
    names = [kinds] if isinstance(kinds, str) else list(kinds)
    measured = [steps] if isinstance(steps, int) else list(steps)
    scans = read_scans(dataset_dir)
    for seed, kind, form in product(numbers, names, FORMS):
        if any((entry["kind"], entry["form"], entry["seed"]) == (kind, form, seed) for entry in records):
            continue
        start = time.monotonic()
        record = {"kind": kind, "form": form, "seed": seed, **train_network(kind, form, seed, scans, measured)}
        records.append(record | {"seconds": round(time.monotonic() - start, 1)})
        write_json(path, {"hardware": describe_hardware(), "torch": torch.__version__, "networks": records})
        logger.info("%s, %s, seed %d: %.0f s", kind, form, seed, records[-1]["seconds"])


def summarize(path: str | Path) -> str:
    """Return a Markdown table: how many networks of each kind are told rightly, wrongly and not at all, by steps.

    Raises:
        MissingFileError: if there is no such file.
        ConfigValueError: if it is no result of `train`.
    """
    records = _read_networks(Path(path))
    counts: dict[tuple[str, str, int], Counter[str]] = {}
    for entry in records:
        for steps, distances in entry["blocks"].items():
            verdict = judge_distances(distances)
            told = "undecided" if verdict.form is None else ("right" if verdict.form == entry["form"] else "wrong")
            key = (entry["kind"], entry["form"], int(steps))
            counts.setdefault(key, Counter())[told] += 1
    rows = [
        (*key, count.total(), count["right"], count["undecided"], count["wrong"])
        for key, count in sorted(counts.items(), key=lambda item: (item[0][0], item[0][2], item[0][1]))
    ]
    header = ["network", "trained as", "steps", "networks", "right", "undecided", "wrong"]
    return format_markdown(header, rows, num_texts=2)


def _read_networks(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise MissingFileError(path, "no such file", "the results of `train`", "correct the path")
    try:
        networks: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["networks"]
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigValueError(path, f"no networks ({error})", "the results of `train`", "give another file") from error
    return networks


def read_scans(dataset_dir: str) -> list[tuple[Tensor, Tensor]]:
    """Return the training cases as images of mean 0 and deviation 1 and labels, each `(1, X, Y, Z)`."""
    scans = []
    for case in read_datalist(dataset_dir, "training"):
        image, label = (np.asarray(nib.load(case[key]).dataobj, np.float32)[None] for key in ("image", "label"))
        scans.append((torch.from_numpy((image - image.mean()) / image.std()), torch.from_numpy(label)))
    return scans


def train_network(
    kind: str, form: str, seed: int, scans: Sequence[tuple[Tensor, Tensor]], steps: Sequence[int]
) -> dict[str, Any]:
    """Train one network and return the measures of its blocks by the number of steps."""
    torch.manual_seed(seed)
    network, losses = KINDS[kind](seed, scans)
    choose_form(network, form)
    network.to(memory_format=torch.channels_last_3d)
    rate, decay = LEARNING_RATES[seed % len(LEARNING_RATES)], WEIGHT_DECAYS[seed % len(WEIGHT_DECAYS)]
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], rate, weight_decay=decay)
    blocks = {"0": measure_distances(network.state_dict())}
    last = 0.0
    for step in range(1, max(steps) + 1):
        optimizer.zero_grad()
        loss = next(losses)
        loss.backward()
        optimizer.step()
        last = float(loss)
        if step in steps:
            blocks[str(step)] = measure_distances(network.state_dict())
    return {"learning_rate": rate, "weight_decay": decay, "loss": round(last, 4), "blocks": blocks}


def crop(scan: tuple[Tensor, Tensor], size: Sequence[int], generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return a random crop of a scan and its label; what lies outside of the scan is 0."""
    cut = []
    for extent, voxels in zip(scan[0].shape[1:], size, strict=True):
        start = int(generator.integers(min(0, extent - voxels), max(0, extent - voxels) + 1))
        cut.append((start, voxels))
    results = []
    for tensor in scan:
        piece = tensor.new_zeros(1, *size)
        source = tuple(slice(max(0, start), start + voxels) for start, voxels in cut)
        found = tensor[(slice(None), *source)]
        target = tuple(slice(max(0, -s), max(0, -s) + n) for (s, _), n in zip(cut, found.shape[1:], strict=True))
        piece[(slice(None), *target)] = found
        results.append(piece)
    return results[0], results[1]


def draw(scans: Sequence[tuple[Tensor, Tensor]], size: Sequence[int], seed: int, batch: int) -> Iterator[list[Tensor]]:
    """Yield batches of random crops `(B, 1, X, Y, Z)`, images and labels."""
    generator = np.random.default_rng(seed)
    while True:
        chosen = generator.choice(len(scans), batch, replace=False)
        crops = [crop(scans[int(index)], size, generator) for index in chosen]
        yield [torch.stack(side).to(memory_format=torch.channels_last_3d) for side in zip(*crops, strict=True)]


Losses = tuple[nn.Module, Iterator[Tensor]]


def make_segmentation(seed: int, scans: Sequence[tuple[Tensor, Tensor]], use_v2: bool = False) -> Losses:
    """Return a Swin UNETR and its losses on labelled crops."""
    network = ScriptableSwinUNETR(CROP, 1, 3, use_v2=use_v2, **OPTIONS)
    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    return network, (criterion(network(image), label) for image, label in draw(scans, CROP, seed, 1))


def make_segmentation_v2(seed: int, scans: Sequence[tuple[Tensor, Tensor]]) -> Losses:
    """Return a Swin UNETR v2 and its losses on labelled crops."""
    return make_segmentation(seed, scans, use_v2=True)


def make_proxy_tasks(seed: int, scans: Sequence[tuple[Tensor, Tensor]]) -> Losses:
    """Return Swin UNETR's pre-training and its losses on crops without labels."""
    network, tasks, criterion = SwinSSL(1, CROP, **OPTIONS), ProxyTasks(CROP, fill_range="crop"), ProxyTaskLoss()

    def iterate() -> Iterator[Tensor]:
        for image, _ in draw(scans, CROP, seed, 1):
            views, targets = tasks({"image": image})
            yield criterion(network(views), targets)

    return network, iterate()


def make_volume_contrast(seed: int, scans: Sequence[tuple[Tensor, Tensor]]) -> Losses:
    """Return VoCo's pre-training of the extension and its losses on volumes without labels."""
    cutter = VolumeCrops(GRID_CROP, GRID)
    network, criterion = VoCo(SwinUNETREncoder(1, GRID_CROP, **OPTIONS)), VolumeContrastLoss()

    def iterate() -> Iterator[Tensor]:
        for image, _ in draw(scans, cutter.volume_size, seed, 2):
            views, overlap = cutter({"image": image})
            yield criterion(network(views), overlap)

    return network, iterate()


KINDS: Mapping[str, Callable[[int, Sequence[tuple[Tensor, Tensor]]], Losses]] = {
    "segmentation": make_segmentation,
    "segmentation_v2": make_segmentation_v2,
    "proxy_tasks": make_proxy_tasks,
    "volume_contrast": make_volume_contrast,
}


if __name__ == "__main__":
    report_plainly()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    fire.Fire({"train": train, "summarize": lambda path: f"\n{summarize(path)}"})
