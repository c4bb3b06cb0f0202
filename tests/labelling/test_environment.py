# SPDX-License-Identifier: Apache-2.0
"""MONAI Label is added to an environment without a change of what is there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from tools.bundles import REPOSITORY
from tools.errors import MissingPackageError
from tools.labelling import environment
from tools.labelling.environment import ALONE, REQUIREMENTS, check_packages, install, read_requirements, select_missing


def complete() -> dict[str, str]:
    pins = [*read_requirements(), *map(Requirement, ALONE)]
    return {pin.name.lower(): str(pin.specifier).removeprefix("==") for pin in pins}


def test_all_packages_have_exact_versions_and_none_is_of_the_project():
    names = {Requirement(line).name.lower() for line in REQUIREMENTS.read_text().splitlines() if line[0] != "#"}
    pins = read_requirements()
    assert all([specifier.operator for specifier in pin.specifier] == ["=="] for pin in pins)
    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    own = {Requirement(line).name.lower() for line in lines if line[0] not in "#-"}
    assert {"torch", "numpy", "monai"} <= own
    assert not names & own


def test_packages_that_are_there_stay_but_for_those_that_break_the_server():
    pins = [Requirement(text) for text in ("fastapi==0.165.0", "pydicom==2.4.5", "itk==5.4.7")]
    assert select_missing(pins, {"fastapi": "0.1", "pydicom": "3.0.1"}) == ["pydicom==2.4.5", "itk==5.4.7"]
    assert select_missing(pins, {"fastapi": "0.1", "pydicom": "2.4.5", "itk": "5.4.7"}) == []


def test_install_holds_all_other_packages(monkeypatch: pytest.MonkeyPatch):
    calls: list[list[str]] = []
    constraints: list[str] = []

    def run(command: list[str], check: bool) -> SimpleNamespace:
        calls.append(command)
        if "--constraint" in command:
            constraints.extend(Path(command[command.index("--constraint") + 1]).read_text().splitlines())
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(
        environment, "list_installed", lambda: {"torch": "2.15.0", "numpy": "2.4.6", "pydicom": "3.0.1"}
    )
    monkeypatch.setattr(environment, "check_packages", lambda: None)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.8.5")
    assert "MONAI Label 0.8.5" in install()
    others, alone = calls
    assert {"pydicom==2.4.5", "fastapi==0.165.0"} <= set(others)
    assert "--no-deps" not in others
    assert constraints == ["torch==2.15.0", "numpy==2.4.6"]
    assert alone[-3:] == [*ALONE, "--no-deps"]


def test_failure_of_pip_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subprocess, "run", lambda command, check: SimpleNamespace(returncode=1))
    monkeypatch.setattr(environment, "list_installed", dict)
    with pytest.raises(MissingPackageError, match="pip install: found exit status 1"):
        install()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"monailabel": None}, "found no package monailabel .*, wanted monailabel==0.8.5; run `python -m tools label"),
        ({"uvicorn": None}, "MONAI Label: found none or another version of uvicorn, wanted uvicorn==0.54.0"),
        ({"pydicom": "3.0.1"}, "found none or another version of pydicom, wanted pydicom==2.4.5"),
    ],
)
def test_what_is_missing_is_told_with_the_command(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str | None], message: str
):
    installed = {name: version for name, version in (complete() | change).items() if version}
    monkeypatch.setattr(environment, "list_installed", lambda: installed)
    with pytest.raises(MissingPackageError, match=message):
        check_packages()


def test_python_without_distutils_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "list_installed", complete)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    check_packages()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingPackageError, match=r"Python 3\.\d+: found no module distutils, wanted the one in setuptools"
    ):
        check_packages()
