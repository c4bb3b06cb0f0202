# SPDX-License-Identifier: Apache-2.0
"""Weights of a bundle: they load strictly into the network of its config, which is built without memory."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigComponent
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tools.errors import CheckpointError, ToolsError
from tools.files import compute_sha256
from tools.linting.bundle import Bundle
from tools.linting.components import find_component
from tools.linting.configs import MergedConfig
from tools.linting.findings import Finding, show
from tools.linting.modules import OWN
from tools.linting.values import evaluate, is_plain
from tools.networks.patch_merging import AUTO, read_form
from tools.weights.files import read_weights
from tools.weights.merging_forms import find_form, split_marks
from tools.weights.origins import find_origin

MODEL = "models/model.pt"
ALLOWED = ("monai.networks.nets.", "tools.networks.")


class _UncheckedError(Exception):
    """The network is not built, as that could run code of the bundle; the text says why."""


class _BadNetworkError(Exception):
    """The network cannot be built from its arguments; the text says why."""


def check_weights(bundle: Bundle) -> Iterator[Finding]:
    """Yield weights that are missing, cannot be read, or are those of another network."""
    seen: set[Path] = set()
    for config in bundle.choose("inference"):
        overlaid = config.documents[-1].name.startswith("models/")
        path = _find_file(config, bundle.root)
        if overlaid and path is None:
            finding = config.report(
                "checkpoint", show(str(evaluate(config, "checkpoint"))), "a file in models/", "correct it, or add it"
            )
            yield finding
            continue
        if path is None:
            path = bundle.root / MODEL
        if not path.is_file():
            continue
        seen.add(path.resolve())
        yield from _check_file(path, config, bundle)
    yield from _check_network_alone(bundle)
    yield from _check_presence(bundle)


def _find_file(config: MergedConfig, root: Path) -> Path | None:
    """Return the checkpoint that a config names, if it lies in the bundle."""
    value, base = evaluate(config, "checkpoint"), evaluate(config, "bundle_root")
    if not isinstance(value, str) or not isinstance(base, str):
        return None
    path = root / value.removeprefix(base).lstrip("/")
    return path if path.is_file() else None


def _check_presence(bundle: Bundle) -> Iterator[Finding]:
    there = [name for name in (MODEL, "models/model.ts") if (bundle.root / name).is_file()]
    overlays = [n for n in bundle.config_names if n.startswith("models/") and n.endswith((".yaml", ".yml", ".json"))]
    # committed models count in a bundle of this project: its model.pt is downloaded or trained
    if not there and not (bundle.own and not bundle.exported and overlays):
        wanted = "weights: MONAI Label leaves a model without them out"
        yield Finding(MODEL, "", "no such file", wanted, "add the weights")
    for path in sorted((bundle.root / "models").glob("*.pt")):
        if path.name != "model.pt":
            name = path.relative_to(bundle.root).as_posix()
            wanted = "only model.pt: MONAI Label offers every .pt file as a model"
            yield Finding(name, "", "a further .pt file", wanted, "move it, or save it as .safetensors", "warning")
    for path in sorted((bundle.root / "models").glob("*.safetensors")):
        beside = path.with_suffix(".yaml")
        if bundle.own and not beside.is_file() and path.with_suffix(".md").is_file():
            name = path.relative_to(bundle.root).as_posix()
            yield Finding(name, "", f"no {beside.name} beside it", "the overlay that uses it", "add the overlay")


def _check_network_alone(bundle: Bundle) -> Iterator[Finding]:
    """Yield networks that cannot be built at all, of all configs."""
    for config in bundle.sets:
        if "network_def" in config:
            try:
                _build_network(config, bundle)
            except _BadNetworkError as error:
                found = f"arguments that do not fit ({error}) in {config.title}"
                yield config.report("network_def", found, "a network", "correct them")
            except _UncheckedError:
                continue


def _check_file(path: Path, config: MergedConfig, bundle: Bundle) -> Iterator[Finding]:
    name = path.relative_to(bundle.root).as_posix()
    try:
        state_dict, facts = read_weights(path)
    except ToolsError as error:
        yield Finding(name, "", error.found, error.wanted, error.remedy)
        return
    for key, tensor in state_dict.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            yield Finding(name, f"tensor {key}", "NaN or infinite values", "finite numbers", "train or export again")
            break
    try:
        network = _build_network(config, bundle)
    except _BadNetworkError:
        return  # told already
    except _UncheckedError as error:
        wanted = "a network that can be built without running the bundle's code"
        yield Finding(
            name, "", f"weights that were not compared ({error})", wanted, "load them once strictly", "warning"
        )
        return
    weights, marks = split_marks(state_dict)
    yield from _compare(name, weights, network.shapes, config)
    try:
        found = find_form(weights, marks, origin=find_origin(path, state_dict, facts, compute_sha256(path)))
    except CheckpointError as error:
        if network.finds_form:
            yield Finding(name, "", error.found, error.wanted, "set patch_merging in the config", "warning")
    else:
        if found and network.form and found.form != network.form and not network.finds_form:
            wanted = f"{network.form}, which the network of {config.title} computes"
            remedy = "use tools.networks.ScriptableSwinUNETR with the form of the weights, or give other weights"
            yield Finding(name, "", f"patch merging {found}", wanted, remedy)


class _Built(NamedTuple):
    """What a network is made of: shapes of its tensors, its patch merging, and whether weights may change that."""

    shapes: Mapping[str, tuple[int, ...]]
    form: str | None
    finds_form: bool


def _build_network(config: MergedConfig, bundle: Bundle) -> _Built:
    """Return the tensors' shapes of `network_def`, if building it runs only code of MONAI or of this package."""
    arguments = evaluate(config, "network_def")
    if not isinstance(arguments, dict) or not isinstance(arguments.get("_target_"), str):
        raise _UncheckedError("network_def is no plain component")
    symbol = find_component(arguments["_target_"], bundle.finder)
    if symbol is None or not symbol.name.startswith(ALLOWED):
        raise _UncheckedError(f"{arguments['_target_']} is code of the bundle or of another package")
    if not symbol.is_a("Module"):
        raise _UncheckedError(f"{symbol.name} is no class of a network")
    if not is_plain(arguments) or _has_component({k: v for k, v in arguments.items() if k != "_target_"}):
        raise _UncheckedError("its arguments are not plain values")
    if any("pretrain" in str(key) and value for key, value in arguments.items()):
        raise _UncheckedError("it would download weights")
    if symbol.name.startswith("tools.") and not _is_own_code(bundle):
        raise _UncheckedError("the bundle's tools/networks differs from the installed one")
    if (
        symbol.parameters is not None
        and not symbol.open_ended
        and set(arguments) - set(symbol.parameters) - {"_target_", "_desc_", "_requires_", "_disabled_", "_mode_"}
    ):
        raise _UncheckedError("it has arguments that the network does not take")
    plain = {k: v for k, v in arguments.items() if k == "_target_" or not str(k).startswith("_")}
    return _describe_network(json.dumps(plain, sort_keys=True, default=str))


