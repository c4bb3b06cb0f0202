# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json

import pytest
import torch
from monai.bundle import ConfigComponent

from tools.linting.weights import _list_shapes

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
    assert _list_shapes(json.dumps(arguments)) == {
        name: tuple(tensor.shape) for name, tensor in network.state_dict().items()
    }
    assert torch.get_default_device().type == "cpu"
