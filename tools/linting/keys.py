# SPDX-License-Identifier: Apache-2.0
"""Keys that MONAI, MONAI Label and this project read: they are there, and of the form that these expect.

Sources: `monai.bundle.properties` and `ConfigWorkflow.check_properties` of MONAI 1.6;
`monailabel/tasks/infer/bundle.py` and `train/bundle.py` of MONAI Label 0.8.5.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from monai.bundle import ReferenceResolver
from monai.bundle.properties import InferProperties, TrainProperties
from monai.utils import BundleProperty, BundlePropertyConfig

from tools.configs.keys import REQUIRED
from tools.linting.bundle import Bundle
from tools.linting.components import find_component
from tools.linting.configs import MergedConfig
from tools.linting.documents import SEPARATOR
from tools.linting.expressions import parse_expression, read_import
from tools.linting.findings import Finding, show, suggest
from tools.linting.values import evaluate

PROPERTIES: Mapping[str, Mapping[str, Mapping[Any, Any]]] = {
    "inference": InferProperties,
    "train": TrainProperties,
    "pretrain": TrainProperties,
    "evaluate": {name: TrainProperties[name] for name in ("bundle_root", "device", "dataset_dir")},
}
# any one of each group; MONAI Label leaves a model out, or trains on other data, where they are missing
LABEL_KEYS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "inference": (
        ("preprocessing", "pre_transforms"),
        ("postprocessing", "post_transforms"),
        ("inferer",),
        ("network_def", "network"),
    ),
    "train": (
        *(("network",), ("train#dataset#data",), ("train#handlers",), ("train#trainer#train_handlers",)),
        *(("validate#dataset#data",), ("validate#evaluator",)),
    ),
    "evaluate": (("validate#evaluator",), ("validate#dataset#data",)),
    "pretrain": (("network",), ("train#dataset#data",), ("train#handlers",)),
}
LISTS = ("imports", "initialize", "run", "finalize")
# read by MONAI, MONAI Label or the command line, though nothing in the config refers to them
KNOWN = frozenset(
    str.split(
        "imports initialize run finalize bundle_root device dataset_dir output_dir network network_def preprocessing "
        "postprocessing pre_transforms post_transforms inferer evaluator dataset handlers train validate labels "
        "displayable_configs _meta_ checkpoint datalist"
    )
)


def check_keys(bundle: Bundle) -> Iterator[Finding]:
    """Yield keys that are missing, or have a form that nothing can read."""
    for config in bundle.sets:
        yield from _check_required(bundle, config)
        yield from _check_properties(config)
        yield from _check_lists(config)
        yield from _check_labelling(bundle, config)
    referred = [_list_referred(config) for config in bundle.sets]
    anywhere = frozenset().union(*referred)
    for config, here in zip(bundle.sets, referred, strict=True):
        yield from _check_unread(config, here, anywhere)


def _check_required(bundle: Bundle, config: MergedConfig) -> Iterator[Finding]:
    names = {
        prop[BundlePropertyConfig.ID]: "MONAI"
        for prop in PROPERTIES[config.kind].values()
        if prop[BundleProperty.REQUIRED]
    }
    if config.kind in ("train", "pretrain", "evaluate") or bundle.own:
        names["run"] = "monai.bundle run"
    if bundle.own:
        names |= dict.fromkeys(REQUIRED[config.kind], "this project")
    top = [key for key in config.content if isinstance(key, str)]
    for name, reader in names.items():
        if name not in config:
            spelled = ReferenceResolver.normalize_id(name).replace(SEPARATOR, "#")
            close = suggest(spelled, set(top) - {spelled}, "").removeprefix("write ")
            remedy = f"rename {close} or add {spelled}" if close else f"add {spelled}"
            yield _report_missing(config, spelled, f"a key that {reader} reads", remedy)
    for group in LABEL_KEYS[config.kind]:
        if not any(name in config for name in group) and not set(group) & set(names):
            severity = "error" if bundle.own or config.kind != "inference" else "warning"
            finding = _report_missing(config, group[0], "a key that MONAI Label reads", f"add {group[0]}")
            yield Finding(finding.path, "", finding.found, finding.wanted, finding.remedy, severity)  # type: ignore[arg-type]


def _report_missing(config: MergedConfig, name: str, wanted: str, remedy: str) -> Finding:
    return Finding(config.documents[0].name, "", f"no key {name}", wanted, remedy)


def _check_properties(config: MergedConfig) -> Iterator[Finding]:
    """Yield what `check_properties` of MONAI finds: a place that must refer to the key of a property."""
    for prop in PROPERTIES[config.kind].values():
        target, place = prop[BundlePropertyConfig.ID], prop.get(BundlePropertyConfig.REF_ID)
        if prop[BundleProperty.REQUIRED] or place is None or place not in config:
            continue
        value = config.get(place)
        wanted = f"@{target}".replace(SEPARATOR, "#")
        if isinstance(value, str) and not value.startswith("$"):
            if ReferenceResolver.normalize_id(value) != f"@{target}":
                yield config.report(
                    place, show(value), wanted, f"write {wanted}: check_properties of MONAI asks for it"
                )
        elif value is not None and not isinstance(value, str):
            yield config.report(place, f"a {type(value).__name__}", wanted, f"define {wanted[1:]} and write {wanted}")


def _check_lists(config: MergedConfig) -> Iterator[Finding]:
    for name in LISTS:
        value = config.get(name)
        if name not in config:
            continue
        if not isinstance(value, list):
            if not isinstance(value, str):
                yield config.report(name, show(value), "a list of $ expressions", "write a list")
            continue
        if name == "run" and not value:
            yield config.report(name, "an empty list", "what a run does", "add the call of the engine's run()")
        for index, item in enumerate(value):
            place = f"{name}{SEPARATOR}{index}"
            if isinstance(item, str) and item[:1] not in ("$", "@"):
                yield config.report(place, show(item), "a $ expression", "start it with $: as it is nothing happens")
            elif name == "imports" and isinstance(item, str) and not _is_import(item):
                yield config.report(place, show(item), "an import statement", "write `$import module`")


def _is_import(item: str) -> bool:
    try:
        return read_import(parse_expression(item)) is not None
    except SyntaxError:
        return True  # told by the check of expressions


def _check_labelling(bundle: Bundle, config: MergedConfig) -> Iterator[Finding]:
    shown = config.get("displayable_configs")
    if "displayable_configs" in config:
        if not isinstance(shown, dict):
            yield config.report("displayable_configs", show(shown), "a mapping of plain values", "write key: value")
        else:
            for key, value in shown.items():
                if isinstance(value, str) and value[:1] in ("$", "@", "%"):
                    place = f"displayable_configs{SEPARATOR}{key}"
                    remedy = "write the value itself: MONAI Label shows it to users"
                    yield config.report(place, show(value), "a plain value", remedy)
    if config.kind in ("train", "pretrain"):
        for place in ("train#handlers", "validate#handlers"):
            if place in config and not isinstance(config.get(place), list):
                wanted = "a list: MONAI Label puts a handler in front"
                yield config.report(place, show(config.get(place)), wanted, "write a list of handlers")
    if config.kind == "inference" and "preprocessing" in config:
        yield from _check_transforms(bundle, config)


def _check_transforms(bundle: Bundle, config: MergedConfig) -> Iterator[Finding]:
    for place, value in config.items.items():
        target = value.get("_target_") if isinstance(value, dict) else None
        if not isinstance(target, str):
            continue
        symbol = find_component(target, bundle.finder)
        if symbol is None:
            continue
        short = symbol.name.rpartition(".")[2]
        if symbol.name.startswith("monai.") and short == "Spacingd":
            yield config.report(
                f"{place}{SEPARATOR}_target_",
                f"{target} of MONAI",
                "tools.transforms.PlainSpacingd",
                "replace it: with MONAI 1.6 it makes MONAI Label answer every request with status 500",
                "warning",
            )
        inside = place.startswith(("postprocessing", "post_transforms"))
        if inside and "Save" in short and symbol.kind == "class" and not symbol.is_a("SaveImaged"):
            remedy = "derive it from SaveImaged, which MONAI Label leaves out of its own chain"
            yield config.report(f"{place}{SEPARATOR}_target_", target, "a subclass of SaveImaged", remedy)
        overlap = evaluate(config, f"{place}{SEPARATOR}overlap") if short == "SlidingWindowInferer" else None
        if isinstance(overlap, (int, float)) and not 0 <= overlap < 1:
            remedy = "correct it: a part of 1 or more never ends"
            yield config.report(f"{place}{SEPARATOR}overlap", str(overlap), "0 or more, less than 1", remedy)
        if short == "Invertd":
            transform = value.get("transform")
            if transform not in ("@preprocessing", "@pre_transforms") and "preprocessing" in config:
                remedy = "write @preprocessing: another chain gives another geometry"
                here = f"{place}{SEPARATOR}transform" if "transform" in value else place
                severity = "error" if bundle.own else "warning"
                yield config.report(here, show(transform), "@preprocessing", remedy, severity)  # type: ignore[arg-type]
    if bundle.own:
        yield from _check_chain(config, "preprocessing", "image")
        yield from _check_chain(config, "postprocessing", "pred")


def _check_chain(config: MergedConfig, place: str, key: str) -> Iterator[Finding]:
    """Yield steps that work on something else than MONAI Label gives them, and steps that are missing."""
    steps = evaluate(config, f"{place}#transforms")
    if not isinstance(steps, list):
        return
    names = []
    for step in steps:
        if not isinstance(step, dict):
            continue
        short = str(step.get("_target_")).rpartition(".")[2]
        names.append(short)
        if "keys" in step and step["keys"] not in (key, [key]):
            found = f"keys {show(step['keys'])} of {short}"
            yield config.report(place, found, f"{key}, which is all that inference has", f"write keys: {key}")
        if short == "AsDiscreted" and step.get("argmax") not in (True, [True]):
            remedy = "add argmax: true: the network gives a channel for each class"
            yield config.report(place, f"argmax {show(step.get('argmax'))} of AsDiscreted", "true", remedy)
    if place == "postprocessing" and "Invertd" not in names:
        remedy = "add Invertd: without it the result lies in the grid of the network"
        yield config.report(place, "no Invertd", "the inversion of the preprocessing", remedy)


def _list_referred(config: MergedConfig) -> frozenset[str]:
    return frozenset(
        target.partition(SEPARATOR)[0]
        for value in config.items.values()
        if isinstance(value, str)
        for target in ReferenceResolver.match_refs_pattern(value)
    )


def _check_unread(config: MergedConfig, here: Collection[str], anywhere: Collection[str]) -> Iterator[Finding]:
    """Yield top-level keys that nothing reads and that look like one that is read.

    A card is for all configs: what others of the bundle read of it is no mistake, whatever it looks like here.
    """
    read = sorted({key for key in config.content if key in here or key in KNOWN} | KNOWN)
    for key in config.content:
        if key in here or key in KNOWN or not isinstance(key, str):
            continue
        if key in anywhere and config.find_origin(key).name.startswith("tools/datasets/"):
            continue
        near = suggest(key, [name for name in read if _is_close(key, name)], "")
        if near:
            remedy = f"{near}, or remove it"
            yield config.report(key, f"the key {key}, which nothing reads", near.removeprefix("write "), remedy)


def _is_close(key: str, name: str) -> bool:
    """Tell whether two names differ by one or two letters: typed wrongly rather than meant."""
    if min(len(key), len(name)) < 4 or abs(len(key) - len(name)) > 2 or key == name:
        return False
    if sorted(key) == sorted(name):
        return True
    rows = list(range(len(name) + 1))
    for i, a in enumerate(key, 1):  # Levenshtein distance
        before, rows[0] = rows[0], i
        for j, b in enumerate(name, 1):
            before, rows[j] = rows[j], min(rows[j] + 1, rows[j - 1] + 1, before + (a != b))
    return rows[-1] <= 2 if len(name) > 6 else rows[-1] <= 1
