# SPDX-License-Identifier: Apache-2.0
"""The part of the package `tools` that the configs of a bundle need."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
MODULE = re.compile(r"\btools(?:\.[A-Za-z_]\w*)+")


def list_sources(texts: Iterable[str]) -> list[Path]:
    """Return the files of `tools` that the modules named in configs import, at once or later, in order.

    Args:
        texts: configs, in which `tools.<module>` names a module or something in one.
    """
    found: set[Path] = set()
    pending = [match for text in texts for match in MODULE.findall(text)]
    while pending:
        for path in _locate(pending.pop()):
            if path not in found:
                found.add(path)
                pending += _list_imports(path.read_text(encoding="utf-8"))
    return sorted(found)


def _locate(name: str) -> Iterator[Path]:
    """Yield the files that `import name` runs: the packages on the way and the module, as far as the name is one."""
    folder = PACKAGE.parent
    for part in name.split("."):
        folder = folder / part
        if (folder / "__init__.py").is_file():
            yield folder / "__init__.py"
        else:
            if folder.with_suffix(".py").is_file():
                yield folder.with_suffix(".py")
            return


def _list_imports(source: str) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.split(".")[0] == "tools"]
