# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from monai.bundle import ConfigParser
from products import cover

from tools.bundles import BUNDLES, CARDS
from tools.release.configs import merge_files, render_json

BASE = """\
# Segment scans.
# With a card: tools/datasets/<card>.yaml
labels: [background,
         spleen]
pixdim: [1.5, 1.5, 2.0]  # mm
sample_above: 0.0  # HU

network_def:
  _target_: UNETR
  size: 96  # voxels
  # transformer
  heads: 12

# the last one
train:
  sampling:
    - {_target_: A}  # first
    - {_target_: B}
  shuffle: true
  label_map: "@label_map"
loader: {workers: 2, batch: {size: 1}}
"""
OVERLAY = """\
card: {name: toy}
labels: [background, ball]
label_map: {0: 0, 205: 1}
network_def#heads: 6
network_def#depth: 4
train#sampling:
  # one line per transform
  - {_target_: C, low: -1}
  - {_target_: D}
loader#batch#size: 3
sample_above: -.inf
image_size: [240, 240]
"""
MERGED = """\
# Segment scans.
labels: [background, ball]
pixdim: [1.5, 1.5, 2.0]  # mm
sample_above: $float('-inf')  # HU

network_def:
  _target_: UNETR
  size: 96  # voxels
  # transformer
  heads: 6
  depth: 4

# the last one
train:
  sampling:
    # one line per transform
    - {_target_: C, low: -1}
    - {_target_: D}
  shuffle: true
  label_map: "@label_map"
loader: {workers: 4, batch: {size: 3}}
label_map: $dict([[0, 0], [205, 1]])
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    base, overlay = tmp_path / "base.yaml", tmp_path / "overlay.yaml"
    base.write_text(BASE)
    overlay.write_text(OVERLAY)
    return base, overlay


def test_an_overlay_is_written_into_the_lines_of_a_config(files):
    base, overlay = files
    assert merge_files(base, [overlay], {"loader#workers": 4}, omit=["card"]) == MERGED


def test_the_json_file_means_the_same_as_the_yaml_file(files):
    base, overlay = files
    text = merge_files(base, [overlay], {}, omit=["card"])
    config = json.loads(render_json(text, "base.yaml"))
    assert "base.yaml" in config.pop("_desc_")
    assert config == yaml.safe_load(text)
    parser = ConfigParser(config)
    assert parser.get_parsed_content("label_map") == {0: 0, 205: 1}
    assert parser.get_parsed_content("sample_above") == float("-inf")


CONFIGS = [path for name in ("train", "inference") for path in sorted(BUNDLES.glob(f"*/configs/{name}.yaml"))]


@pytest.mark.parametrize(
    ("config", "card"),
    cover(CONFIGS, sorted(CARDS.glob("*.yaml"))),
    ids=lambda path: path.stem if path.parent == CARDS else f"{path.parts[-3]}-{path.stem}",
)
def test_every_card_can_be_written_into_every_config(config: Path, card: Path):
    merged = yaml.safe_load(merge_files(config, [card], {}, omit=["card"]))
    parser = ConfigParser(ConfigParser.load_config_files([str(config), str(card)]))
    for key in {"labels", "orientation", "intensity"} & set(merged):
        assert merged[key] == parser[key]
    assert ConfigParser(merged).get_parsed_content("num_classes") == len(merged["labels"])
