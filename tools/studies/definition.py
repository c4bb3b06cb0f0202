# SPDX-License-Identifier: Apache-2.0
"""What a study is: the YAML file that says which runs are compared, read and checked before the first one starts."""

from __future__ import annotations

import difflib
import graphlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from tools.bundles import CARDS, locate_card, make_command
from tools.checks import check_command_line
from tools.configs.files import read_config
from tools.errors import ConfigValueError, MissingFileError, UnknownOverrideError

STUDY_KEYS = ("title", "card", "seeds", "runs", "table", "against")
RUN_KEYS = ("like", "configs", "overrides", "evaluate")
# keys that the runner sets itself, see `Job`
COMMON_KEYS = ("bundle_root", "dataset_dir", "output_dir", "seed")
RUNNER_KEYS = (*COMMON_KEYS, "resume", "checkpoint")
CARD = "CARD"  # stands for the data set's card in a list of configs
_REFERENCE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Run:
    """One line of a study: a training with its seeds left open, and how its last checkpoint is evaluated.

    Args:
        name: also the name of its folder.
        configs: files in the order they are merged.
        overrides: keys and values of the command line; `{other}` stands for the folder of the run `other`.
        evaluation: the files of the evaluation, which are `configs` and overlays on them; empty for none.
        needs: names of the runs whose folders the overrides name.
    """

    name: str
    configs: tuple[Path, ...]
    overrides: Mapping[str, Any]
    evaluation: tuple[Path, ...]
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A study file that is known to be sound.

    Args:
        path: the file; its stem is the study's name.
        root: folder of the bundle that it lies in.
        title: what is compared.
        card: name of the data set, if the study names one.
        seeds: each run is made once for each.
        runs: by name, those that others need before them.
        table: label of the row by name of the run.
        against: by name of a run the one that its row is compared with; the first of the table for all others.
    """

    path: Path
    root: Path
    title: str
    card: str | None
    seeds: tuple[int, ...]
    runs: Mapping[str, Run]
    table: Mapping[str, str]
    against: Mapping[str, str]


def read_study(path: str | Path) -> Study:
    """Return the study of a YAML file `<bundle>/studies/<name>.yaml`.

    Raises:
        MissingFileError: if the file is not there or not inside a bundle.
        ConfigValueError: if an entry cannot be understood; names the file, the entry and the nearest one known.
        UnknownOverrideError: if an override is no key of the run's configs.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise MissingFileError(path, "no such file", "the YAML file of a study", "correct the path")
    root = next((parent for parent in path.parents if (parent / "configs" / "metadata.json").is_file()), None)
    if root is None:
        raise MissingFileError(path, "no bundle around it", "<bundle>/studies/<name>.yaml", "move it into a bundle")
    content, subject = _read_content(path), f"{path}, runs"
    entries, card = _inherit(content["runs"], subject), content.get("card")
    if card is not None:
        require_known([card], sorted(file.stem for file in CARDS.glob("*.yaml")), f"{path}, card")
    runs = {name: _make_run(name, entry, entries, root, card, subject) for name, entry in entries.items()}
    runs = {name: runs[name] for name in _order(runs, subject)}
    for run in runs.values():
        _check_commands(run, subject)
    evaluated = [name for name in entries if runs[name].evaluation]
    table = content.get("table", {name: name for name in evaluated})
    _require(isinstance(table, dict), f"{path}, table", table, "a mapping from runs to labels")
    require_known(table, evaluated, f"{path}, table")
    labels = {name: str(label) for name, label in table.items()}
    against = content.get("against", {})
    _require(isinstance(against, dict), f"{path}, against", against, "a mapping from runs to runs")
    require_known([*against, *against.values()], labels, f"{path}, against")
    return Study(path, root, content["title"], card, tuple(content["seeds"]), runs, labels, against)


