# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json

import pytest
import torch
from monai.bundle import ConfigComponent
from monai.networks.nets import SwinUNETR

from tools.linting import lint_bundle
from tools.linting.weights import _describe_network
from tools.networks import ScriptableSwinUNETR

NETWORKS = {
    "UNet": {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]},
    "UNETR": {"in_channels": 1, "out_channels": 2, "img_size": [32, 32, 32], "hidden_size": 24, "num_heads": 3},
    "SwinUNETR": {"in_channels": 1, "out_channels": 2, "feature_size": 12, "dropout_path_rate": 0.1},
    "SegResNet": {"spatial_dims": 3, "init_filters": 8},
    "MedNeXt": {"spatial_dims": 3, "init_filters": 4},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_without_memory_are_those_of_the_network(name):
    arguments = {"_target_": f"monai.networks.nets.{name}", **NETWORKS[name]}
    network = ConfigComponent(config=arguments).instantiate()
    assert _describe_network(json.dumps(arguments)).shapes == {
        name: tuple(tensor.shape) for name, tensor in network.state_dict().items()
    }
    assert torch.get_default_device().type == "cpu"


SWIN = {"in_channels": 1, "out_channels": 2, "feature_size": 12}
MONAIS = {"_target_": "SwinUNETR", **SWIN}
OURS = {"_target_": "tools.networks.ScriptableSwinUNETR", "img_size": [64, 32, 32], **SWIN}


@pytest.mark.parametrize(
    ("told", "definition", "found", "severity"),
    [
        ("original", MONAIS, "patch merging original (told by the file", "error"),
        ("corrected", MONAIS, None, None),
        ("original", OURS | {"patch_merging": "corrected"}, "patch merging original (told by the file", "error"),
        ("original", OURS | {"patch_merging": "original"}, None, None),
        ("original", OURS | {"patch_merging": "auto"}, None, None),
        (None, OURS | {"patch_merging": "auto"}, "nothing that tells its patch merging", "warning"),
        (None, OURS | {"patch_merging": "original"}, None, None),
        (None, MONAIS, None, None),
    ],
)
def test_weights_of_another_patch_merging_than_the_network_computes_are_told(
    told, definition, found, severity, foreign
):
    network = ScriptableSwinUNETR((64, 32, 32), **SWIN, patch_merging=told) if told else SwinUNETR(**SWIN)
    torch.save(network.state_dict(), foreign / "models" / "model.pt")
    config = foreign / "configs" / "inference.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"network_def": definition}))
    findings = [finding for finding in lint_bundle(foreign) if finding.path == "models/model.pt"]
    assert [finding.severity for finding in findings] == ([severity] if severity else []), findings
    assert not found or found in findings[0].found
