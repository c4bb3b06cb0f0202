# SPDX-License-Identifier: Apache-2.0
"""`train` and `evaluate`: a data set in, a model out, by the `train.yaml` and `evaluate.yaml` of a bundle."""

from __future__ import annotations

import json
import logging
import math
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.bundles import locate_bundle, locate_card, run_bundle
from tools.catalogue import read_catalogue
from tools.channels import list_channel_files
from tools.configs.files import RUN_OVERLAY, read_config
from tools.configs.models import write_overlay
from tools.datasets import read_datalist
from tools.datasets.datalists import locate_source, name_values
from tools.datasets.scans import make_absolute, name_case
from tools.datasets.sides import list_sided
from tools.errors import ConfigValueError, MissingFileError, spell_option
from tools.models import find_model
from tools.scans import ScanFacts, read_facts

logger = logging.getLogger(__name__)

CARD_NAME = "card.yaml"  # in the folder of a data set: what `tools/datasets/<card>.yaml` is for public ones
_LOOKED_AT = 12  # cases whose headers tell the spacing
_STEPS = 4000  # of a training without recipe: that of the committed models
_LARGEST_CROP, _CROP_STEP = 96, 32  # voxels; both Swin and ViT take multiples of 32
_AIR = {"CT": 0.0, "MR": -math.inf}  # crops without structure are centred on voxels above this


def prepare_training(
    dataset: str,
    run: str,
    bundle: str = "unetr_btcv",
    card: str | None = None,
    labels: Sequence[str] = (),
    pretrained: str | None = None,
    resume: bool = False,
    epochs: int | None = None,
    device: str = "auto",
    config_files: Sequence[str] = (),
) -> Callable[[], int]:
    """Return what trains a bundle on a data set, a function that returns the exit status.

    What the data are is said by `card`, else by `card.yaml` in the folder of the data set, else by its `dataset.json`
    and by `labels`; spacing, crop and intensities come from the scans then, and are written to `<run>/dataset.yaml`.

    Args:
        dataset: a folder with `dataset.json`, or with `imagesTr/` and `labelsTr/`.
        run: folder of the run.
        bundle: its name.
        card: name of a data set in `tools/datasets/`, or a file like one.
        labels: names of the classes 0, 1, 2, ... of the label files, the background first.
        pretrained: weights to start from: a file, a name that `weights list` has, or a model.
        resume: go on from `<run>/last.pt`.
        epochs: how many; None: what the recipe of the card says, or about 4,000 steps.
        device: auto, cpu, cuda, cuda:N.
        config_files: merged last.

    Raises:
        ToolsError: if the call cannot be understood; nothing is written then.
    """
    root, folder = locate_bundle(bundle), make_absolute(run)
    with spell_option("--dataset_dir", "DATASET"):
        cases, source = read_datalist(dataset, "training"), locate_source(dataset)
    own_card = (source if source.is_dir() else source.parent) / CARD_NAME
    if card is not None and labels:
        raise ConfigValueError("--labels", "them and --card", "one of the two", "leave out --labels")
    extra = [_require(make_absolute(file)) for file in config_files]
    for file in extra:
        read_config(file)  # that it is one
    files, values = [root / "configs" / "train.yaml"], None
    if card is not None:
        files += _list_overlays(root, _require(make_absolute(card)) if card.endswith(".yaml") else locate_card(card))
    elif own_card.is_file() and not labels:
        files += _list_overlays(root, own_card)
    else:
        values = describe_dataset(source, cases, labels)
        files.append(folder / "dataset.yaml")
    overrides: dict[str, Any] = {"dataset_dir": source, "output_dir": folder}
    if pretrained is not None:
        overrides["pretrained"] = find_weights(pretrained, bundle)
    if resume:
        overrides["resume"] = True
    elif (folder / "last.pt").is_file():
        remedy = "give --resume to go on with it, or another folder"
        raise ConfigValueError("--output", f"{folder}, which holds a training", "a folder of its own", remedy)
    if epochs is not None:
        overrides |= {"epochs": epochs} | _scale_intervals(epochs)
    if device != "auto":
        overrides["device"] = device

    def go() -> int:
        if values is not None and not (resume and (folder / "dataset.yaml").is_file()):
            head = f"What {source} is, read from its scans. Corrected, it is a card for --card."
            write_overlay(folder / "dataset.yaml", values, head)
            logger.info("%s says what the data are: %s", folder / "dataset.yaml", ", ".join(values["labels"]))
        status = run_bundle([*files, *extra], overrides, folder=root)
        if not status:
            logger.info("%s", describe_run(folder))
        return status

    return go


