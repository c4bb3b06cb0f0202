# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json

import pytest
import timm
import torch
from monai.networks.nets import UNETR, SwinUNETR
from torch import nn

from tools.errors import CheckpointError, MissingFileError
from tools.files import compute_sha256
from tools.weights import fill, initialize, load, save_checkpoint


def make_network(width: int = 4, outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(1, width, 3), nn.BatchNorm3d(width), nn.Conv3d(width, outputs, 1))


def make_unetr() -> UNETR:
    return UNETR(1, 2, (16, 16, 16), feature_size=4, hidden_size=24, mlp_dim=48, num_heads=3)


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(1)
    torch.save(make_network().state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def test_the_same_network_is_filled_and_returned(path, caplog):
    network = make_network()
    with caplog.at_level("INFO"):
        assert load(network, path, complete=True) is network
    saved = torch.load(path, weights_only=True)
    assert all(torch.equal(value, saved[name]) for name, value in network.state_dict().items())
    assert f"{path}: 9 of 9 tensors loaded, 0.0 M values (100%)" in caplog.text


def test_half_precision_is_converted_to_that_of_the_network(path):
    saved = torch.load(path, weights_only=True)
    torch.save({name: v.half() if v.is_floating_point() else v for name, v in saved.items()}, path)
    network = load(make_network(), path)
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    assert torch.equal(network[0].weight, saved["0.weight"].half().float())


def test_another_width_is_refused_with_counts_and_an_example(path):
    network = make_network(width=6)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load(network, path)
    text = str(caught.value)
    assert text.startswith(f"{path}: found 2 of 9 tensors that fit, 7 of another shape (0.weight ")
    assert "(4, 1, 3, 3, 3) instead of (6, 1, 3, 3, 3)" in text
    assert "wanted the 9 tensors of Sequential" in text
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()), "half loaded"


def test_another_number_of_classes_is_refused(path):
    with pytest.raises(CheckpointError, match=r"7 of 9 tensors that fit, 2 of another shape \(2\.weight"):
        load(make_network(outputs=14), path)


def test_a_network_with_more_layers_is_refused(path):
    network = nn.Sequential(*make_network(), nn.Conv3d(3, 3, 1))
    with pytest.raises(CheckpointError, match=r"9 of 11 tensors that fit, 2 missing \(3\.weight\)"):
        load(network, path)


def test_a_checkpoint_with_an_extra_head_is_refused(path):
    saved = torch.load(path, weights_only=True)
    torch.save(saved | {"head.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"9 of 9 tensors that fit, 1 unknown \(head\.weight\)"):
        load(make_network(), path)


def test_a_foreign_network_is_refused(path):
    with pytest.raises(
        CheckpointError, match=r"0 of \d+ tensors that fit, \d+ missing \(.*\), 9 unknown \(0\.weight\)"
    ):
        load(make_unetr(), path)


@pytest.mark.numeric
def test_the_unused_norms_of_cross_attention_may_be_missing(tmp_path):
    source, target = make_unetr().eval(), make_unetr().eval()
    saved = {name: value for name, value in source.state_dict().items() if "norm_cross_attn" not in name}
    assert len(saved) < len(source.state_dict()), "this MONAI has no such tensors: the exception can go"
    torch.save(saved, tmp_path / "weights.pt")
    load(target, tmp_path / "weights.pt")
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(source(image), target(image))


def test_weights_in_memory_are_filled_in_like_those_of_a_file(path):
    saved = torch.load(path, weights_only=True)
    assert torch.equal(fill(make_network(), saved, "a state")[0].weight, saved["0.weight"])
    with pytest.raises(CheckpointError, match=r"^a state: found 7 of 9"):
        fill(make_network(outputs=2), saved, "a state")


def test_training_starts_from_a_file_or_from_random_weights(path, tmp_path):
    network = make_network()
    before = network[0].weight.clone()
    assert torch.equal(initialize(network, None)[0].weight, before)
    assert not torch.equal(initialize(network, path)[0].weight, before)
    with pytest.raises(MissingFileError):
        initialize(network, tmp_path / "none.pt")


# ---- what is said of a file


def make_ema(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}


@pytest.mark.parametrize(
    ("taken", "left"), [("model", "ema"), ("teacher", "student"), ("state_dict", "state_dict_ema")]
)
def test_of_two_networks_in_a_file_it_is_told_which_one_is_taken(taken, left, path):
    state = make_network().state_dict()
    torch.save({left: make_ema(state), taken: state, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}, path)
    network = load(make_network(), path, report_dir=path.parent)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    remarks = json.loads((path.parent / "weights.json").read_text())["remarks"]
    assert remarks[-1] == f"the file holds several networks: {taken} is taken, {left} left out"


def test_a_run_of_this_project_holds_one_network(path):
    state = make_network().state_dict()
    auxiliary = {"student": {"weight": torch.ones(2)}}
    save_checkpoint({"model": state, "auxiliary": auxiliary, "iteration": 1, "max_epochs": 1, "record": []}, path)
    load(make_network(), path, report_dir=path.parent)
    assert json.loads((path.parent / "weights.json").read_text())["remarks"] == []


def test_keys_that_are_no_names_are_refused_in_a_sentence(path):
    torch.save({7: torch.ones(2), "0.weight": torch.ones(2)}, path)
    with pytest.raises(
        CheckpointError, match=r"weights\.pt: found tensors under keys like 7, wanted names of a network"
    ):
        load(make_network(), path)


def test_numbers_of_8_bits_are_told(path):
    state = {n: v.to(torch.float8_e4m3fn) if v.ndim > 1 else v for n, v in make_network().state_dict().items()}
    torch.save(state, path)
    load(make_network(), path, report_dir=path.parent)
    (remark,) = json.loads((path.parent / "weights.json").read_text())["remarks"]
    assert remark == ("2 tensors are float8_e4m3fn: they are cast as they are, a scale that belongs to them is unknown")


@pytest.mark.parametrize("normalize", [True, False])
def test_what_no_tensor_tells_is_told_as_assumed(normalize, path):
    options = {"feature_size": 12, "window_size": 2, "normalize": normalize}
    network = SwinUNETR(1, 2, **options)
    torch.save(network.state_dict(), path)
    load(SwinUNETR(1, 2, **options), path, patch_merging="corrected", report_dir=path.parent)
    (remark,) = json.loads((path.parent / "weights.json").read_text())["remarks"]
    assert remark.startswith(f"the file does not say whether its network normalizes its maps: normalize={normalize} is")
    torch.save(make_unetr().state_dict(), path)
    load(make_unetr(), path, report_dir=path.parent)
    (remark,) = json.loads((path.parent / "weights.json").read_text())["remarks"]
    assert remark == "the file does not say its attention heads: 3 of width 8 are taken"


def test_a_2d_transformer_with_queries_keys_and_values_apart_is_no_plain_vit(path):
    state = timm.create_model("vit_tiny_patch16_224", depth=1).state_dict()
    qkv = state.pop("blocks.0.attn.qkv.weight").chunk(3)
    state |= {f"blocks.0.attn.{name}.weight": part for name, part in zip("qkv", qkv, strict=True)}
    torch.save(state, path)
    with pytest.raises(
        CheckpointError, match=r"no plain ViT \(in its first block .*attn\.k\.weight.*, for UNETR; use inf"
    ):
        load(make_unetr(), path)


def test_a_file_is_hashed_once_and_the_network_knows_it(path):
    network = load(make_network(), path)
    assert network.weights_source == (str(path), compute_sha256(path))
    assert "weights_source" not in network.state_dict()
