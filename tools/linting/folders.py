# SPDX-License-Identifier: Apache-2.0
"""Files of a bundle's folder: the needed ones are there, none is there by accident, copies say the same."""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from tools.files import compute_sha256
from tools.linting.bundle import METADATA, Bundle, normalize
from tools.linting.findings import Finding, Severity, show
from tools.linting.large_files import list_large_paths
from tools.linting.values import evaluate_literal, is_plain

MAX_MB = 25  # what the model zoo takes as a committed file
JUNK = ("__pycache__", ".DS_Store", "Thumbs.db", ".ipynb_checkpoints", ".git", ".pytest_cache", ".ruff_cache", "eval")
JUNK_SUFFIXES = (".pyc", ".pyo", ".swp", ".bak", ".orig", ".tmp", ".part", "~")
# folders of one machine; /workspace is the zoo's word for wherever the data are
HOME = re.compile(r"(?<![\w/.])(/home/|/Users/|/root/|[A-Za-z]:\\)[\w.\\/-]*|(?<!\w)~/[\w.-]+")
CONFIG_FILE = re.compile(r"(?<![\w/<{])((?:configs|models)/[\w./-]+\.(?:yaml|yml|json|safetensors))\b")


def check_folder(bundle: Bundle) -> Iterator[Finding]:
    """Yield files that are missing, empty, left over, or differ from the one beside them."""
    yield from _check_needed(bundle)
    yield from _check_left_over(bundle)
    yield from _check_twins(bundle)
    yield from _check_paths(bundle)
    yield from _check_logging(bundle)
    yield from _check_documents(bundle)
    yield from _check_cards(bundle)


def _check_needed(bundle: Bundle) -> Iterator[Finding]:
    own: Severity = "error" if bundle.own else "warning"
    needed: list[tuple[tuple[str, ...], Severity]] = [
        (("LICENSE",), "error"),
        ((METADATA,), "error"),
        (("configs/inference.yaml", "configs/inference.json", "configs/inference.yml"), "error"),
        (("docs/README.md",), own),
    ]
    if bundle.own:
        needed += [(("docs/data_license.txt",), own), (("configs/logging.conf",), own)]
        needed += [((f"configs/{stem}.yaml", f"configs/{stem}.json"), own) for stem in ("train", "evaluate")]
    for names, severity in needed:
        there = [name for name in names if (bundle.root / name).is_file()]
        if not there:
            yield Finding(names[0], "", "no such file", "a file that every bundle has", "add it", severity)
        for name in there:
            if not (bundle.root / name).read_bytes().strip():
                yield Finding(name, "", "an empty file", "its text", "restore it", severity)
    if (bundle.root / "configs/inference.yml").is_file():
        yield Finding(
            "configs/inference.yml", "", "the suffix .yml", ".yaml or .json", "rename it: MONAI Label reads only those"
        )
    if bundle.exported and bundle.own and not (bundle.root / "tools").is_dir():
        yield Finding("tools", "", "no such folder", "the code that the configs refer to", "export the bundle again")
    if bundle.exported and bundle.own:
        for stem in ("inference", "train"):
            if bundle.find_config(f"configs/{stem}") and not (bundle.root / f"configs/{stem}.json").is_file():
                wanted = f"configs/{stem}.json: monai.bundle.load reads JSON only"
                yield Finding(f"configs/{stem}.json", "", "no such file", wanted, "export the bundle again", "warning")


def _check_left_over(bundle: Bundle) -> Iterator[Finding]:
    large = list_large_paths(bundle)
    for path in sorted(bundle.root.rglob("*")):
        name = path.relative_to(bundle.root).as_posix()
        parts = PurePosixPath(name).parts
        if any(part in JUNK for part in parts[:-1]):
            continue  # told with its folder
        # the zoo's schema and mlflow's data base lie in eval/, too
        if path.name in JUNK or name.endswith(JUNK_SUFFIXES) or path.name.startswith("events.out.tfevents"):
            yield Finding(name, "", "a left-over", "only what the bundle needs", "delete it before sharing", "warning")
        elif path.is_symlink() and not path.exists():
            yield Finding(name, "", "a link that leads nowhere", "a file", "replace it by the file")
        elif path.is_file() and path.stat().st_size > MAX_MB * 1e6 and not bundle.exported and name not in large:
            size = f"{path.stat().st_size / 1e6:.0f} MB"
            wanted = f"at most {MAX_MB} MB, or an entry in large_files.yml"
            if not (bundle.own and path.with_suffix(".yaml").is_file()):  # a committed model has its own limit
                yield Finding(name, "", size, wanted, "publish the file and name it there", "warning")


def _check_twins(bundle: Bundle) -> Iterator[Finding]:
    """Yield where a JSON config says something else than the YAML config of the same name."""
    for name in bundle.config_names:
        other = bundle.find_config(name.removesuffix(".json"), (".yaml", ".yml")) if name.endswith(".json") else None
        if other is None or bundle.read(name).findings or bundle.read(other).findings:
            continue
        contents = (bundle.read(file).content for file in (name, other))
        mine, theirs = ({key: value for key, value in content.items() if key != "_desc_"} for content in contents)
        for place, a, b in _find_differences(mine, theirs, ""):
            spelled = "nothing" if a is None else show(a)
            wanted = f"{'nothing' if b is None else show(b)}, as in {other}"
            yield Finding(name, f"key {place}", spelled, wanted, "make it anew from the YAML file")


