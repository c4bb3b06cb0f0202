# SPDX-License-Identifier: Apache-2.0
"""Classes and functions behind dotted names: read from source as text, or from packages that are trusted."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tools

# their import has no effect on anything; all other code is read, not imported
TRUSTED = frozenset(str.split("monai torch torchvision ignite numpy"))
SILENT_STANDARD = frozenset(sys.stdlib_module_names) - frozenset(
    str.split("antigravity this idlelib turtledemo turtle")
)
OWN = Path(tools.__file__).resolve().parent
MAX_DEPTH = 12  # re-exports and bases to be followed


@dataclasses.dataclass(frozen=True)
class Symbol:
    """What a dotted name stands for.

    Args:
        name: full dotted name of the definition.
        kind: `class`, `function`, `module`, `value` or `unknown` (exists, but cannot be looked into).
        parameters: of a call by name, whether each is required; None if they are not known.
        open_ended: whether further keywords are taken.
        bases: full names of its classes' bases, all levels.
    """

    name: str
    kind: str
    parameters: Mapping[str, bool] | None = None
    open_ended: bool = False
    bases: frozenset[str] = frozenset()

    def is_a(self, name: str) -> bool:
        """Tell whether this is a class of that short name or derived from one."""
        return any(base.rpartition(".")[2] == name for base in {self.name, *self.bases})


class ModuleFinder:
    """Finds what dotted names stand for, first in the folder of a bundle, then in what is installed.

    Args:
        root: folder of the bundle, whose code is parsed and never run.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, Symbol | None] = {}
        self._trees: dict[Path, ast.Module | None] = {}

    def is_vendored(self, package: str) -> bool:
        """Tell whether the bundle has its own copy of a package."""
        return (self.root / package).is_dir() or (self.root / f"{package}.py").is_file()

    def find(self, name: str) -> Symbol | None:
        """Return what a full dotted name stands for, None if there is no such thing."""
        if name not in self._known:
            self._known[name] = None  # an import that leads back to itself finds nothing
            self._known[name] = self._find(name, 0)
        return self._known[name]

    def list_names(self, module: str) -> list[str]:
        """Return the names in a module, for suggestions."""
        place = self._locate(module)
        if place is not None:
            tree = self.parse_file(place)
            beside = [path.stem for path in place.parent.glob("*") if path.is_dir() or path.suffix == ".py"]
            return sorted({*(_collect(tree) if tree else ()), *(beside if place.name == "__init__.py" else ())})
        try:
            return [name for name in dir(self._import(module)) if not name.startswith("_")]
        except (ImportError, AttributeError):
            return []

    def _find(self, name: str, depth: int) -> Symbol | None:
        parts = name.split(".")
        if depth > MAX_DEPTH or not all(part.isidentifier() for part in parts):
            return None
        top = parts[0]
        vendored = self.is_vendored(top)
        if not vendored and top in (TRUSTED | SILENT_STANDARD):
            return self._find_imported(name)
        for length in range(len(parts), 0, -1):
            path = self._locate(".".join(parts[:length]))
            if path is not None:
                return self._find_in(path, ".".join(parts[:length]), parts[length:], depth)
        if not vendored and top != "tools" and self._find_installed(top) is not None:
            return Symbol(name, "unknown")  # a namespace or binary package
        return None

    def _find_in(self, path: Path, module: str, rest: list[str], depth: int) -> Symbol | None:
        if not rest:
            return Symbol(module, "module")
        if path.suffix != ".py":
            return Symbol(".".join([module, *rest]), "unknown")
        tree = self.parse_file(path)
        if tree is None:
            return None
        node = _collect(tree).get(rest[0])
        full = f"{module}.{rest[0]}"
        if node is None:
            stars = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.names[0].name == "*"]
            for star in stars:
                if symbol := self._find(f"{_absolute(star, module, path)}.{'.'.join(rest)}", depth + 1):
                    return symbol
            dynamic = any(isinstance(n, ast.FunctionDef) and n.name == "__getattr__" for n in tree.body)
            listed = _read_all(tree)
            return Symbol(full, "unknown") if dynamic and (listed is None or rest[0] in listed) else None
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            alias = next(a for a in node.names if (a.asname or a.name.partition(".")[0]) == rest[0])
            if isinstance(node, ast.Import):
                target = alias.name if alias.asname else alias.name.partition(".")[0]
            else:
                target = f"{_absolute(node, module, path)}.{alias.name}"
            return self._find(".".join([target, *rest[1:]]), depth + 1)
        if len(rest) > 1:
            return self._find_member(node, full, rest[1:])
        if isinstance(node, ast.ClassDef):
            return self._describe_class(node, module, path, depth)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            parameters, open_ended = _read_arguments(node.args, skip=0)
            return Symbol(full, "function", parameters, open_ended)
        return Symbol(full, "value")

    def _find_member(self, node: ast.AST, full: str, rest: list[str]) -> Symbol | None:
        if not isinstance(node, ast.ClassDef):
            return Symbol(".".join([full, *rest]), "unknown")
        inner = _collect_body(node.body).get(rest[0])
        if inner is None and not node.bases:
            return None
        return Symbol(".".join([full, *rest]), "unknown")

    def _describe_class(self, node: ast.ClassDef, module: str, path: Path, depth: int) -> Symbol:
        """Return a class with the arguments of its own constructor or of the first base that has one."""
        bases: set[str] = set()
        inherited: Symbol | None = None
        complete = True
        for base in node.bases:
            dotted = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
            symbol = self._find(f"{module}.{dotted}", depth + 1) if dotted not in ("object", "Generic") else None
            bases |= {dotted} if symbol is None else {symbol.name, *symbol.bases}
            if symbol is None or symbol.parameters is None:
                complete = complete and dotted in ("object", "Generic", "ABC", "Protocol")
            elif inherited is None:
                inherited = symbol
        full = f"{module}.{node.name}"
        body = _collect_body(node.body)
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        own = body.get("__init__") or body.get("__new__")
        if isinstance(own, ast.FunctionDef):
            parameters, open_ended = _read_arguments(own.args, skip=1)
            return Symbol(full, "class", parameters, open_ended, frozenset(bases))
        if any("dataclass" in decorator for decorator in decorators) or "NamedTuple" in bases:
            fields = {
                n.target.id: n.value is None
                for n in node.body
                if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
            }
            before = dict(inherited.parameters) if inherited and inherited.parameters else {}
            return Symbol(full, "class", before | fields, bool(before), frozenset(bases))
        if inherited is not None:
            return Symbol(full, "class", inherited.parameters, inherited.open_ended, frozenset(bases))
        return Symbol(full, "class", {} if complete else None, not complete, frozenset(bases))

    def _find_imported(self, name: str) -> Symbol | None:
        try:
            found = self._import(name)
        except (ImportError, AttributeError):
            return None
        if inspect.ismodule(found):
            return Symbol(name, "module")
        if not inspect.isclass(found) and not callable(found):
            return Symbol(name, "value")
        kind = "class" if inspect.isclass(found) else "function"
        bases = frozenset(f"{b.__module__}.{b.__qualname__}" for b in found.__mro__[1:]) if kind == "class" else ()
        try:
            signature = inspect.signature(found)
        except (TypeError, ValueError):  # C code
            return Symbol(name, kind, None, True, frozenset(bases))
        kinds = inspect.Parameter
        parameters = {
            p.name: p.default is kinds.empty
            for p in signature.parameters.values()
            if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
        }
        open_ended = any(p.kind is kinds.VAR_KEYWORD for p in signature.parameters.values())
        return Symbol(name, kind, parameters, open_ended, frozenset(bases))

    def _import(self, name: str) -> Any:
        """Import the longest part of a trusted name that is a module and follow the rest."""
        parts = name.split(".")
        if parts[0] not in (TRUSTED | SILENT_STANDARD) or any(part.startswith("__") for part in parts[:-1]):
            raise ImportError(name)
        module, position = importlib.import_module(parts[0]), 1
        found: Any = module
        for part in parts[1:]:
            position += 1
            if not hasattr(found, part) and inspect.ismodule(found):
                importlib.import_module(".".join(parts[:position]))
            found = getattr(found, part)
        return found

    def _locate(self, module: str) -> Path | None:
        """Return the source file of a module, without importing it."""
        parts = module.split(".")
        top = parts[0]
        if self.is_vendored(top):
            base = self.root / top
        elif top == "tools":
            base = OWN
        elif top in (TRUSTED | SILENT_STANDARD):
            return None
        else:
            installed = self._find_installed(top)
            if installed is None:
                return None
            if installed.name != "__init__.py":
                return installed if len(parts) == 1 else None
            base = installed.parent
        base = base.joinpath(*parts[1:])
        candidates = [base / "__init__.py", base.with_name(f"{base.name}.py")]
        found = next((path for path in candidates if path.is_file()), None)
        return found or (base / "__init__.py" if base.is_dir() and any(base.glob("*.py")) else None)

    def _find_installed(self, top: str) -> Path | None:
        try:
            spec = importlib.util.find_spec(top)  # of a top-level name: nothing is imported
        except (ImportError, ValueError):
            return None
        if spec is None or spec.origin is None:
            return None
        origin = Path(spec.origin).resolve()
        # `python -m` puts the current folder on the path: what lies there is not installed
        return None if origin.parent in (Path.cwd(), self.root.resolve()) else origin

    def parse_file(self, path: Path) -> ast.Module | None:
        """Return the parsed source file, empty for a folder without one, None if it is no Python."""
        if path not in self._trees:
            try:
                self._trees[path] = _parse_text(path.read_text(encoding="utf-8") if path.is_file() else "")
            except (SyntaxError, ValueError, OSError):
                self._trees[path] = None
        return self._trees[path]