class _RealRates(TorchFunctionMode):
    """Let `torch.linspace` give real numbers on the meta device, too: the drop path rates of transformers are read."""

    def __torch_function__(
        self, function: Callable, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = {"device": "cpu"} if function is torch.linspace else {}
        return function(*args, **{**(kwargs or {}), **options})


@functools.lru_cache(maxsize=64)
def _describe_network(arguments: str) -> _Built:
    """Return what a network is, built on the meta device; arguments are JSON for the cache."""
    try:
        with torch.device("meta"), _RealRates(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = ConfigComponent(config=json.loads(arguments)).instantiate()
    except Exception as error:  # whatever the constructor raises is about its arguments
        cause = error.__cause__ or error
        raise _BadNetworkError(str(cause).partition("\n")[0].rstrip(".") or type(cause).__name__) from error
    if not isinstance(network, nn.Module):
        raise _UncheckedError("network_def is no network")
    weights, _ = split_marks(network.state_dict())
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    return _Built(shapes, read_form(network), getattr(network, "patch_merging", "") in (None, AUTO))


def _has_component(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_has_component, value.values()))
    return isinstance(value, list) and any(map(_has_component, value))


def _is_own_code(bundle: Bundle) -> bool:
    """Tell whether the bundle's copy of the networks, if it has one, is the code that is running."""
    copy = bundle.root / "tools" / "networks"
    if not bundle.finder.is_vendored("tools"):
        return True
    files = [{p.name: p.read_bytes() for p in folder.glob("*.py")} for folder in (copy, OWN / "networks")]
    return files[0] == files[1]


def _compare(
    name: str, found: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], config: MergedConfig
) -> Iterator[Finding]:
    network = f"the network of {config.title}"
    missing, extra = [k for k in wanted if k not in found], [k for k in found if k not in wanted]
    remedy = "give the weights and network_def of one training"
    if missing:
        told = f"no tensor {missing[0]}" + (f" and {len(missing) - 1} more that are missing" if missing[1:] else "")
        yield Finding(name, "", told, f"the {len(wanted)} tensors of {network}", remedy)
    if extra:
        told = f"the tensor {extra[0]}" + (f" and {len(extra) - 1} more that do not belong" if extra[1:] else "")
        yield Finding(name, "", told, f"only the {len(wanted)} tensors of {network}", remedy)
    shapes = [k for k in wanted if k in found and tuple(found[k].shape) != wanted[k]]
    if shapes:
        key = shapes[0]
        more = f" and {len(shapes) - 1} more of another shape" if shapes[1:] else ""
        told = f"shape {tuple(found[key].shape)}{more}"
        yield Finding(name, f"tensor {key}", told, f"{wanted[key]}, as {network} has", remedy)
