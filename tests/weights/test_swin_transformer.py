# SPDX-License-Identifier: Apache-2.0
"""The file that pre-training writes for others is the one that MONAI and this project read as model_swinvit.pt."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import SwinUNETR
from torch import Tensor, nn

from tools.pretraining import SwinSSL
from tools.weights import load, save_checkpoint
from tools.weights.swin_transformer import name_like_swinvit

SMALL = {"feature_size": 12, "window_size": 2}


def randomize(network: nn.Module) -> nn.Module:
    """Change every tensor, also those that all networks start with, such as norms and biases."""
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network


def take_transformer(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in network.state_dict().items() if name.startswith("swinViT.")}


def assert_equal(found: nn.Module, wanted: nn.Module, count: int) -> None:
    tensors = take_transformer(found)
    assert len(tensors) == count
    torch.testing.assert_close(tensors, take_transformer(wanted), rtol=0, atol=0)


@pytest.mark.parametrize("make", [SwinSSL, SwinUNETR])
def test_monai_takes_all_126_tensors_of_the_file(make, tmp_path):
    source = randomize(make(1, 64, **SMALL))
    save_checkpoint(name_like_swinvit(source.state_dict()), tmp_path / "model_swinvit.pt")
    network = randomize(SwinUNETR(1, 3, **SMALL))
    network.load_from(torch.load(tmp_path / "model_swinvit.pt", weights_only=True))
    assert_equal(network, source, 126)


@pytest.mark.parametrize(("use_v2", "count"), [(False, 126), (True, 134)])
def test_our_loader_takes_all_tensors_of_the_file(use_v2, count, tmp_path):
    source = randomize(SwinSSL(1, 64, **SMALL, use_v2=use_v2))
    save_checkpoint(name_like_swinvit(source.state_dict()), tmp_path / "model_swinvit.pt")
    network = SwinUNETR(1, 3, **SMALL, use_v2=use_v2)
    load(network, tmp_path / "model_swinvit.pt")
    assert_equal(network, source, count)


def test_the_file_has_the_names_of_the_release_and_nothing_but_the_transformer():
    content = name_like_swinvit(SwinSSL(1, 64, **SMALL).state_dict())
    assert content.keys() == {"state_dict", "patch_merging"}
    names = list(content["state_dict"])
    assert len(names) == 126
    assert all(name.startswith(("module.patch_embed.proj.", "module.layers")) for name in names)
    assert {"module.layers1.0.blocks.0.mlp.fc1.weight", "module.layers4.0.blocks.1.mlp.fc2.bias"} <= set(names)
    assert not any("linear" in name or "swinViT" in name for name in names)
