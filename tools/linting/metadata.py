# SPDX-License-Identifier: Apache-2.0
"""`configs/metadata.json`: its schema, its versions, and what it says of the network's input and output."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle.properties import MetaProperties
from monai.utils import BundleProperty, BundlePropertyConfig

from tools.datasets import list_label_values
from tools.linting.bundle import METADATA, Bundle
from tools.linting.documents import SEPARATOR
from tools.linting.findings import Finding, Severity, show, suggest
from tools.linting.values import evaluate, is_plain

SCHEMA = Path(__file__).with_name("meta_schema_20240725.json")
VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?")  # PEP 440 without a local part
PACKAGES = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
FORMAT = "network_data_format"


def check_metadata(bundle: Bundle) -> Iterator[Finding]:
    """Yield what is wrong with the metadata."""
    content = bundle.metadata.content
    if not content:
        return
    yield from _check_schema(content)
    known = {prop[BundlePropertyConfig.ID].partition(SEPARATOR)[2] for prop in MetaProperties.values()}
    required = {
        prop[BundlePropertyConfig.ID].partition(SEPARATOR)[2]
        for prop in MetaProperties.values()
        if prop[BundleProperty.REQUIRED]
    }
    for name in sorted(required - set(content)):
        remedy = suggest(name, set(content) - known, f"add {name}")
        yield _report("", f"no key {name}", "a key that MONAI reads", remedy)
    if "optional_packages_version" in content:
        yield _report("optional_packages_version", "a deprecated key", "required_packages_version", "rename it")
    yield from _check_versions(content, bundle)
    yield from _check_requirements(content, bundle)
    yield from _check_format(content, bundle)


def _report(place: str, found: str, wanted: str, remedy: str, severity: Severity = "error") -> Finding:
    return Finding(METADATA, f"key {place}" if place else "", found, wanted, remedy, severity)


def _check_schema(content: Mapping[str, Any]) -> Iterator[Finding]:
    try:
        import jsonschema  # a bundle's copy of `tools` is also used where it is not installed
    except ImportError:
        wanted = "a check against the schema"
        yield _report("", "no package jsonschema", wanted, "install it: pip install jsonschema", "warning")
        return
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)(schema)
    errors = [inner for error in validator.iter_errors(content) for inner in _narrow(error)]
    for error in sorted(errors, key=lambda e: [str(part) for part in e.absolute_path]):
        place = "#".join(map(str, error.absolute_path))
        if error.validator == "required":
            missing = [name for name in error.validator_value if name not in error.instance]
            for name in missing if error.message.startswith(f"'{missing[0] if missing else ''}'") else ():
                remedy = suggest(name, list(error.instance), f"add {name}")
                yield _report(place, f"no key {name}", "a key that the schema requires", remedy)
        else:
            wanted = f"{error.validator} {show(error.validator_value)}, as the schema says"
            yield _report(place, show(error.instance), wanted, "correct it")


def _narrow(error: Any) -> list[Any]:
    """Return what is wrong in the alternative of the schema that was meant, instead of "none of these"."""
    if error.validator not in ("anyOf", "oneOf"):
        return [error]
    inner = [deeper for context in error.context for deeper in _narrow(context)]
    meant = [deeper for deeper in inner if deeper.validator != "type" or len(deeper.path) > 0]
    return meant or [error]


def _check_versions(content: Mapping[str, Any], bundle: Bundle) -> Iterator[Finding]:
    version, changelog = content.get("version"), content.get("changelog")
    if not isinstance(changelog, dict):
        yield _report(
            "changelog", "none" if changelog is None else show(changelog), "a text for each version", "add it"
        )
    elif version is not None and str(version) not in changelog:
        wanted = f"an entry for {version}; there are {', '.join(changelog) or 'none'}"
        yield _report("changelog", f"no version {version}", wanted, "add it, or correct version")
    if isinstance(changelog, dict):
        for name in changelog:
            if _order(name) > _order(version) and VERSION.fullmatch(str(version)):
                yield _report("version", show(version), f"{name}, the newest of the changelog", "correct version")
                break
    versions: dict[tuple[str, str | None], Any] = {("version", None): version}
    versions |= {(key, package): content.get(key) for key, package in PACKAGES.items()}
    required = content.get("required_packages_version")
    for package, number in required.items() if isinstance(required, dict) else ():
        versions[f"required_packages_version#{package}", package] = number
    severity: Severity = "error" if bundle.own else "warning"
    for (place, package), number in versions.items():
        if number is None:
            continue
        if not isinstance(number, str) or not VERSION.fullmatch(number):
            wanted = "a version such as 1.2.0, without a local part: the zoo installs exactly it"
            yield _report(place, show(number), wanted, "correct it")
            continue
        if package is None:
            continue
        try:
            installed = importlib.metadata.version(package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            yield _report(
                place,
                f"{package} {number}, which is not installed",
                "an installed package",
                f"correct the name, or install {package}",
                severity,
            )
            continue
        if number != installed:
            yield _report(
                place,
                number,
                f"{installed}, which is installed",
                f"install {package}=={number}, or test with {installed} and write that",
                severity,
            )


def _check_requirements(content: Mapping[str, Any], bundle: Bundle) -> Iterator[Finding]:
    """Yield versions in the `requirements.txt` of a copy that differ from those in the metadata."""
    path = bundle.root / "requirements.txt"
    packages = content.get("required_packages_version")
    wanted = {package: content.get(key) for key, package in PACKAGES.items()}
    wanted |= packages if isinstance(packages, dict) else {}
    wanted = {str(package).lower(): number for package, number in wanted.items()}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line, text in enumerate(lines, 1):
        match = re.match(r"([\w.-]+)\s*==\s*([^\s;#]+)", text)
        if match and wanted.get(match[1].lower(), match[2]) != match[2]:
            told = f"{wanted[match[1].lower()]}, as in {METADATA}"
            yield Finding(path.name, f"line {line}", match[0], told, "correct the one that is wrong")


def _order(version: Any) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", str(version).partition("+")[0])]


def _check_format(content: Mapping[str, Any], bundle: Bundle) -> Iterator[Finding]:
    formats = content.get(FORMAT)
    if not isinstance(formats, dict):
        return
    severity: Severity = "error" if bundle.own else "warning"
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        tensors = formats.get(side)
        place = f"{FORMAT}#{side}"
        if not isinstance(tensors, dict) or not tensors:
            yield _report(place, show(tensors), f"a tensor named {name}", "describe it")
            continue
        first = next(iter(tensors))
        if first != name:
            yield _report(place, f"the first key {first}", name, f"name it {name}: MONAI Label reads it so", severity)
        if not isinstance(tensors[first], dict):
            continue
        place = f"{place}#{first}"
        yield from _check_channels(tensors[first], place, side, bundle)
        yield from _check_tensor(tensors[first], place, side, bundle)


def _check_channels(tensor: Mapping[str, Any], place: str, side: str, bundle: Bundle) -> Iterator[Finding]:
    channels, count = tensor.get("channel_def"), tensor.get("num_channels")
    if isinstance(channels, dict) and isinstance(count, int):
        wanted = [str(index) for index in range(count)]
        if side == "outputs":  # an exported bundle gives segmentations the values that its label files have
            maps = [evaluate(config, "label_map") for config in bundle.choose("inference", 1)]
            known = next((own for own in maps if isinstance(own, dict) and is_plain(own)), None)
            wanted = list(map(str, list_label_values(known))) if known else wanted
        if list(channels) != wanted and len(channels) != count:
            found = f"{len(channels)} channels"
            yield _report(f"{place}#channel_def", found, f"{count}, which is num_channels", "correct one of them")
        elif sorted(channels) != sorted(wanted):
            yield _report(f"{place}#channel_def", f"the keys {', '.join(channels)}", ", ".join(wanted), "correct them")
    shape = tensor.get("spatial_shape")
    if isinstance(shape, list) and any(isinstance(n, (int, float)) and (n <= 0 or n != int(n)) for n in shape):
        yield _report(f"{place}#spatial_shape", show(shape), "whole numbers above 0", "correct it")


def _check_tensor(tensor: Mapping[str, Any], place: str, side: str, bundle: Bundle) -> Iterator[Finding]:
    """Yield where the metadata and `inference` say something different."""
    for config in bundle.choose("inference", 1):
        name = config.documents[0].name
        key = "in_channels" if side == "inputs" else "out_channels"
        channels, count = evaluate(config, f"network_def#{key}"), tensor.get("num_channels")
        if isinstance(channels, int) and channels != count:
            wanted = f"{channels}, the {key} of network_def in {name}"
            yield _report(f"{place}#num_channels", show(count), wanted, "correct the one that is wrong")
        if not bundle.own:
            continue
        size = _find_window(config, side)
        shape = tensor.get("spatial_shape")
        if size is not None and shape != size:
            wanted = f"{show(size)}, the window in {name}"
            yield _report(f"{place}#spatial_shape", show(shape), wanted, "correct the one that is wrong")
        if side == "inputs":
            yield from _check_range(tensor, place, evaluate(config, "intensity"), name)
        if tensor.get("dtype") != "float32":
            yield _report(f"{place}#dtype", show(tensor.get("dtype")), "float32", "correct it")


def _find_window(config: Any, side: str) -> list[int] | None:
    """Return the size of what enters or leaves the network: a box, or a window of slices and the slice inside it."""
    if "image_size" in config:
        size, slices = evaluate(config, "image_size"), evaluate(config, "network_def#num_slices")
        if not isinstance(size, list) or not is_plain(size) or not isinstance(slices, int):
            return None
        return [*size, slices] if side == "inputs" else size
    size = evaluate(config, "roi_size")
    return size if isinstance(size, list) and is_plain(size) else None


def _check_range(tensor: Mapping[str, Any], place: str, intensity: Any, name: str) -> Iterator[Finding]:
    for step in intensity if isinstance(intensity, list) else ():
        if isinstance(step, dict) and str(step.get("_target_")).endswith("ScaleIntensityRanged"):
            span = [step.get("b_min"), step.get("b_max")]
            if tensor.get("value_range") != span and None not in span:
                wanted = f"{show(span)}, which intensity in {name} gives"
                found = show(tensor.get("value_range"))
                yield _report(f"{place}#value_range", found, wanted, "correct the one that is wrong")