def describe_run(folder: Path) -> str:
    """Return what a training reached, and the line that uses it."""
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    best = record.get("best")
    lines = (
        [f"best Dice      {best['dice']:.4f} in epoch {best['epoch']:.0f} of {len(record['epochs'])}"] if best else []
    )
    place = shlex.quote(str(folder))
    lines += [
        f"picture        {folder / 'learning_curve.png'}",
        f"model          {folder / RUN_OVERLAY}",
        f"segment        voxseg segment -i SCAN -o FOLDER -m {place}",
    ]
    return "\n".join(["", *lines])


def prepare_evaluation(
    model: str, dataset: str, output: str | None = None, device: str = "auto", mirroring: bool = False
) -> Callable[[], int]:
    """Return what measures the Dice of a model on the validation list of a data set.

    Args:
        model: its name or place.
        dataset: as for a training.
        output: folder of `evaluation.json`; None: `evaluation` beside the weights of a training, else in `runs`.
        device: auto, cpu, cuda, cuda:N.
        mirroring: average over the scan and its mirror images.

    Raises:
        ToolsError: if the call cannot be understood; nothing is written then.
    """
    chosen = find_model(model)
    values = chosen.config | ({} if chosen.overlay is None else read_config(chosen.overlay))
    with spell_option("--dataset_dir", "DATASET"):
        read_datalist(dataset, "validation", values.get("validation_cases") or ())
    is_run = chosen.overlay is not None and chosen.overlay.name == RUN_OVERLAY
    own = Path("runs") / "evaluation" / chosen.bundle.name / (chosen.overlay.stem if chosen.overlay else "")
    default = chosen.checkpoint.parent / "evaluation" if is_run else own
    overrides: dict[str, Any] = {
        "dataset_dir": locate_source(dataset),
        "output_dir": make_absolute(output or default),
        **chosen.overrides,
    }
    if mirroring:
        overrides["mirroring"] = True
    if device != "auto":
        overrides["device"] = device
    return lambda: run_bundle(chosen.list_configs("train", "evaluate"), overrides, folder=chosen.bundle)


