# SPDX-License-Identifier: Apache-2.0
"""All that touches a NIfTI file is in one room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tools.bundles import REPOSITORY

MODULES = sorted(path.relative_to(REPOSITORY) for path in (REPOSITORY / "tools").rglob("*.py"))


def list_imports(path: Path) -> set[str]:
    """Return the packages that a module imports, at its head or in a function."""
    names = set()
    for node in ast.walk(ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_nibabel_is_imported_in_the_room_of_scans_alone(path: Path):
    assert "nibabel" not in list_imports(path) or path.parent == Path("tools/scans")


def test_the_room_of_scans_does_import_it():
    assert "nibabel" in list_imports(Path("tools/scans/scan.py"))
