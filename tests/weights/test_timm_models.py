# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import timm
import torch
from monai.networks.nets import UNETR
from safetensors.torch import save_file
from torch import nn

from tools.errors import ConfigValueError, DownloadError
from tools.networks import InflatedSegmenter
from tools.weights import initialize
from tools.weights.timm_models import fetch_timm


def make_network(name: str = "vit_tiny_patch16_224") -> InflatedSegmenter:
    return InflatedSegmenter(name, "unetr", img_size=32, decoder_channels=4)


@pytest.fixture
def mirror(tmp_path):
    """A folder that holds what timm's repository does."""
    model = timm.create_model("vit_tiny_patch16_224")
    (tmp_path / "mirror").mkdir()
    save_file(model.state_dict(), tmp_path / "mirror" / "model.safetensors")
    return tmp_path / "mirror", model


def test_the_weights_get_the_name_of_timm(tmp_path, mirror):
    path = fetch_timm(make_network(), tmp_path / "cache", mirror=str(mirror[0]))
    assert path == tmp_path / "cache" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
    assert fetch_timm(make_network(), tmp_path / "cache") == path, "no network the second time"


def test_training_starts_from_what_timm_has(tmp_path, mirror, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    fetch_timm(make_network(), mirror=str(mirror[0]))
    network = initialize(make_network(), "timm")
    weight = mirror[1].blocks[5].attn.qkv.weight
    assert torch.equal(network.encoder.model.blocks[5].attn.qkv.weight, weight)


def test_without_a_network_the_message_says_where_the_file_is_and_where_it_belongs(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DownloadError, match=r"vit_tiny_patch16_224\.augreg_in21k_ft_in1k\.safetensors"):
        fetch_timm(make_network(), tmp_path)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: UNETR(1, 2, 16, feature_size=4, hidden_size=24, mlp_dim=48, num_heads=3), "a file, for this network"),
        (lambda: nn.Linear(2, 2), "a file, for this network"),
        (lambda: make_network("swinv2_cr_tiny_224"), "timm, which has no weights for swinv2_cr_tiny_224"),
    ],
)
def test_a_network_without_weights_in_timm_needs_a_file(network, message):
    with pytest.raises(ConfigValueError, match=message):
        fetch_timm(network())
