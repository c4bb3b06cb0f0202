# SPDX-License-Identifier: Apache-2.0
"""The overlay of a training has what shapes its model, and nothing else; the config that runs is known to its parts."""

from __future__ import annotations

import yaml
from monai.bundle import ConfigParser

from tools.bundles import BUNDLES
from tools.configs import read_running, select_model, write_overlay

TRAIN = yaml.safe_load((BUNDLES / "unetr_btcv" / "configs" / "train.yaml").read_text())


def test_data_are_always_told_and_of_network_and_speed_only_what_was_changed():
    config = TRAIN | {"pixdim": [0.5, 0.5, 0.5], "epochs": 7, "learning_rate": 1.0, "augmentation": []}
    config["network_def"] = TRAIN["network_def"] | {"hidden_size": 192, "stem": True}
    found = select_model(config, TRAIN)
    assert found["pixdim"] == [0.5, 0.5, 0.5]
    for key in ("labels", "label_map", "orientation", "roi_size", "intensity", "foreground_crop", "mirror_axes"):
        assert found[key] == TRAIN[key]
    assert {key: value for key, value in found.items() if key.startswith("network_def")} == {
        "network_def#hidden_size": 192,
        "network_def#stem": True,
    }
    assert not {"overlap", "sw_batch_size", "epochs", "learning_rate", "augmentation", "device"} & set(found)
    assert select_model(TRAIN | {"overlap": 0.25}, TRAIN)["overlap"] == 0.25


def test_another_network_is_told_as_a_whole():
    network = {"_target_": "UNet", "spatial_dims": 3}
    assert select_model(TRAIN | {"network_def": network}, TRAIN)["network_def"] == network
    assert select_model(TRAIN)["network_def"] == TRAIN["network_def"], "where the default is not known"


def test_an_overlay_is_read_as_it_was_meant(tmp_path):
    values = {"labels": ["background", "no", "links: ü"], "label_map": {0: 0, 205: 1}, "sample_above": float("-inf")}
    values |= {"roi_size": [1, 2, 3], "checkpoint": "$@bundle_root + '/x'", "network_def#stem": False, "card": None}
    write_overlay(tmp_path / "model.yaml", values, "What it is.\nIn two lines.")
    assert yaml.safe_load((tmp_path / "model.yaml").read_text(encoding="utf-8")) == values
    assert (tmp_path / "model.yaml").read_text().startswith("# What it is.\n# In two lines.\n")


class Part:
    """A component that looks at the config it stands in."""

    def __init__(self) -> None:
        self.running = read_running()


def test_the_config_that_runs_is_known_to_its_components_as_it_was_typed():
    parser = ConfigParser({"size": "$3 * 5", "part": {"_target_": f"{__name__}.Part"}, "known": "@size"})
    parser["size"] = "$7 * 5"
    running = parser.get_parsed_content("part").running
    assert (running.values["size"], running.values["known"], running.bundle) == ("$7 * 5", "@size", None)
    running.values["size"] = 0  # a copy
    assert parser.get("size") == "$7 * 5"
    assert read_running() is None, "where no config runs"
