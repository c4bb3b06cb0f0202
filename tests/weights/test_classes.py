# SPDX-License-Identifier: Apache-2.0
"""Weights know their classes by name: each structure keeps its output layer, whatever the order and number."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import yaml
from comparisons import assert_equal_to_scale
from monai.bundle import ConfigParser
from torch import nn

from tools.errors import CheckpointError, find_cause
from tools.networks.decoders import DECODERS
from tools.weights import save_checkpoint

OLD = ["background", "ball", "shell"]
SMALL_UNETR = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 3, "img_size": [32, 32, 32]}
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "UNETR": ({"_target_": "tools.networks.ModifiedUNETR", **SMALL_UNETR}, (1, 1, 32, 32, 32)),
    "Swin UNETR": (
        {
            "_target_": "tools.networks.ScriptableSwinUNETR",
            "feature_size": 12,
            "window_size": [2, 2, 2],
            "patch_merging": "corrected",
            "img_size": [32, 32, 64],
        },
        (1, 1, 32, 32, 64),
    ),
    **{
        f"inflated, {decoder}": (
            {
                "_target_": "tools.networks.InflatedSegmenter",
                "encoder": "vit_tiny_patch16_224",
                "encoder_options": {"depth": 4},
                "img_size": [32, 32],
                "num_slices": 3,
                "decoder": decoder,
                "decoder_channels": 4,
            },
            (1, 1, 32, 32, 3),
        )
        for decoder in DECODERS
    },
}


def parse(network: dict[str, Any], labels: list[str], **more: Any) -> ConfigParser:
    config = {
        "labels": labels,
        "network_def": {**network, "in_channels": 1, "out_channels": len(labels)},
        "network": {"_target_": "tools.weights.initialize", "network": "@network_def", **more},
    }
    return ConfigParser(config)


def make(network: dict[str, Any], labels: list[str], seed: int = 0, **more: Any) -> nn.Module:
    torch.manual_seed(seed)
    try:
        return parse(network, labels, **more).get_parsed_content("network").eval()
    except RuntimeError as error:
        raise find_cause(error) or error from None


@pytest.mark.parametrize("kind", NETWORKS)
def test_each_structure_keeps_its_output_in_another_order_and_number(kind, tmp_path):
    network, shape = NETWORKS[kind]
    old = make(network, OLD, path=None)
    save_checkpoint({"model": old.state_dict(), "facts": json.dumps({"labels": OLD})}, tmp_path / "old.pt")
    image = torch.rand(shape)
    with torch.no_grad():
        expected = old(image)
        for labels, kept in (
            (["background", "shell", "ball"], [0, 2, 1]),
            (["background", "Shell"], [0, 2]),
            (["background", "vessel", "shell", "ball"], [0, None, 2, 1]),
        ):
            new = make(network, labels, seed=1, path=str(tmp_path / "old.pt"))
            fresh = make(network, labels, seed=1, path=None)
            found = new(image)
            for channel, source in enumerate(kept):
                if source is not None:
                    assert_equal_to_scale(found[:, channel], expected[:, source])
            if None in kept:  # a class that is new starts as a network does
                names = [name for name in new.state_dict() if name.startswith(("out.", "decoder.classifier"))]
                channel = kept.index(None)
                for name in names:
                    side = new.state_dict()[name], fresh.state_dict()[name]
                    axis = 1 if side[0].ndim == 4 and side[0].shape[-1] == 2 else 0
                    assert torch.equal(*(tensor.select(axis, channel) for tensor in side)), name


def test_the_overlay_beside_weights_names_their_classes(tmp_path, caplog):
    network, shape = NETWORKS["UNETR"]
    old = make(network, OLD, path=None)
    for file, overlay in (("mine.pt", "mine.yaml"), ("best.pt", "model.yaml")):
        save_checkpoint({"model": old.state_dict()}, tmp_path / file)
        (tmp_path / overlay).write_text(yaml.safe_dump({"labels": OLD}))
        with caplog.at_level("INFO"):
            new = make(network, ["background", "shell", "ball"], path=str(tmp_path / file))
        assert "output layer by name: background, shell, ball" in caplog.text
        image = torch.rand(shape)
        with torch.no_grad():
            assert_equal_to_scale(new(image), old(image)[:, [0, 2, 1]])


def test_weights_that_are_applied_must_have_the_classes_of_the_config(tmp_path):
    network, _ = NETWORKS["UNETR"]
    old = make(network, OLD, path=None)
    save_checkpoint({"model": old.state_dict(), "facts": json.dumps({"labels": OLD})}, tmp_path / "old.pt")
    parser = parse(network, ["background", "shell", "ball"])
    parser["network"] = {
        "_target_": "tools.weights.load", "network": "@network_def", "path": str(tmp_path / "old.pt"), "complete": True
    }  # fmt: skip
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("network")
    cause = find_cause(caught.value)
    assert isinstance(cause, CheckpointError)
    assert "found the classes background, ball, shell, wanted the classes background, shell, ball (labels)" in str(
        cause
    )
    parser["labels"] = ["background", "Ball", "shell"]
    parser.parse(reset=True)
    parser.get_parsed_content("network")


def test_weights_of_which_nothing_is_known_are_taken_as_they_are(tmp_path):
    network, shape = NETWORKS["UNETR"]
    old = make(network, OLD, path=None)
    save_checkpoint(old.state_dict(), tmp_path / "public.pt")
    new = make(network, ["background", "shell", "ball"], path=str(tmp_path / "public.pt"))
    image = torch.rand(shape)
    with torch.no_grad():
        assert_equal_to_scale(new(image), old(image))


@pytest.mark.parametrize("facts", ["{", "3", "[1]"])
def test_facts_that_cannot_be_read_are_told(facts, tmp_path):
    network, _ = NETWORKS["UNETR"]
    save_checkpoint({"model": make(network, OLD, path=None).state_dict(), "facts": facts}, tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match=r"old\.pt: found facts that are no JSON object"):
        make(network, OLD, path=str(tmp_path / "old.pt"))
