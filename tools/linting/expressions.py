# SPDX-License-Identifier: Apache-2.0
"""`$` expressions: parsed, never evaluated, and held to what a config needs."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import functools
from collections.abc import Iterator

from monai.bundle import ReferenceResolver

from tools.linting.documents import SEPARATOR

STAND_IN = "_reference_{}_"
GLOBALS = {"monai": "monai", "torch": "torch", "np": "numpy", "numpy": "numpy"}  # MONAI gives them to every expression

# what a config has no business with: code from text, processes, networks, foreign memory
MODULES = frozenset(
    str.split(
        "subprocess shutil socket ssl urllib urllib3 requests http httpx ftplib smtplib telnetlib asyncio pickle "
        "dill joblib cloudpickle marshal shelve ctypes cffi importlib runpy code codeop pty builtins multiprocessing "
        "signal webbrowser paramiko pip ensurepip venv zipimport pydoc pdb gdown huggingface_hub posix nt inspect gc"
    )
)
OS_NAMES = frozenset(
    str.split(
        "path environ getenv sep pathsep linesep curdir pardir name devnull getcwd getpid cpu_count listdir scandir "
        "walk makedirs mkdir fspath PathLike process_cpu_count"
    )
)
SYS_NAMES = frozenset(str.split("path platform version version_info maxsize byteorder stdout stderr argv executable"))
FUNCTIONS = frozenset(
    str.split("__import__ eval exec compile open input breakpoint globals locals vars setattr delattr help exit quit")
)
# methods that write or delete, whatever object they belong to
METHODS = frozenset(
    str.split(
        "unlink rmdir rmtree write_text write_bytes touch symlink_to hardlink_to chmod extractall unpack_archive "
        "system popen load_library tofile savez"
    )
)
FUNCTION_PATHS = ("torch.hub", "torch.utils.cpp_extension", "torch.ops.load_library", "monai.apps.download_")
SAFE_VALUES = {"weights_only": True, "allow_pickle": False, "shell": False}  # of arguments
DOUBLE = frozenset({"__version__", "__name__", "__file__"})


@dataclasses.dataclass(frozen=True)
class Expression:
    """A parsed `$` expression.

    Args:
        text: without the `$`.
        tree: an expression or an import, with names in place of references.
        references: the id for each of those names.
    """

    text: str
    tree: ast.expr | ast.Import | ast.ImportFrom
    references: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Import:
    """What an import statement in a config binds: MONAI takes its first name only."""

    name: str
    target: str


@functools.lru_cache(4096)  # most expressions stand in many combinations of configs
def parse_expression(value: str) -> Expression:
    """Parse `$...`, with its references taken out.

    Raises:
        SyntaxError: if it is neither one expression nor one import.
    """
    text = ReferenceResolver.normalize_id(value[1:])
    references: dict[str, str] = {}
    for match in sorted(set(ReferenceResolver.id_matcher.findall(text)), key=len, reverse=True):
        name = STAND_IN.format(len(references))
        references[name] = match[1:]
        text = text.replace(match, name)
    try:
        body = ast.parse(text).body
    except (ValueError, MemoryError, RecursionError) as error:
        raise SyntaxError(str(error) or "too deeply nested") from error
    if len(body) != 1 or not isinstance(body[0], (ast.Expr, ast.Import, ast.ImportFrom)):
        raise SyntaxError("neither one expression nor one import")
    tree = body[0].value if isinstance(body[0], ast.Expr) else body[0]
    return Expression(value[1:], tree, references)


def read_import(expression: Expression) -> Import | None:
    """Return what an expression imports, None if it is no import."""
    tree = expression.tree
    if isinstance(tree, ast.Import):
        alias = tree.names[0]
        return Import(alias.asname or alias.name, alias.name)
    if isinstance(tree, ast.ImportFrom):
        alias = tree.names[0]
        return Import(alias.asname or alias.name, f"{'.' * tree.level}{tree.module or ''}.{alias.name}")
    return None


def spell_chain(node: ast.expr) -> list[str]:
    """Return the parts of `a.b.c`, none if the node is not of that form."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else []


