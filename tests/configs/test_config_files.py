# SPDX-License-Identifier: Apache-2.0
"""Config files are read in one way, and weights have one overlay."""

from __future__ import annotations

import re

import pytest

from tools.bundles import REPOSITORY
from tools.configs import find_overlay, read_config
from tools.errors import ConfigValueError

# texts, not files: the merged configs of an export; and the list of public files, whose form is MONAI's
READERS = {"configs/files.py", "release/configs.py", "release/exports.py", "catalogue.py"}


def test_no_other_module_reads_yaml():
    sources = {
        path.relative_to(REPOSITORY / "tools").as_posix(): path.read_text()
        for path in (REPOSITORY / "tools").rglob("*.py")
    }
    assert {name for name, text in sources.items() if re.search(r"yaml\.(safe_load|load|full_load)\(", text)} == READERS


def test_yaml_and_json_are_read(tmp_path):
    for name, text in (("a.yaml", "x: [1, 2]"), ("a.json", '{"x": [1, 2]}')):
        (tmp_path / name).write_text(text)
        assert read_config(tmp_path / name) == {"x": [1, 2]}


@pytest.mark.parametrize("content", [b"x: [1", b"- 1", b"", b"x: \xff"])
def test_what_is_no_config_is_refused_by_its_name(tmp_path, content):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigValueError, match=r"broken\.yaml"):
        read_config(path)


def test_the_overlay_of_weights_lies_beside_them_and_that_of_their_training_goes_first(tmp_path):
    weights = tmp_path / "best.pt"
    assert find_overlay(weights) is None
    (tmp_path / "best.yaml").touch()
    assert find_overlay(weights) == tmp_path / "best.yaml"
    (tmp_path / "model.yaml").touch()
    assert find_overlay(weights) == tmp_path / "model.yaml"
