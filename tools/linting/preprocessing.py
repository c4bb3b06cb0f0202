# SPDX-License-Identifier: Apache-2.0
"""Preparation of images: the same in inference as in training and validation, and the same network behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tools.linting.bundle import Bundle
from tools.linting.components import find_component
from tools.linting.configs import MergedConfig
from tools.linting.documents import SEPARATOR
from tools.linting.findings import Finding, Severity, show
from tools.linting.modules import ModuleFinder
from tools.linting.values import Text, evaluate, is_plain

# keys that mean the same in train and inference; by other values a network sees other images than it was trained on
SHARED = tuple(
    str.split(
        "num_classes in_channels orientation pixdim roi_size image_size intensity mirrored mirror_axes encoder "
        "decoder num_slices force_2d window_slices"
    )
)
CROPS = frozenset(
    str.split(
        "CropForegroundd SpatialPadd BorderPadd DivisiblePadd CenterSpatialCropd SpatialCropd ResizeWithPadOrCropd "
        "EnsureTyped ToTensord CopyItemsd DeleteItemsd SelectItemsd Lambdad ToDeviced CastToTyped"
    )
)
# in bundles of others, the arguments that decide what the network sees
DECISIVE: Mapping[str, tuple[str, ...]] = {
    "Spacingd": ("pixdim",),
    "PlainSpacingd": ("pixdim",),
    "Orientationd": ("axcodes",),
    "ScaleIntensityRanged": ("a_min", "a_max", "b_min", "b_max", "clip"),
    "NormalizeIntensityd": ("nonzero", "subtrahend", "divisor", "channel_wise"),
    "Resized": ("spatial_size",),
}
CHAINS = ("train#preprocessing", "train#dataset#transform", "validate#preprocessing", "validate#dataset#transform")
ONE = "correct the one that is wrong"


def check_preprocessing(bundle: Bundle) -> Iterator[Finding]:
    """Yield where inference prepares images in another way than training, or builds another network."""
    if bundle.own:
        for config in bundle.sets:
            yield from _check_axes(config)
    overlays = {config.documents[-1].name for config in bundle.choose("inference") if len(config.documents) > 1}
    for inference in bundle.choose("inference"):
        last = inference.documents[-1].name
        for other in bundle.sets:
            if other.kind == "pretrain" or _suffix(inference) != _suffix(other):
                continue
            # a base with bases, a model's overlay with itself over the other base
            if (
                (other.documents[-1].name == last)
                if last in overlays
                else (len(other.documents) == 1 and len(inference.documents) == 1)
            ):
                yield from _compare(inference, other, bundle)


def _check_axes(config: MergedConfig) -> Iterator[Finding]:
    """Yield sizes that are not given for each axis of a volume, or of a slice."""
    for key, count in (("pixdim", 3), ("roi_size", 3), ("image_size", 2)):
        value = evaluate(config, key)
        if key in config and is_plain(value) and not (isinstance(value, list) and len(value) == count):
            yield config.report(key, show(value), f"{count} numbers, one for each axis", "correct it")


def _suffix(config: MergedConfig) -> str:
    return config.documents[0].name.rpartition(".")[2]


def _compare(inference: MergedConfig, train: MergedConfig, bundle: Bundle) -> Iterator[Finding]:
    reported = False
    for key in SHARED:
        mine, theirs = evaluate(inference, key), evaluate(train, key)
        if key in inference and key in train and mine != theirs:
            reported = True
            yield inference.report(key, show(mine), f"{show(theirs)}, as in {train.title}", ONE)
    if bundle.own:
        yield from _compare_windows(inference, train)
    yield from _compare_networks(inference, train)
    chain = _list_steps(inference, "preprocessing", bundle.finder)
    if not chain:
        return
    for place in CHAINS:
        other = _list_steps(train, place, bundle.finder)
        if other and (
            place.endswith("preprocessing") or place.replace("dataset#transform", "preprocessing") not in train
        ):
            findings = list(_compare_chains(inference, chain, train, other, place, bundle))
            # a key that differs is told once, not again by each transform that refers to it
            yield from () if reported else findings


def _compare_networks(inference: MergedConfig, train: MergedConfig) -> Iterator[Finding]:
    mine, theirs = evaluate(inference, "network_def"), evaluate(train, "network_def")
    if not isinstance(mine, dict) or not isinstance(theirs, dict):
        return
    for key in [*mine, *(key for key in theirs if key not in mine)]:
        a, b = mine.get(key), theirs.get(key)
        raw = [config.get(f"network_def#{key}") for config in (inference, train)]
        if a == b or not (is_plain(a) and is_plain(b)) or (raw[0] == raw[1] and isinstance(raw[0], str)):
            continue
        if key not in mine:
            remedy = f"add {key}, or remove it there"
            yield inference.report("network_def", f"no {key}", f"{show(b)}, as in {train.title}", remedy)
        else:
            wanted = f"{show(b)}, as in {train.title}" if key in theirs else f"no {key}, as in {train.title}"
            yield inference.report(f"network_def#{key}", show(a), wanted, ONE)


def _compare_windows(inference: MergedConfig, train: MergedConfig) -> Iterator[Finding]:
    """Yield where the windows of validation and of inference differ; their overlap may, at a cost in accuracy."""
    mine, theirs = evaluate(inference, "window_inferer"), evaluate(train, "validate#window_inferer")
    if not isinstance(mine, dict) or not isinstance(theirs, dict):
        return
    for key in ("_target_", "roi_size", "overlap", "mode", "num_slices", "padding_mode", "sigma_scale"):
        a, b = mine.get(key), theirs.get(key)
        if a == b or key in SHARED or key in ("roi_size", "num_slices"):
            continue
        severity: Severity = "warning" if key == "overlap" else "error"
        place = "overlap" if key == "overlap" and "overlap" in inference else f"window_inferer#{key}"
        place = place if place in inference else "window_inferer"
        yield inference.report(place, show(a), f"{show(b)}, as the windows of {train.title}", ONE, severity)


def _list_steps(config: MergedConfig, place: str, finder: ModuleFinder) -> list[dict[str, Any]]:
    """Return the transforms of a chain that prepare the key `image`, reduced to it, without random ones and crops."""
    value = evaluate(config, place)
    steps = value.get("transforms") if isinstance(value, dict) else value
    kept = []
    for step in steps if isinstance(steps, list) else ():
        if not isinstance(step, dict) or not isinstance(step.get("_target_"), str):
            continue
        keys = step.get("keys")
        names = keys if isinstance(keys, list) else [keys]
        symbol = find_component(step["_target_"], finder)
        short = step["_target_"].rpartition(".")[2]
        if "image" not in names or symbol is None:
            continue
        if (
            short in CROPS
            or short.startswith("Rand")
            or symbol.is_a("Randomizable")
            or symbol.is_a("RandomizableTrait")
        ):
            continue
        position = names.index("image")
        reduced = {
            key: item[position] if _is_per_key(key, item, names) else item
            for key, item in step.items()
            if key != "keys"
        }
        kept.append({**reduced, "_target_": symbol.name})
    return kept


def _is_per_key(key: str, item: Any, names: list[Any]) -> bool:
    """Tell whether an argument has one value for each key; sizes and spacings have one for each axis instead."""
    axes = ("pixdim", "spatial_size", "roi_size", "axcodes", "a_min", "a_max", "b_min", "b_max")
    return key not in axes and isinstance(item, list) and len(item) == len(names)


def _compare_chains(
    inference: MergedConfig,
    mine: list[dict[str, Any]],
    train: MergedConfig,
    theirs: list[dict[str, Any]],
    place: str,
    bundle: Bundle,
) -> Iterator[Finding]:
    source = f"{place} of {train.title}"
    if not bundle.own:
        mine, theirs = ([s for s in steps if s["_target_"].rpartition(".")[2] in DECISIVE] for steps in (mine, theirs))
    names = [[step["_target_"].rpartition(".")[2] for step in steps] for steps in (mine, theirs)]
    # what comes after crops in training, such as taking the centre slice, shapes labels and windows only
    wanted_names = names[1][: max(len(names[0]), _count_prefix(*names))]
    if names[0] != wanted_names:
        found = f"the steps {', '.join(names[0])}"
        wanted = f"{', '.join(names[1])}, as in {source}"
        severity: Severity = "error" if bundle.own else "warning"
        yield inference.report("preprocessing", found, wanted, "prepare images in one way", severity)
        return
    for a, b in zip(mine, theirs, strict=False):
        short = a["_target_"].rpartition(".")[2]
        for key in DECISIVE.get(short, ()) if not bundle.own else dict.fromkeys([*a, *b]):
            x, y = a.get(key), b.get(key)
            if x == y or (not bundle.own and (isinstance(x, Text) or isinstance(y, Text))):
                continue
            where = _find_step(inference, short, key)
            found = f"{key} {show(x)} of {short}" if key in a else f"{short} without {key}"
            wanted = f"{key} {show(y)}, as in {source}" if key in b else f"no {key}, as in {source}"
            yield inference.report(where, found, wanted, ONE)


def _count_prefix(mine: list[str], theirs: list[str]) -> int:
    """Return how many steps of training stand before its last one that inference has too."""
    return max((i + 1 for i, name in enumerate(theirs) if name in mine), default=0)


def _find_step(config: MergedConfig, short: str, key: str) -> str:
    """Return the id of an argument of a transform in a config."""
    for place, value in config.items.items():
        if isinstance(value, dict) and str(value.get("_target_")).rpartition(".")[2] == short:
            return f"{place}{SEPARATOR}{key}" if key in value else place
    return "preprocessing"
