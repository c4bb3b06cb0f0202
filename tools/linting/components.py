# SPDX-License-Identifier: Apache-2.0
"""Components and expressions of configs: they exist, take their arguments, and do nothing that a config should not."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from monai.bundle import ComponentLocator, ConfigComponent

from tools.linting.bundle import Bundle
from tools.linting.configs import MergedConfig
from tools.linting.documents import SEPARATOR
from tools.linting.expressions import (
    GLOBALS,
    Expression,
    find_forbidden,
    find_forbidden_path,
    find_unbound,
    parse_expression,
    read_import,
    spell,
    spell_chain,
)
from tools.linting.findings import Finding, show, suggest
from tools.linting.modules import ModuleFinder, Symbol

TYPING_ERROR = 0.85  # likeness of names, by difflib
SPECIAL = frozenset(ConfigComponent.non_arg_keys) | {"_debug_"}
MODES = ("default", "callable", "debug")


def find_component(target: str, finder: ModuleFinder) -> Symbol | None:
    """Return what `_target_` names, as MONAI finds it: a short name in MONAI, or a full dotted name."""
    module = _list_components().get(target)
    return finder.find(f"{module[0]}.{target}" if module else target)


def check_components(bundle: Bundle) -> Iterator[Finding]:
    """Yield what is wrong with the components and expressions of all configs."""
    clean: set[tuple[str, frozenset[tuple[str, str]]]] = set()  # most expressions stand in many combinations
    for config in bundle.sets:
        expressions = {p: v for p, v in config.items.items() if isinstance(v, str) and v.startswith("$")}
        parsed: dict[str, Expression] = {}
        for place, value in expressions.items():
            try:
                parsed[place] = parse_expression(value)
            except SyntaxError as error:
                found = f"{show(value)}, which is no Python ({error.msg})"
                yield config.report(place, found, "one expression or one import after the $", "correct it")
        imports = {place: bound for place, e in parsed.items() if (bound := read_import(e)) is not None}
        names = dict(GLOBALS) | {bound.name: bound.target for bound in imports.values()}
        for place, expression in parsed.items():
            if (key := (expressions[place], frozenset(names.items()))) in clean:
                continue
            findings = list(_check_expression(config, place, expression, names, bundle.finder))
            yield from findings
            if not findings:
                clean.add(key)
        for place, value in config.items.items():
            if ConfigComponent.is_instantiable(value):
                yield from _check_component(config, place, value, bundle.finder)
            elif isinstance(value, dict):
                yield from _check_forgotten_target(config, place, value)
    yield from _check_own_code(bundle)


def _check_expression(
    config: MergedConfig, place: str, expression: Expression, names: Mapping[str, str], finder: ModuleFinder
) -> Iterator[Finding]:
    forbidden = sorted(set(find_forbidden(expression, dict(names))))
    for what in forbidden:
        wanted = "an expression that only reads its config"
        yield config.report(
            place, f"{what} in {show(spell(expression))}", wanted, "move it into a module, or remove it"
        )
    imported = read_import(expression)
    if imported is not None:
        if not forbidden and finder.find(imported.target) is None:
            wanted = "a module or name that can be imported"
            parent, _, last = imported.target.rpartition(".")
            remedy = suggest(last, finder.list_names(parent) if parent else [], "correct the name, or install it")
            yield config.report(place, f"the import of {imported.target}, which is not there", wanted, remedy)
        return
    for name in find_unbound(expression, dict(names)):
        if not any(name in what for what in forbidden):
            remedy = suggest(name, names, f'add "$import {name}" to imports, or write @{name} if the key is meant')
            yield config.report(
                place, f"the name {name} in {show(spell(expression))}", "names that the config imports", remedy
            )
    yield from _check_uses(config, place, expression, names, finder)


def _check_uses(
    config: MergedConfig, place: str, expression: Expression, names: Mapping[str, str], finder: ModuleFinder
) -> Iterator[Finding]:
    """Yield the names after imported modules that these lack, and wrong keywords of calls to them."""
    inner = {id(n.value) for n in ast.walk(expression.tree) if isinstance(n, ast.Attribute)}
    calls = {id(n.func): n for n in ast.walk(expression.tree) if isinstance(n, ast.Call)}
    for node in ast.walk(expression.tree):
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        parts = spell_chain(node)
        if not parts or parts[0] not in names:
            continue
        module = finder.find(names[parts[0]])
        if module is None or module.kind != "module":
            continue
        dotted, symbol = names[parts[0]], module
        for part in parts[1:]:
            if symbol.kind != "module" or find_forbidden_path(f"{dotted}.{part}"):
                break
            known = finder.find(f"{dotted}.{part}")
            if known is None:
                remedy = suggest(part, finder.list_names(dotted), "correct the name")
                yield config.report(
                    place, f"{'.'.join(parts)} in {show(spell(expression))}", f"a name that {dotted} has", remedy
                )
                break
            dotted, symbol = f"{dotted}.{part}", known
        else:
            call = calls.get(id(node))
            if call is not None:
                keywords = {keyword.arg for keyword in call.keywords if keyword.arg}
                yield from _check_arguments(config, place, symbol, keywords, ".".join(parts))


def _check_component(
    config: MergedConfig, place: str, value: Mapping[str, Any], finder: ModuleFinder
) -> Iterator[Finding]:
    target = value["_target_"]
    here = f"{place}{SEPARATOR}_target_"
    for key in value:
        if str(key).startswith("_") and str(key).endswith("_") and key not in SPECIAL:
            remedy = suggest(str(key), SPECIAL, "remove it")
            yield config.report(f"{place}{SEPARATOR}{key}", f"the key {key}", "a key that MONAI knows", remedy)
    if value.get("_mode_", "default") not in MODES:
        yield config.report(
            f"{place}{SEPARATOR}_mode_", show(value["_mode_"]), f"one of {', '.join(MODES)}", "correct it"
        )
    if not isinstance(target, str) or not target:
        yield config.report(here, show(target), "the name of a class or function", "correct it")
        return
    if target[0] in "$@%":
        return
    if why := find_forbidden_path(target):
        wanted = "a component that does nothing outside the run"
        yield config.report(here, f"{target} ({why})", wanted, "remove it")
        return
    symbol = find_component(target, finder)
    if symbol is None or symbol.kind == "module":
        yield _report_unknown(config, here, target, finder)
        return
    if symbol.kind == "value":
        yield config.report(here, f"{target}, which is no class or function", "a class or function", "correct the name")
        return
    given = {str(key) for key in value if key not in SPECIAL}
    yield from _check_arguments(config, place, symbol, given, target)
    if value.get("_mode_", "default") != "callable" and symbol.parameters is not None:
        missing = [name for name, required in symbol.parameters.items() if required and name not in given]
        for name in missing:
            yield config.report(
                place, f"{target} without {name}", f"all arguments that {target} requires", f"add {name}"
            )


def _report_unknown(config: MergedConfig, here: str, target: str, finder: ModuleFinder) -> Finding:
    module, _, name = target.rpartition(".")
    known = finder.list_names(module) if module else list(_list_components())
    top = target.partition(".")[0]
    otherwise = f"correct the name, or install {top}" if module and finder.find(top) is None else "correct the name"
    remedy = suggest(name, known, otherwise) if name not in known else "restore the module that it comes from"
    wanted = "a component of MONAI or a full name that can be imported"
    return config.report(here, f"{target}, which is not there", wanted, remedy)


def _check_arguments(
    config: MergedConfig, place: str, symbol: Symbol, given: set[str], spelled: str
) -> Iterator[Finding]:
    if symbol.parameters is None:
        return
    for name in sorted(given - set(symbol.parameters)):
        key = f"{place}{SEPARATOR}{name}"
        near = difflib.get_close_matches(name, symbol.parameters, n=1, cutoff=TYPING_ERROR)
        if symbol.open_ended:  # it may take this name, too
            if near:
                found, wanted = f"the argument {name}", f"{near[0]}, an argument of {spelled} of nearly that name"
                yield config.report(
                    key if key in config.items else place, found, wanted, f"write {near[0]}, if it is meant", "warning"
                )
            continue
        wanted = f"an argument of {spelled}: {', '.join(symbol.parameters) or 'none'}"
        yield config.report(
            key if key in config.items else place,
            f"the argument {name}",
            wanted,
            suggest(name, symbol.parameters, f"remove {name}"),
        )


def _check_forgotten_target(config: MergedConfig, place: str, value: Mapping[str, Any]) -> Iterator[Finding]:
    for key in value:
        text = str(key)
        if text.strip("_").lower() == "target" and text != "_target_" and text.startswith("_"):
            yield config.report(f"{place}{SEPARATOR}{key}", f"the key {key}", "_target_", "write _target_")


def _check_own_code(bundle: Bundle) -> Iterator[Finding]:
    """Yield modules of the bundle's own code that are no Python or import a module that is missing beside them."""
    for folder in ("tools", "scripts"):
        for path in sorted((bundle.root / folder).rglob("*.py")):
            name = path.relative_to(bundle.root).as_posix()
            tree = bundle.finder.parse_file(path)
            if tree is None:
                yield Finding(name, "", "source that cannot be parsed", "Python", "copy the file again")
                continue
            yield from _check_imports(name, tree, folder, bundle.finder)


def _check_imports(name: str, tree: ast.Module, folder: str, finder: ModuleFinder) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            targets = [f"{node.module}.{alias.name}" for alias in node.names if alias.name != "*"]
        else:
            continue
        for target in targets:
            if target.partition(".")[0] == folder and finder.find(target) is None:
                wanted = f"code that is complete in {folder}/"
                remedy = f"copy the missing part of {folder}/ into the bundle"
                yield Finding(
                    name, f"line {node.lineno}", f"the import of {target}, which is not there", wanted, remedy
                )


@lru_cache(maxsize=1)
def _list_components() -> dict[str, list[str]]:
    locator = ComponentLocator()
    locator.get_component_module_name("")  # fills its table
    return dict(locator._components_table or {})
