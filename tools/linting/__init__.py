# SPDX-License-Identifier: Apache-2.0
"""`python -m tools lint`: what is wrong with a bundle, found without running anything of it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tools.bundles import BUNDLES, list_bundles
from tools.errors import MissingFileError
from tools.linting.bundle import Bundle
from tools.linting.components import check_components
from tools.linting.findings import Finding
from tools.linting.folders import check_folder
from tools.linting.keys import check_keys
from tools.linting.labels import check_labels
from tools.linting.large_files import check_large_files
from tools.linting.metadata import check_metadata
from tools.linting.preprocessing import check_preprocessing
from tools.linting.references import check_references
from tools.linting.weights import check_weights

__all__ = ["Finding", "find_folder", "lint_bundle", "summarize"]

CHECKS: tuple[Callable[[Bundle], Iterator[Finding]], ...] = (
    check_folder,
    Bundle.check,
    check_metadata,
    check_keys,
    check_references,
    check_components,
    check_labels,
    check_preprocessing,
    check_weights,
    check_large_files,
)


def find_folder(bundle: str | Path) -> Path:
    """Return the folder of a bundle: a folder itself, or the name of one in this repository.

    Raises:
        MissingFileError: if there is no such folder.
    """
    for folder in (Path(bundle), BUNDLES / bundle):
        if folder.is_dir():
            return folder
    wanted = f"a bundle's folder, or one of {', '.join(list_bundles())}"
    raise MissingFileError(bundle, "no such folder", wanted, "correct the name")


def lint_bundle(folder: Path) -> list[Finding]:
    """Return what is wrong with a bundle, errors first, each once.

    No expression is evaluated, no component built and no module of the bundle imported. The one exception is a network
    of MONAI or of this package whose arguments are plain values: it is built without memory, to compare its tensors
    with those of the weights.

    Args:
        folder: the bundle.
    """
    bundle = Bundle(Path(folder))
    with _hide_from_imports(bundle.root):
        findings = [finding for check in CHECKS for finding in check(bundle)]
    return sorted(dict.fromkeys(findings), key=lambda finding: (finding.severity != "error", finding.path))


def summarize(folder: Path, findings: list[Finding]) -> str:
    """Return one line that says what was checked and how much was found."""
    bundle = Bundle(Path(folder))
    files = len([*bundle.config_names, bundle.metadata.name])
    counts = {kind: sum(finding.severity == kind for finding in findings) for kind in ("error", "warning")}
    told = ", ".join(f"{count or 'no'} {kind}{'' if count == 1 else 's'}" for kind, count in counts.items())
    return f"{folder}: {told} in {files} config files, their {len(bundle.sets)} combinations, weights and documents"


@contextlib.contextmanager
def _hide_from_imports(root: Path) -> Iterator[None]:
    """Take a folder off the path of imports: `python -m` puts the current one there, which may be the bundle."""
    before = list(sys.path)
    sys.path[:] = [entry for entry in before if not Path(entry).resolve().is_relative_to(root.resolve())]
    try:
        yield
    finally:
        sys.path[:] = before
