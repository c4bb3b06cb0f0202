# SPDX-License-Identifier: Apache-2.0
"""One table has all keys of the configs, and every value that the repository gives passes."""

from __future__ import annotations

import ast
import itertools
import math
from pathlib import Path

import pytest
import yaml
from monai.bundle import ConfigParser

from tools.bundles import BUNDLES, CARDS, REPOSITORY
from tools.checks.settings import _check_targets, _check_unused, _is_light, _resolve
from tools.configs import KEYS, list_keys

CONFIGS = sorted(BUNDLES.glob("*/configs/*.yaml"))
OVERLAYS = sorted([*BUNDLES.glob("*/configs/*/*.yaml"), *BUNDLES.glob("*/models/*.yaml"), *CARDS.glob("*.yaml")])
WHOLE = ("train", "pretrain", "inference")


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parents[1].name}/{path.stem}")
def test_every_key_of_a_config_is_in_the_table(path):
    keys = {str(key).replace("::", "#").partition("#")[0] for key in read(path)}
    assert keys <= {*KEYS}


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: f"{path.parents[1].name}/{path.stem}")
def test_every_key_of_an_overlay_is_in_the_table_or_read_by_the_overlay(path):
    content = read(path)
    text = path.read_text(encoding="utf-8")
    for key in content:
        head = str(key).replace("::", "#").partition("#")[0]
        assert head in KEYS or f"@{head}" in text, head


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if path.stem in WHOLE], ids=lambda path: f"{path.parents[1].name}/{path.stem}"
)
def test_every_default_is_what_its_key_takes(path):
    config = read(path)
    parser = ConfigParser({**config, "bundle_root": str(path.parents[1])})
    checked = set()
    for name, key in KEYS.items():
        if key.check and name in config and _is_light(name, config):
            value = _resolve(parser, name, config[name])
            assert key.check(value) is None, (name, value, key.check(value))
            checked.add(name)
    assert len(checked) > 20
    _check_unused(config)
    _check_targets(parser, config)


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: f"{path.parents[1].name}/{path.stem}")
def test_every_value_of_an_overlay_is_what_its_key_takes(path):
    for name, value in read(path).items():
        if name in KEYS and KEYS[name].check and not (isinstance(value, str) and value[:1] in "$@"):
            wanted = KEYS[name].check(value)
            assert wanted is None, (name, value, wanted)


def test_roles_are_those_of_a_card_and_a_model():
    cards = [read(path) for path in CARDS.glob("*.yaml")]
    used = set(itertools.chain.from_iterable(cards))
    assert used <= {*list_keys("data", "geometry")}


# the table is the only place: no module names three keys of data, geometry or network in a list
@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "tools").rglob("*.py")), ids=lambda path: str(path.relative_to(REPOSITORY))
)
def test_no_list_of_keys_stands_elsewhere(path):
    shaping = {*list_keys("data", "geometry", "network")}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)) and path.parent.name != "configs":
            named = {entry.value for entry in node.elts if isinstance(entry, ast.Constant)} & shaping
            assert len(named) < 3, f"line {node.lineno}: {sorted(named)}"


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("labels", {"background": 0, "spleen": 1}, ["background", "spleen"]),
        ("labels", ["background", "no", False], ["background", "no"]),
        ("labels", ["background", "a", "A"], ["background", "a", "b"]),
        ("labels", ["background"], ["background", "a"]),
        ("labels", ["background", 1], ["background", "1"]),
        ("label_map", [0, 1], {0: 0, 500: 1}),
        ("label_map", {0: 0, 1: "a"}, {0: 0, 1: 1}),
        ("label_map", {"0": 0}, {0: 0}),
        ("pixdim", [1.0, 1.0], [1, 1.5, 2.0]),
        ("pixdim", [1.0, 1.0, 0], [1, 1, 1]),
        ("pixdim", 1.0, (1.0, 1.0, 1.0)),
        ("roi_size", [32, 32, 32.5], [32, 32, 32]),
        ("orientation", "RAX", "LPS"),
        ("orientation", "RLS", "ras"),
        ("overlap", 1.5, 0.25),
        ("overlap", 1, 0),
        ("overlap", "0.5", 0.5),
        ("epochs", 0, 1),
        ("epochs", 2.5, 3.0),
        ("epochs", True, 1),
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", 0, 1),
        ("weight_decay", -1, 0),
        ("sample_above", "-inf", -math.inf),
        ("amp", "off", False),
        ("amp", 0, True),
        ("resume", "yes", "true"),
        ("pretrained", 3, None),
        ("fold", -1, None),
        ("fold", "0", 0),
        ("validation_cases", [35], ["0035"]),
        ("mirror_axes", [3], [0, 1, 2]),
        ("patch_merging", "new", "corrected"),
        ("structures", [], None),
        ("cache_rate", 1.1, 1),
        ("window_size", [4, 4], [4, 4, 4]),
        ("warmup_epochs", "many", 2.5),
    ],
)
def test_a_key_takes_what_it_says(name, wrong, right):
    assert KEYS[name].check(right) is None
    wanted = KEYS[name].check(wrong)
    assert wanted
    assert "<" not in wanted
