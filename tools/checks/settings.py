# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the settings of a user: overrides that no config has, values that no network takes."""

from __future__ import annotations

import contextlib
import copy
import difflib
import inspect
import itertools
import logging
import math
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
import torch
from monai.bundle import ConfigComponent, ConfigParser, ConfigWorkflow, ReferenceResolver, create_workflow
from monai.bundle.scripts import run, run_workflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from monai.utils.module import locate

from tools.configs import KEYS, Key, read_running
from tools.configs.keys import check_flag, is_number
from tools.datasets.datalists import locate_source, read_label_names
from tools.datasets.sides import describe_mirroring, list_mirrored_classes, list_sided
from tools.errors import ConfigValueError, MemoryLimitError, UnknownOverrideError, find_cause
from tools.hardware import find_free_memory_gb, limit_memory

logger = logging.getLogger(__name__)

_PLAIN_PARTS = {"num_classes", "label_values", "window_slices"}  # worked out of numbers and names
_LIGHT = {"tools.datasets.choose_mirror_axes"}  # components that make numbers of names
_WORDS = {"off": "False", "no": "False", "false": "False", "on": "True", "yes": "True", "true": "True"}
_SHOWN = 100  # characters of a value
SHARE_OF_MEMORY = 0.95  # of what is free: the rest is for data loaders' workers and the system