def describe_dataset(source: Path, cases: Sequence[Mapping[str, str]], labels: Sequence[str] = ()) -> dict[str, Any]:
    """Return the overlay of a data set without a card: names from its `dataset.json`, the rest from its scans.

    Args:
        source: the folder or its JSON file.
        cases: entries `{"image": path, "label": path}`.
        labels: names that replace those of the file.

    Raises:
        ConfigValueError: if nothing names the classes, or they are not numbered 0, 1, 2, ...
    """
    content = json.loads(source.read_text(encoding="utf-8-sig")) if source.is_file() else {}
    names = list(labels) or read_labels(source, content.get("labels"))
    step = max(1, len(cases) // _LOOKED_AT)
    facts = [read_facts(case["image"]) for case in cases[::step]]
    modality = _find_modality(content, facts)
    # three digits: a spacing of 4 microns stays one
    spacing = [float(f"{statistics.median(_orient(scan)[axis] for scan in facts):.3g}") for axis in range(3)]
    extents = [scan.extent_mm for scan in facts]
    sizes = [statistics.median(extent[axis] for extent in extents) / spacing[axis] for axis in range(3)]
    in_channels = math.prod(facts[0].shape[3:])
    if name_case(cases[0]["label"]) != name_case(cases[0]["image"]):  # x belongs to x_0000, x_0001, ...
        in_channels *= len(list_channel_files(cases[0]["image"]))
    window = {"_target_": "ScaleIntensityRanged", "keys": "image", "b_min": 0.0, "b_max": 1.0, "clip": True}
    intensity = {
        "CT": window | {"a_min": -175, "a_max": 250},  # HU, that of BTCV: soft tissue
        "MR": {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": in_channels > 1},
    }[modality]
    return {
        "card": {
            "title": str(content.get("name") or source.parent.name if source.is_file() else source.name),
            "modality": modality,
            "licence": str(content.get("licence") or content.get("license") or "not stated"),
            "source": str(content.get("reference") or "not stated"),
            "citation": "not stated",
            "extent_mm": [
                [math.floor(min(axis)) for axis in zip(*extents, strict=True)],
                [math.ceil(max(axis)) for axis in zip(*extents, strict=True)],
            ],
        },
        "labels": names,
        "label_map": {value: value for value in range(len(names))},
        "validation_cases": [],
        "in_channels": in_channels,
        **({"mirrored": None} if list_sided(names) else {}),  # for its owner to say
        "orientation": "RAS",
        "pixdim": spacing,
        "roi_size": [min(_LARGEST_CROP, math.ceil(size / _CROP_STEP) * _CROP_STEP) for size in sizes],
        "intensity": [intensity],
        "foreground_crop": [],
        "sample_above": _AIR[modality],
        "epochs": (epochs := max(1, math.ceil(_STEPS / max(1, len(cases))))),
        **_scale_intervals(epochs),
    }


def read_labels(source: Path, listed: Any) -> list[str]:
    """Return the names of the classes by their values, as MSD (value: name) and nnU-Net (name: value) write them.

    Raises:
        ConfigValueError: if there are none, or the values are not 0, 1, 2, ...
    """
    remedy = "give --labels background FIRST SECOND ..., the names of the values 0, 1, 2, ..."
    if not isinstance(listed, Mapping) or not listed:
        raise ConfigValueError(source, "no names of its labels", "them in dataset.json or on the command line", remedy)
    named = name_values(listed)
    if len(named) < len(listed):
        raise ConfigValueError(source, f"the labels {dict(listed)}", "a whole number for each", remedy)
    if sorted(named) != list(range(len(named))):
        found, wanted = f"the label values {', '.join(map(str, sorted(named)))}", f"0 to {len(named) - 1}"
        raise ConfigValueError(source, found, wanted, "write a card with label_map, see tools/datasets")
    return [named[value] for value in sorted(named)]


def find_weights(name: str, bundle: str) -> Path:
    """Return the file of weights that a name or path means.

    Raises:
        ConfigValueError: if there is none.
        MissingFileError: if they are public ones that are not fetched yet.
    """
    path = make_absolute(name)
    if path.is_file():
        return path
    public = {file.name: file for file in read_catalogue(bundle)}
    if name in public:
        places = [public[name].target]
        if (converted := public[name].converted) is not None:
            places.insert(0, public[name].bundle / converted)
        for place in places:
            if place.is_file():
                return place
        remedy = f"fetch them: voxseg weights fetch {bundle} --name {name}"
        raise MissingFileError(places[0], "no such file", f"the public weights {name}", remedy)
    try:
        return find_model(name, "--pretrained").checkpoint
    except ConfigValueError as error:
        wanted = f"a file, a model, or one of the public weights {', '.join(public)}"
        raise ConfigValueError("--pretrained", repr(name), wanted, error.remedy) from error


def _list_overlays(root: Path, card: Path) -> list[Path]:
    """Return a card and the bundle's recipe for it, if there is one."""
    name = (read_config(card).get("card") or {}).get("name")
    recipe = root / "configs" / "recipes" / f"{name}.yaml"
    return [card, recipe] if recipe.is_file() else [card]


def _scale_intervals(epochs: int) -> dict[str, int]:
    """Return how often is validated and saved, and how long the warm-up is, in proportion to the epochs."""
    return {
        "val_interval": max(1, epochs // 10),
        "checkpoint_interval": max(1, epochs // 50),
        "warmup_epochs": max(1, epochs // 50),
    }


def _orient(scan: ScanFacts) -> list[float]:
    """Return the spacing to the right, front and head."""
    axes = [next(i for i, pair in enumerate(("LR", "PA", "IS")) if letter in pair) for letter in scan.orientation]
    spacing = [0.0] * 3
    for axis, length in zip(axes, scan.spacing_mm, strict=True):
        spacing[axis] = length
    return spacing


def _find_modality(content: Mapping[str, Any], facts: Sequence[ScanFacts]) -> str:
    """Return CT or MR, by what `dataset.json` says (MSD: modality, nnU-Net: channel_names), else by the intensities."""
    for key in ("modality", "channel_names"):
        said = content.get(key)
        words = list(said.values()) if isinstance(said, Mapping) else [said]
        if words and isinstance(words[0], str):
            return "CT" if words[0].strip().upper().startswith("CT") else "MR"
    kinds = [scan.modality for scan in facts]
    return max(set(kinds), key=kinds.count)


def _require(path: Path) -> Path:
    if not path.is_file():
        raise MissingFileError(path, "no such file", "a config file", "correct the path")
    return path
