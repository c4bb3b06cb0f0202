# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the settings of a user: overrides that no config has, values that no network takes."""

from __future__ import annotations

import difflib
import inspect
import itertools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fire
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ReferenceResolver, create_workflow
from monai.bundle.scripts import run, run_workflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

from tools.errors import ConfigValueError, MemoryLimitError, UnknownOverrideError
from tools.hardware import find_free_memory_gb, limit_memory

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