def check_device(device: str | torch.device) -> None:
    """Raise `ConfigValueError` unless PyTorch can use `device` on this machine."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a build without CUDA
        usable = " or ".join(["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])
        raise ConfigValueError("--device", f"{str(device)!r}", "a device of this machine", f"give {usable}") from error


def check_memory(num_bytes: float, device: str | torch.device, remedy: str) -> None:
    """Raise `MemoryLimitError` if a step of training needs more memory than is free, before anything is prepared.

    On a CPU with Linux a step that needs more after all fails from then on as it does on a GPU, by an exception, and
    the process is not killed.

    Args:
        num_bytes: what is needed at the least.
        device: where it is needed.
        remedy: what to change.
    """
    free_gb = find_free_memory_gb(device)
    if free_gb is None:
        return
    if num_bytes > free_gb * 1e9:
        wanted = f"at least {num_bytes / 1e9:,.1f} GB for a step of training"
        raise MemoryLimitError("memory", f"{free_gb:,.1f} GB free ({device})", wanted, remedy)
    if torch.device(device).type == "cpu":
        limit_memory(SHARE_OF_MEMORY * free_gb)


def check_shares(num_training: int, num_validation: int, num_processes: int) -> None:
    """Raise `ConfigValueError` if a process of a distributed run would have no case to train or to validate on."""
    for section, count in (("training", num_training), ("validation", num_validation)):
        if count < num_processes:
            raise ConfigValueError(
                "--nproc_per_node",
                f"{num_processes} processes for {count} {section} cases",
                "at least one case for each process",
                f"start at most {count} processes",
            )


def check_settings() -> None:
    """Raise if a setting of the config that runs is not what its key takes, is not used, or contradicts another one.

    It is called before anything is computed or written, in `initialize`. What is checked: the command line (see
    `check_command_line`); types and ranges, by the table of `tools.configs.keys`; keys that nothing reads; classes that
    do not exist; that each class of `labels` has a value; that `dataset.json` gives the same value to a name.

    Raises:
        UnknownOverrideError: with the nearest key, if there is one.
        ConfigValueError: with the value found and what is wanted.
    """
    check_command_line()
    running = read_running()
    if running is None:
        return
    config = running.values
    _check_processes(config)
    parser = ConfigParser(copy.deepcopy(config))
    values = {}
    for name, key in KEYS.items():
        if key.check is None or name not in config or not _is_light(name, config):
            continue
        value = values[name] = _resolve(parser, name, config[name])
        if wanted := key.check(value):
            raise ConfigValueError(name, _show(value), wanted, _advise(name, key, value))
    _check_unused(config)
    _check_targets(parser, config)
    is_training = "train" in config and _is_light("device", config)
    if values.get("amp") is True and is_training and str(_resolve(parser, "device", config["device"])) == "cpu":
        logger.warning("--amp has no effect on a CPU: training runs in full precision")
    if "labels" in values and "label_map" in values:
        _check_labels(values["labels"], values["label_map"])
        list_mirrored_classes(values["labels"], values.get("mirrored"))
        if is_training and "mirror_axes" in values:
            _tell_mirroring(config, values["labels"], values.get("mirrored"), values["mirror_axes"])
        if "train" in config and isinstance(values.get("dataset_dir"), str):
            _check_file(values["dataset_dir"], values["labels"], values["label_map"], applies="checkpoint" in config)


def _check_processes(config: Mapping[str, Any]) -> None:
    """Refuse several processes that would each do all of the work, and a config for several that runs alone."""
    shares = any(name in str(config.get("initialize")) for name in ("join_processes", "init_process_group"))
    if shares and "RANK" not in os.environ:
        wanted = "torchrun, as this config shares its work among processes"
        remedy = "start it by torchrun --nproc_per_node=N -m monai.bundle run ..., or leave out the multi_gpu config"
        raise ConfigValueError("the command", "one process", wanted, remedy)
    count = os.environ.get("WORLD_SIZE", "1")
    if not shares and "LOCAL_RANK" in os.environ and count != "1":
        wanted = "one, as this config does not share its work: each would do all of it"
        remedy = "add configs/multi_gpu_train.yaml (or multi_gpu_pretrain.yaml) behind it, or leave out torchrun"
        raise ConfigValueError("torchrun", f"{count} processes", wanted, remedy)


def _is_light(name: str, config: Mapping[str, Any], above: tuple[str, ...] = ()) -> bool:
    """Tell whether a value can be worked out without making components, such as a data set."""
    if name in above:
        return False
    texts, components = _list_texts(config[name])
    if components and str(config[name].get("_target_") if isinstance(config[name], dict) else "") not in _LIGHT:
        return False
    targets = {target for text in texts for target in ReferenceResolver.match_refs_pattern(text)}
    heads = {ReferenceResolver.split_id(target)[0] for target in targets}
    return all(
        head in config and head in KEYS and (KEYS[head].role != "part" or head in _PLAIN_PARTS) and
        _is_light(head, config, (*above, name))
        for head in heads
    )  # fmt: skip


def _list_texts(value: Any) -> tuple[list[str], bool]:
    """Return the texts in a value that refer or compute, and whether it holds a component."""
    if isinstance(value, str):
        return ([value] if value[:1] in ("$", "@", "%") else []), value[:1] == "%"
    items = list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, (list, tuple)) else []
    found = [_list_texts(item) for item in items]
    holds = isinstance(value, dict) and "_target_" in value
    return [text for texts, _ in found for text in texts], holds or any(component for _, component in found)


def _resolve(parser: ConfigParser, name: str, value: Any) -> Any:
    if not any(_list_texts(value)):
        return value
    try:
        return parser.get_parsed_content(name)
    except Exception as error:
        if cause := find_cause(error):
            raise cause from None
        while error.__cause__ is not None:
            error = error.__cause__  # type: ignore[assignment]
        found = f"{value}, which cannot be worked out ({type(error).__name__}: {str(error).splitlines()[0]})"
        raise ConfigValueError(name, found.replace("::", "#"), KEYS[name].doc, "correct it") from None


def _show(value: Any) -> str:
    text = f"the text {value!r}" if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _advise(name: str, key: Key, value: Any) -> str:
    """Return what to write where a value was read as another type than was meant."""
    if isinstance(value, str) and key.check is not None:
        with contextlib.suppress(ValueError):
            number = float(value)
            if not math.isfinite(number):
                return f"write --{name} \"$float('{number}')\", or {'-' * (number < 0)}.inf in a file"
            if key.check(number) is None or key.check(int(number)) is None:
                text = f"{number:.1e}" if "e" in value.lower() else repr(number)  # YAML wants a point before the e
                return f"write {text}, which YAML reads as a number"
        if key.check(True) is None and value.strip().lower() in _WORDS:
            return f"write {_WORDS[value.strip().lower()]}"
    if is_number(value) and key.check is not None and key.check(str(value)) is None:
        return f"write --{name} \"'{value}'\": without quotes it is read as a number"
    if name == "labels":
        return "correct labels"
    return f"correct --{name} ({key.doc})"


def _check_unused(config: Mapping[str, Any]) -> None:
    """Refuse top-level keys that nothing reads: a typing error leaves the default in force."""
    used = {
        ReferenceResolver.split_id(target)[0]: text
        for text in _list_texts(list(config.values()))[0]
        for target in ReferenceResolver.match_refs_pattern(text)
    }
    for name in used.keys() - config.keys():
        near = difflib.get_close_matches(name, config, n=1)
        wanted, remedy = "references to keys of the config", f"write @{near[0]}" if near else "correct it"
        raise UnknownOverrideError(used[name], f"@{name}, a key that it does not have", wanted, remedy)
    known = (
        used | KEYS.keys() | {name for tracking in DEFAULT_EXP_MGMT_SETTINGS.values() for name in tracking["configs"]}
    )
    for name in config:
        if name not in known and not str(name).startswith("_"):
            near = difflib.get_close_matches(str(name), KEYS, n=1)
            remedy = f"did you mean {near[0]}" if near else "remove it, or refer to it with @"
            raise UnknownOverrideError(name, "a key that nothing reads", "a key of the config", remedy)


def _check_targets(parser: ConfigParser, config: Any) -> None:
    """Refuse classes that do not exist, with the nearest one."""
    for name, target in _iterate_targets(config):
        if target[:1] in ("$", "@", "%"):
            continue
        component = ConfigComponent(config={"_target_": target}, id=name, locator=parser.locator)
        path = component.resolve_module_name()
        if not isinstance(path, str) or locate(path) is None:
            table = list(parser.locator._components_table or ())
            module = target.rpartition(".")[0]
            if module and (found := locate(module)) is not None:
                table = [f"{module}.{entry}" for entry in dir(found) if callable(getattr(found, entry))]
            near = difflib.get_close_matches(target, table, n=1)
            wanted = "a class or function that can be imported"
            raise ConfigValueError(f"{name}#_target_", target, wanted, f"write {near[0]}" if near else "correct it")


def _iterate_targets(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    if isinstance(value, dict) and isinstance(value.get("_target_"), str):
        yield name, value["_target_"]
    for key, item in items:
        yield from _iterate_targets(item, f"{name}#{key}" if name else str(key))


def _check_labels(labels: Sequence[str], label_map: Mapping[int, int]) -> None:
    classes = set(label_map.values())
    if beyond := sorted(number for number in classes if number >= len(labels)):
        wanted = f"0 to {len(labels) - 1}, the classes of labels"
        raise ConfigValueError(
            "label_map", f"class {beyond[0]}", wanted, "correct label_map, or name the class in labels"
        )
    if absent := [name for number, name in enumerate(labels) if number not in classes]:
        wanted = f"a value for each of {len(labels)} labels"
        raise ConfigValueError("label_map", f"no value for {absent[0]}", wanted, "add it, or remove the label")


def _tell_mirroring(
    config: Mapping[str, Any], labels: Sequence[str], mirrored: Mapping[str, str] | None, axes: Sequence[int]
) -> None:
    """Log what flips do to right and left; that they teach what is not so is a warning."""
    keeps = bool(list_sided(labels) and axes and mirrored is None)
    logger.log(logging.WARNING if keeps else logging.INFO, "%s", describe_mirroring(labels, mirrored, axes))
    for name, target in _iterate_targets({key: config.get(key) for key in ("augmentation", "train")}):
        if target.rpartition(".")[2] in ("RandFlipd", "RandAxisFlipd") and list_sided(labels) and mirrored != {}:
            told = "%s, %s: right and left keep their names in mirror images; write tools.transforms.RandMirrord"
            logger.warning(told, name, target)


def _check_file(dataset_dir: str, labels: Sequence[str], label_map: Mapping[int, int], applies: bool) -> None:
    """Refuse a `dataset.json` that gives the value of a class to another one, by their names.

    Where weights are applied, names that have no word in common with those of the model are told.
    """
    source = locate_source(dataset_dir)
    if source.is_dir():
        return
    named = read_label_names(source)
    own = {name.strip().casefold(): name for name in labels}
    for value, name in named.items():
        known = name.strip().casefold()
        if known in own and value in label_map and labels[label_map[value]] != own[known]:
            found = f"{name} for the value {value}"
            wanted = f"{labels[label_map[value]]}, as labels and label_map have it"
            raise ConfigValueError(source, found, wanted, "correct the one that is wrong")
    pairs = [(name, labels[label_map[value]]) for value, name in named.items() if label_map.get(value)]
    if applies and pairs and not any({*one.casefold().split()} & {*other.casefold().split()} for one, other in pairs):
        told = ", ".join(f"{one} ({other})" for one, other in pairs)
        logger.warning("%s: other structures than those of the model, as far as names tell: %s", source, told)


def check_command_line(argv: Sequence[str] | None = None) -> None:
    """Raise if an override of `python -m monai.bundle run` (or `run_workflow`) names a key that no config file has.

    MONAI adds unknown keys to the config without a word, so that a typing error leaves the default in force. A key is
    known if the merged config files have it, or if it is an argument (old or new) of a component, that is of a
    mapping with `_target_`. MONAI's own options, `_meta_` and the settings of `--tracking` are no overrides.
    Nothing happens in any other program.

    Args:
        argv: the program and its arguments; default: those of this process.

    Raises:
        UnknownOverrideError: with the nearest key, if there is one.
        ConfigValueError: for the text `false`, which would count as true.
    """
    program, *arguments = sys.argv if argv is None else argv
    if Path(program).parts[-3:] != ("monai", "bundle", "__main__.py") or not arguments:
        return
    command = {"run": run, "run_workflow": run_workflow}.get(arguments[0].replace("-", "_"))
    settings = _parse_arguments(command, arguments[1:]) if command else {}
    # `--+key` loses its plus in MONAI and replaces the value; `+key` in an args_file stays an unknown key
    settings = {key.removeprefix("+"): value for key, value in settings.items()}
    settings = {**ConfigParser.load_config_file(settings.get("args_file")), **settings}
    if "config_file" not in settings or settings.get("workflow_name", "ConfigWorkflow") != "ConfigWorkflow":
        return  # a foreign workflow class may define other options
    parser = ConfigParser(
        {**_load_tracking(settings.get("tracking")), **ConfigParser.load_config_files(settings["config_file"])}
    )
    options = {
        name for source in (run, run_workflow, create_workflow, ConfigWorkflow) for name in _list_options(source)
    }
    unknown = []
    for key, value in settings.items():
        if key in options or ReferenceResolver.split_id(key)[0] == ConfigParser.meta_key:
            continue
        if isinstance(value, str) and value.lower() == "false":
            # the command line reads Python values: the text 'false' counts as true in every condition
            raise ConfigValueError(f"--{key}", repr(value), "True or False", f"write --{key} False")
        if _has_place(parser, key):
            _check_nested(parser, key, value)
            parser[key] = value  # a later override may reach into this one
        else:
            unknown.append(key)
    if unknown:
        nearest = [f"--{near}" for near in (_find_nearest(key, parser.get()) for key in unknown) if near]
        files = settings["config_file"]
        raise UnknownOverrideError(
            ", ".join(f"--{key}" for key in unknown),
            f"no such key in {files if isinstance(files, str) else ', '.join(map(str, files))}",
            "a key of the config",
            f"did you mean {', '.join(nearest)}" if nearest else "look up the keys in that file",
        )


def _parse_arguments(command: Callable[..., None], arguments: Sequence[str]) -> dict[str, Any]:
    """Return what fire would call `command` with, by letting fire call a stand-in of the same signature."""
    signature = inspect.signature(command)
    settings: dict[str, Any] = {}

    def record(*args: Any, **kwargs: Any) -> None:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                settings.update(value)
            elif value is not None:
                settings[name] = value

    record.__signature__ = signature  # type: ignore[attr-defined]
    fire.Fire(record, command=list(arguments), name=command.__name__)
    return settings


def _list_options(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_KEYWORD]


def _load_tracking(tracking: Any) -> dict[str, None]:
    """Return the keys that MONAI adds to the config for experiment tracking unless the user sets them."""
    if tracking is None:
        return {}
    known = isinstance(tracking, str) and tracking in DEFAULT_EXP_MGMT_SETTINGS
    settings = DEFAULT_EXP_MGMT_SETTINGS[tracking] if known else ConfigParser.load_config_files(tracking)
    return {key: None for key in settings["configs"] if key not in settings["handlers_id"]}


def _check_nested(parser: ConfigParser, key: str, value: Any) -> None:
    """Refuse a value inside a component that is of another type than the one that it replaces."""
    old = parser.get(key) if "#" in key and key in parser else None
    if isinstance(value, str) and value[:1] in ("$", "@", "%"):
        return
    if isinstance(old, str) and ReferenceResolver.id_matcher.fullmatch(old):
        known = KEYS.get(old[1:])  # as `lr: @learning_rate`
        if known is not None and known.check is not None and (wanted := known.check(value)):
            raise ConfigValueError(f"--{key}", _show(value), wanted, _advise(key, known, value))
    elif is_number(old) and not is_number(value) and value is not None:
        raise ConfigValueError(f"--{key}", _show(value), f"a number, as the {old} of the config", "correct it")
    elif isinstance(old, bool) and check_flag(value):
        raise ConfigValueError(f"--{key}", _show(value), "True or False", "correct it")


def _has_place(parser: ConfigParser, key: str) -> bool:
    if key in parser:
        return True
    parent, _ = ReferenceResolver.split_id(key, last=True)
    component = parser.get(parent) if parent else None
    return isinstance(component, dict) and "_target_" in component


def _find_nearest(key: str, config: dict[str, Any]) -> str | None:
    """Return the key that was probably meant: first of all one with the same last part, as in `max_epochs`."""
    key = ReferenceResolver.normalize_id(key).replace("::", "#")
    last_part = key.rpartition("#")[2]
    known = defaultdict(list)
    for name in _iterate_keys(config):
        known[name.rpartition("#")[2]].append(name)
    candidates = (
        known.get(last_part)
        or difflib.get_close_matches(key, itertools.chain.from_iterable(known.values()), n=1)
        or known.get(next(iter(difflib.get_close_matches(last_part, known, n=1)), ""), [])
    )
    return max(candidates, key=lambda name: difflib.SequenceMatcher(None, key, name).ratio(), default=None)


def _iterate_keys(config: Any, prefix: str = "") -> Iterator[str]:
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for name, value in items:
        yield f"{prefix}{name}"
        yield from _iterate_keys(value, f"{prefix}{name}#")
