# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import tools
from tools.release.sources import PACKAGE, list_sources


def name(texts: list[str]) -> list[str]:
    return [path.relative_to(PACKAGE).as_posix() for path in list_sources(texts)]


def test_a_module_comes_with_what_it_imports():
    assert name(["$import tools.files as files"]) == ["__init__.py", "files.py"]
    assert name(["_target_: tools.inference.SliceWindowInferer"]) == name(["_target_: tools.inference"])
    found = name(["{_target_: tools.networks.ModifiedUNETR}", "$tools.checks.check_device('cpu')"])
    assert {"networks/unetr.py", "networks/inflated.py", "checks/settings.py", "errors.py"} <= set(found)
    assert not [file for file in found if file.startswith(("release/", "labelling/", "pretraining/", "studies/"))]


def test_a_config_that_does_without_needs_nothing():
    assert name(["_target_: monai.networks.nets.UNETR", "mytools.x", "# retools.checks"]) == []


def test_the_package_is_this_one():
    assert (PACKAGE / "__init__.py").samefile(tools.__file__)