def merge_configs(files: Sequence[Path], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config that a run of MONAI works with, its expressions not yet evaluated."""
    parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in files]))
    parser.update(dict(overrides))
    config: dict[str, Any] = parser.get()
    return config


def fill_references(value: Any, folders: Mapping[str, Path]) -> Any:
    """Return `value` with each `{run}` in its texts replaced by the folder of that run."""
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: str(folders[match[1]]), value)
    if isinstance(value, Mapping):
        return {key: fill_references(entry, folders) for key, entry in value.items()}
    return [fill_references(entry, folders) for entry in value] if isinstance(value, list) else value


def require_known(names: Iterable[Any], known: Collection[Any], subject: object) -> None:
    """Raise `ConfigValueError` for the first of `names` that is not `known`, with the nearest that is."""
    known = [*known]  # a list finds what cannot be hashed, too
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), [str(other) for other in known], n=1)
            remedy = f"did you mean {nearest[0]}" if nearest else "correct or remove it"
            wanted = f"one of {', '.join(map(str, known))}" if known else "none, there is nothing to name"
            raise ConfigValueError(subject, repr(name), wanted, remedy)


def _require(is_sound: bool, subject: object, found: object, wanted: str) -> None:
    if not is_sound:
        raise ConfigValueError(subject, repr(found), wanted, "correct it")


def _read_content(path: Path) -> dict[str, Any]:
    content = read_config(path)
    require_known(content, STUDY_KEYS, path)
    _require(isinstance(content.get("title"), str), f"{path}, title", content.get("title"), "a sentence")
    seeds = content.get("seeds")
    numbers = seeds if isinstance(seeds, list) else []
    is_sound = len(set(map(repr, numbers))) == len(numbers) > 0 and all(type(n) is int and n >= 0 for n in numbers)
    _require(is_sound, f"{path}, seeds", seeds, "a list of different whole numbers")
    runs = content.get("runs")
    _require(isinstance(runs, dict) and bool(runs), f"{path}, runs", runs, "a mapping from names to runs")
    return content


def _inherit(entries: Mapping[Any, Any], subject: str) -> dict[str, dict[str, Any]]:
    """Return the entries of the runs with what they take over from the run that they are `like`."""
    runs: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        is_name = isinstance(name, str) and re.fullmatch(r"\w+", name, re.ASCII) is not None
        _require(is_name, subject, name, "a name of letters, digits and _")
        place = f"{subject}.{name}"
        _require(isinstance(entry, dict), place, entry, f"a mapping with the keys {', '.join(RUN_KEYS)}")
        require_known(entry, RUN_KEYS, place)
        own = entry.get("overrides", {})
        is_sound = isinstance(own, dict) and all(isinstance(key, str) for key in own)
        _require(is_sound, f"{place}.overrides", own, "a mapping from config keys to values")
        for key in RUNNER_KEYS:
            _require(key not in own, f"{place}.overrides", key, "only keys that the runner does not set itself")
        base: dict[str, Any] = {}
        if "like" in entry:
            require_known([entry["like"]], runs, f"{place}.like")
            base = runs[entry["like"]]
        runs[name] = {**base, **entry, "overrides": {**base.get("overrides", {}), **own}}
    return runs


def _make_run(
    name: str, entry: Mapping[str, Any], names: Collection[str], root: Path, card: str | None, subject: str
) -> Run:
    place = f"{subject}.{name}"
    configs = _find_configs(entry.get("configs"), root, card, f"{place}.configs")
    _require(bool(configs), f"{place}.configs", [], "a config file or more")
    overlays = _find_configs(entry.get("evaluate", []), root, card, f"{place}.evaluate")
    overrides = entry["overrides"]
    needs = tuple(dict.fromkeys(_find_references(overrides)))
    require_known(needs, names, f"{place}.overrides")
    # on the command line such an override would win, and the evaluation would not be of the checkpoint
    taken = [_add_end(key.lstrip("+")) for file in overlays for key in ConfigParser.load_config_file(str(file))]
    wanted = f"a key that {' and '.join(file.name for file in overlays)} leaves alone"
    for key in overrides:
        is_free = not any(_add_end(key).startswith(other) or other.startswith(_add_end(key)) for other in taken)
        _require(is_free, f"{place}.overrides", key, wanted)
    return Run(name, configs, overrides, (*configs, *overlays) if overlays else (), needs)


def _add_end(key: str) -> str:
    """Return a config key so spelled that the keys inside it, and no others, start with it."""
    return f"{key.replace('::', '#')}#"


def _find_configs(names: Any, root: Path, card: str | None, subject: str) -> tuple[Path, ...]:
    _require(isinstance(names, list), subject, names, "a list of config files")
    _require(CARD not in names or card is not None, subject, CARD, "files, as the study names no card")
    known = [path.relative_to(root).as_posix() for path in sorted(root.glob("configs/**/*.yaml"))]
    paths = [locate_card(str(card)) if name == CARD else root / str(name) for name in names]
    require_known(
        [name for name, path in zip(names, paths, strict=True) if not path.is_file()], [CARD, *known], subject
    )
    return tuple(paths)


def _find_references(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from _REFERENCE.findall(value)
    elif isinstance(value, (dict, list)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _find_references(entry)


def _order(runs: Mapping[str, Run], subject: str) -> list[str]:
    """Return the names of the runs, each after those that it needs."""
    try:
        return list(graphlib.TopologicalSorter({name: run.needs for name, run in runs.items()}).static_order())
    except graphlib.CycleError as error:
        circle = " needs ".join(reversed(error.args[1]))
        raise ConfigValueError(subject, circle, "runs that do not wait for each other", "remove a reference") from error


def _check_commands(run: Run, subject: str) -> None:
    """Raise now for configs and overrides which MONAI would refuse after hours of other runs."""
    for files, key in ((run.configs, "resume"), (run.evaluation, "checkpoint")):
        _, _, _, *words = make_command(files, {**dict.fromkeys((*COMMON_KEYS, key), ""), **run.overrides})
        try:
            check_command_line(["monai/bundle/__main__.py", *(words if files else [])])
        except UnknownOverrideError as error:
            place = f"{subject}.{run.name}.overrides, {error.subject}"
            raise UnknownOverrideError(place, error.found, error.wanted, error.remedy) from error
        except (yaml.YAMLError, KeyError, ValueError) as error:
            found, wanted = f"files that cannot be merged ({error})", "valid files, each key's parent before it"
            raise ConfigValueError(f"{subject}.{run.name}.configs", found, wanted, "correct them") from error