def find_forbidden_path(path: str) -> str | None:
    """Tell why a dotted name may not be used in a config, None if it may."""
    parts = path.split(".")
    for index, part in enumerate(parts):
        if part in MODULES and (index == 0 or part not in ("http", "code", "signal", "inspect", "gc")):
            return f"the module {part}"
        if part in ("os", "sys") and index + 1 < len(parts):
            allowed = OS_NAMES if part == "os" else SYS_NAMES
            if parts[index + 1] not in allowed:
                return f"{part}.{parts[index + 1]}"
    if parts[-1] in FUNCTIONS and (len(parts) == 1 or parts[0] in ("builtins", "io", "os", "codecs")):
        return f"{path}"
    if path.startswith(FUNCTION_PATHS):
        return path
    return next((f"the name {part}" for part in parts if _is_double(part)), None)


def find_forbidden(expression: Expression, names: dict[str, str]) -> Iterator[str]:
    """Yield what an expression uses that no config needs.

    Args:
        expression: parsed.
        names: what the imports of the config bind: name and dotted target.
    """
    imported = read_import(expression)
    if imported is not None:
        why = find_forbidden_path(imported.target)
        if why:
            yield why
        return
    own = _find_own_names(expression)
    inner = {id(node.value) for node in ast.walk(expression.tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(expression.tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and id(node) not in inner:
            parts = spell_chain(node)
            if parts:
                # a name that a lambda or a comprehension binds is no builtin
                root = STAND_IN if parts[0] in own else names.get(parts[0], parts[0])
                why = find_forbidden_path(".".join([root, *parts[1:]]))
                if why is None and len(parts) == 1 and root in ("os", "sys"):
                    why = f"the module {root} as a value"
                if why:
                    yield why
            elif _is_double(node.attr):  # type: ignore[union-attr]
                yield f"the attribute {node.attr}"  # type: ignore[union-attr]
        if isinstance(node, ast.Call):
            yield from _find_forbidden_call(node)


def _find_forbidden_call(node: ast.Call) -> Iterator[str]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if isinstance(node.func, ast.Attribute) and (
        name in METHODS or (name == "open" and not spell_chain(node.func))  # `Path(...).open()`
    ):
        yield f"the call .{name}()"
    if name in ("getattr", "hasattr") and len(node.args) > 1:
        second = node.args[1]
        if not (isinstance(second, ast.Constant) and isinstance(second.value, str)):
            yield f"{name} of a name that is computed"
        elif _is_double(second.value) or find_forbidden_path(second.value):
            yield f"{name} of {second.value!r}"
    for keyword in node.keywords:
        safe = SAFE_VALUES.get(keyword.arg or "")
        if safe is not None and isinstance(keyword.value, ast.Constant) and keyword.value.value is not safe:
            yield f"{keyword.arg}={keyword.value.value!r}"


def find_unbound(expression: Expression, names: dict[str, str]) -> Iterator[str]:
    """Yield the names of an expression that neither Python, MONAI, the config's imports nor it itself bind."""
    if read_import(expression) is not None:
        return
    bound = set(names) | _find_own_names(expression) | set(dir(builtins))
    seen: set[str] = set()
    for node in ast.walk(expression.tree):
        if isinstance(node, ast.Name) and node.id not in bound and node.id not in seen:
            seen.add(node.id)
            yield node.id


def _find_own_names(expression: Expression) -> set[str]:
    """Return the stand-ins of references and the names that lambdas and comprehensions bind."""
    nodes = list(ast.walk(expression.tree))
    arguments = {node.arg for node in nodes if isinstance(node, ast.arg)}
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return set(expression.references) | arguments | stored


def spell(expression: Expression) -> str:
    """Return an expression with its references as the config has them."""
    return f"${expression.text}".replace(SEPARATOR, "#")


def _is_double(name: str) -> bool:
    return name.startswith("__") and name.endswith("__") and name not in DOUBLE