@functools.lru_cache(maxsize=512)
def _parse_text(text: str) -> ast.Module:
    return ast.parse(text)


def _collect(tree: ast.Module) -> dict[str, ast.AST]:
    return _collect_body(tree.body)


def _collect_body(body: list[ast.stmt]) -> dict[str, ast.AST]:
    return {name: node for statement in body for name, node in _iterate_names(statement)}


def _iterate_names(node: ast.stmt) -> Iterator[tuple[str, ast.AST]]:
    """Yield the names that a statement binds, also inside `if`, `try` and `with`."""
    if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield node.name, node
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        for alias in node.names:
            yield (alias.asname or alias.name.partition(".")[0]), node
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            for inner in ast.walk(target):
                if isinstance(inner, ast.Name):
                    yield inner.id, node
    elif isinstance(node, (ast.If, ast.Try, ast.With)):
        groups = [getattr(node, field, []) for field in ("body", "orelse", "finalbody")]
        groups += [handler.body for handler in getattr(node, "handlers", [])]
        for inner_statement in (statement for group in groups for statement in group):
            yield from _iterate_names(inner_statement)


def _read_arguments(arguments: ast.arguments, skip: int) -> tuple[dict[str, bool], bool]:
    plain = [*arguments.posonlyargs, *arguments.args]
    first_default = len(plain) - len(arguments.defaults)
    named = {a.arg: i < first_default for i, a in enumerate(plain) if i >= max(skip, len(arguments.posonlyargs))}
    only = {a.arg: default is None for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)}
    return named | only, arguments.kwarg is not None


def _read_all(tree: ast.Module) -> list[str] | None:
    """Return `__all__` of a module, None if it has none that is plain."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            try:
                return list(ast.literal_eval(node.value))
            except ValueError:
                return None
    return None


def _absolute(node: ast.ImportFrom, module: str, path: Path) -> str:
    """Return the module that `from .x import y` in `module` means."""
    if not node.level:
        return node.module or ""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package
