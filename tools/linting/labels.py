# SPDX-License-Identifier: Apache-2.0
"""Label tables: the same names in the same order wherever a bundle writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.bundles import CARDS
from tools.configs.files import read_config
from tools.configs.keys import OF_THE_CARD
from tools.linting.bundle import METADATA, Bundle, normalize
from tools.linting.configs import MergedConfig
from tools.linting.findings import Finding, show
from tools.linting.values import evaluate, is_plain

ONE = "correct the one that is wrong"


def check_labels(bundle: Bundle) -> Iterator[Finding]:
    """Yield label tables that differ, or contradict the network or the label values."""
    for config in bundle.sets:
        if "labels" in config and config.kind != "pretrain":
            yield from _check_table(config)
    base = next((config for config in bundle.choose("inference", 1) if "labels" in config), None)
    names = _read_labels(base) if base else None
    if base and names is not None:
        for config in bundle.sets:
            if len(config.documents) == 1 and config.kind == "train" and "labels" in config:
                yield from _compare(config, _read_labels(config), names, base.documents[0].name)
    yield from _check_channels(bundle, base, names)
    for config in bundle.choose("inference"):
        yield from _check_card(config)


def _read_labels(config: MergedConfig) -> list[Any] | None:
    labels = evaluate(config, "labels")
    return labels if isinstance(labels, list) and is_plain(labels) else None


def _compare(config: MergedConfig, found: list[Any] | None, wanted: list[Any], name: str) -> Iterator[Finding]:
    if found is None or found == wanted:
        return
    yield config.report("labels", *_describe(found, wanted, name), ONE)


def _describe(found: list[Any], wanted: list[Any], name: str) -> tuple[str, str]:
    """Return what differs first between two tables, in words."""
    if len(found) != len(wanted):
        return f"{len(found)} labels", f"{len(wanted)}, as in {name}"
    index = next(i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
    return f"{show(found[index])} for label {index}", f"{show(wanted[index])}, as in {name}"


def _check_table(config: MergedConfig) -> Iterator[Finding]:
    labels = evaluate(config, "labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        yield config.report(
            "labels", show(normalize(labels)), "a list of names", "write names, in quotes if they are numbers"
        )
        return
    for index, label in enumerate(labels):
        first = [name.lower() for name in labels].index(label.lower())
        if first != index:
            found = f"{label} for label {index} and label {first}"
            yield config.report(f"labels::{index}", found, "names that differ in lower case", "rename one of them")
        if label != label.strip() or not label:
            wanted = f"{show(label.strip()) or 'a name'}"
            yield config.report(f"labels::{index}", show(label) or "no name", wanted, "correct it")
    if labels and labels[0] != "background":
        yield config.report("labels::0", labels[0], "background", "put background first")
    for place in ("num_classes", "network_def#out_channels"):
        count = evaluate(config, place)
        if isinstance(count, int) and count != len(labels):
            yield config.report(place, str(count), f"{len(labels)}, the number of labels", ONE)
    targets = evaluate(config, "label_map")
    if isinstance(targets, dict) and is_plain(targets):
        if any(isinstance(v, bool) or not isinstance(v, int) for v in targets.values()):
            yield config.report("label_map", show(targets), "whole numbers as classes", "correct it")
        elif set(targets.values()) != set(range(len(labels))):
            found = f"the classes {', '.join(map(str, sorted(set(targets.values()))))}"
            yield config.report("label_map", found, f"each of 0 to {len(labels) - 1}, a class for each label", ONE)
        elif any(isinstance(key, bool) or not isinstance(key, int) for key in targets):
            remedy = "write a YAML file, or an expression: keys of JSON are texts"
            yield config.report("label_map", show(list(targets)), "whole numbers as values of voxels", remedy)
    elif "label_map" in config and not isinstance(config.get("label_map"), (dict, str)):
        yield config.report("label_map", show(targets), "a class for each value in the label files", "write a mapping")


def _check_channels(bundle: Bundle, base: MergedConfig | None, names: list[Any] | None) -> Iterator[Finding]:
    outputs = bundle.metadata.content.get("network_data_format", {})
    outputs = outputs.get("outputs") if isinstance(outputs, dict) else None
    tensor = next(iter(outputs.values()), None) if isinstance(outputs, dict) else None
    channels = tensor.get("channel_def") if isinstance(tensor, dict) else None
    place = "key network_data_format#outputs#pred#channel_def"
    if not isinstance(channels, dict):
        if bundle.own and bundle.metadata.content:
            yield Finding(
                METADATA, place, "none", "a name for each channel", "add it: MONAI Label takes labels from it"
            )
        return
    lower = [str(name).lower() for name in channels.values()]
    for name in sorted({name for name in lower if lower.count(name) > 1}):
        yield Finding(METADATA, place, f"{name} twice", "names that differ in lower case", "rename one of them")
    if base is not None and names is not None and list(channels.values()) != names:
        found, wanted = _describe(list(channels.values()), names, f"labels of {base.documents[0].name}")
        yield Finding(METADATA, place, found, wanted, ONE)


def _check_card(config: MergedConfig) -> Iterator[Finding]:
    """Yield where the overlay of a model says something else than the card of its data set."""
    overlay = config.documents[-1]
    card = CARDS / f"{Path(overlay.name).stem}.yaml"
    if not overlay.name.startswith("models/") or not card.is_file():
        return
    content = read_config(card)
    for key in OF_THE_CARD:
        found, wanted = overlay.content.get(key), content.get(key)
        if normalize(found) == normalize(wanted):
            continue
        source = f"the card tools/datasets/{card.name}"
        where = overlay.locate(key) if key in overlay.content else ""
        if key == "labels" and isinstance(found, list) and isinstance(wanted, list):
            yield Finding(overlay.name, where, *_describe(found, wanted, source), ONE)
        else:
            text = f"no key {key}" if found is None else show(found)
            yield Finding(overlay.name, where, text, f"{show(wanted)}, as in {source}", ONE)