def _find_differences(mine: Any, theirs: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    # JSON has neither infinity nor keys that are numbers: expressions stand for them
    mine, theirs = (normalize(_read_literal(value)) for value in (mine, theirs))
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in dict.fromkeys([*mine, *theirs]):
            yield from _find_differences(mine.get(key), theirs.get(key), f"{place}#{key}".lstrip("#"))
    elif isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        for index, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            yield from _find_differences(a, b, f"{place}#{index}")
    elif mine != theirs:
        yield place, mine, theirs


def _read_literal(value: Any) -> Any:
    literal = evaluate_literal(value) if isinstance(value, str) and value.startswith("$") else value
    return literal if is_plain(literal) else value


def _check_paths(bundle: Bundle) -> Iterator[Finding]:
    severity: Severity = "error" if bundle.own else "warning"
    for name in [*bundle.config_names, METADATA]:
        if not (bundle.root / name).is_file():
            continue
        document = bundle.read(name)
        for place, text in _iterate_texts(document.content, ""):
            path = _find_absolute(text)
            if path:
                remedy = "write it relative to @bundle_root, or leave it to the user"
                yield Finding(
                    name, document.locate(place), f"the absolute path {path}", "a path of any machine", remedy, severity
                )


def _iterate_texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield place, value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in children:
        yield from _iterate_texts(item, f"{place}::{str(key).replace('#', '::')}".removeprefix("::"))


def _find_absolute(text: str) -> str | None:
    if match := HOME.search(text):
        return match[0]
    if text.startswith("$") and "@" in text:  # `@bundle_root + '/models'` is relative
        return None
    literals = [a or b for a, b in re.findall(r"'([^']*)'|\"([^\"]*)\"", text)] if text.startswith("$") else [text]
    for literal in literals:
        path = PurePosixPath(literal)
        plain = re.fullmatch(r"/[\w.-]+(/[\w. -]+)*/?", literal)
        if (plain and len(path.parts) > 2) or re.match(r"[A-Za-z]:[\\/]", literal) or PureWindowsPath(literal).drive:
            return literal
    return None


def _check_logging(bundle: Bundle) -> Iterator[Finding]:
    name = "configs/logging.conf"
    path = bundle.root / name
    if not path.is_file():
        return
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (configparser.Error, UnicodeDecodeError) as error:
        found = f"text that cannot be parsed ({str(error).partition(chr(10))[0]})"
        yield Finding(name, "", found, "a logging configuration", "correct it")
        return
    for kind, prefix in (("loggers", "logger"), ("handlers", "handler"), ("formatters", "formatter")):
        keys = parser.get(kind, "keys", fallback=None)
        if keys is None:
            yield Finding(name, "", f"no section {kind}", "loggers, handlers and formatters with keys", "add it")
            continue
        for key in (part.strip() for part in keys.split(",") if part.strip()):
            if f"{prefix}_{key}" not in parser:
                yield Finding(
                    name, f"section {kind}", f"{key}, but no section {prefix}_{key}", "a section for each key", "add it"
                )
    for section in parser.sections():
        target, arguments = parser.get(section, "class", fallback=""), parser.get(section, "args", fallback="()")
        if target and not re.fullmatch(r"(logging\.)?(handlers\.)?[A-Z]\w*", target):
            wanted = "a class of logging or logging.handlers: MONAI refuses others"
            yield Finding(name, f"section {section}", f"the class {target}", wanted, "correct it")
        try:
            ast.literal_eval(re.sub(r"\bsys\.(stdout|stderr)\b", "None", arguments))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            wanted = "literals, sys.stdout or sys.stderr: MONAI refuses others"
            yield Finding(name, f"section {section}", f"the arguments {show(arguments)}", wanted, "correct them")


def _check_documents(bundle: Bundle) -> Iterator[Finding]:
    """Yield config files and weights that a text names and that are not there."""
    large = list_large_paths(bundle)
    for path in sorted([*bundle.root.glob("docs/*.md"), *bundle.root.glob("models/*.md")]):
        name = path.relative_to(bundle.root).as_posix()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            for file in CONFIG_FILE.findall(line):
                # JSON copies are made by the export
                made = file.endswith(".json") and (bundle.root / file).with_suffix(".yaml").is_file()
                # ... which leaves recipes in the repository, and names them
                made = made or (bundle.exported and file.startswith("configs/recipes/"))
                if not (bundle.root / file).is_file() and file not in large and not made:
                    remedy = "correct the name, or add the file"
                    yield Finding(
                        name, f"line {number}", f"{file}, which is not there", "files of the bundle", remedy, "warning"
                    )
            if bundle.own and (match := HOME.search(line)):
                yield Finding(
                    name, f"line {number}", f"the path {match[0]}", "paths of any machine", "write a placeholder"
                )


def _check_cards(bundle: Bundle) -> Iterator[Finding]:
    """Yield committed models without a card, and cards of other weights."""
    if not bundle.own:
        return
    for name in bundle.config_names:
        if not name.startswith("models/") or name.endswith(".json"):
            continue
        card, weights = (Path(name).with_suffix(suffix) for suffix in (".md", ".safetensors"))
        if not (bundle.root / card).is_file():
            yield Finding(
                card.as_posix(), "", "no such file", f"the card of the model {weights.name}", "publish it again"
            )
        elif (bundle.root / weights).is_file():
            digest = compute_sha256(bundle.root / weights)
            if digest not in (bundle.root / card).read_text(encoding="utf-8", errors="replace"):
                remedy = "restore the weights, or publish them again"
                yield Finding(weights.as_posix(), "", f"SHA-256 {digest}", f"the one in {card.name}", remedy)
