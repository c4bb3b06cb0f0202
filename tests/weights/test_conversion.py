# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from comparisons import assert_equal_to_scale
from ignite.engine import Engine
from monai.handlers import CheckpointLoader
from monai.networks.blocks import PatchEmbeddingBlock
from monai.networks.nets import UNETR, ViTAutoEnc
from safetensors.torch import load_file

from tools.__main__ import inspect_weights, weights
from tools.errors import CheckpointError, ConfigValueError, MissingFileError
from tools.weights import load
from tools.weights.adaptation import order_as_perceptron
from tools.weights.conversion import build_network, compare, convert, inspect
from tools.weights.files import read_metadata

SIZES = {"hidden_size": 24, "mlp_dim": 48, "num_heads": 3}
SIZE = (32, 32, 32)


def make_unetr(seed: int = 0, **options) -> UNETR:
    torch.manual_seed(seed)
    return UNETR(1, 2, SIZE, feature_size=4, **SIZES | options).eval()


@pytest.fixture
def old_file(tmp_path):
    """A whole UNETR as MONAI 0.7 named it."""
    state = {n: v for n, v in make_unetr(1, proj_type="perceptron").state_dict().items() if "cross" not in n}
    state["vit.patch_embedding.cls_token"] = torch.zeros(1, 1, 24)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "old.pth")
    return tmp_path / "old.pth"


@pytest.fixture
def part_file(tmp_path):
    """A pre-trained transformer."""
    torch.save(ViTAutoEnc(1, SIZE, (16, 16, 16), **SIZES).state_dict(), tmp_path / "part.pt")
    return tmp_path / "part.pt"


@pytest.mark.numeric
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_whole_network_is_written_as_monai_loads_it_strictly(old_file, tmp_path, suffix):
    out = tmp_path / f"model{suffix}"
    text = convert(old_file, make_unetr(2), out)
    assert f"{out}: 194 tensors, whole network" in text
    network = make_unetr(3)
    network.load_state_dict(torch.load(out)["model"] if suffix == ".pt" else load_file(out), strict=True)
    image, source = torch.rand(1, 1, *SIZE).double(), make_unetr(1, proj_type="perceptron").double()
    with torch.no_grad():
        assert_equal_to_scale(network.double()(image), source(image), relative=1e-7)


def test_the_checkpoint_loader_of_monai_takes_the_file(old_file, tmp_path):
    convert(old_file, make_unetr(2), tmp_path / "model.pt")
    network = make_unetr(3)
    CheckpointLoader(str(tmp_path / "model.pt"), {"model": network}, strict=True)(Engine(lambda *_: None))
    expected = torch.load(old_file)["state_dict"]["out.conv.conv.bias"]
    assert torch.equal(network.out.conv.conv.bias, expected)


def test_a_part_is_written_without_random_values_and_loads_as_a_part(part_file, tmp_path):
    out = tmp_path / "part.safetensors"
    assert "161 tensors, a part of the network, for --pretrained" in convert(part_file, make_unetr(2), out)
    assert len(load_file(out)) == 161
    assert read_metadata(out)["layout"] == "part"
    network = load(make_unetr(3), out)
    assert torch.equal(network.vit.norm.weight, torch.load(part_file)["norm.weight"])
    with pytest.raises(CheckpointError, match="nothing for 33 others"):
        load(make_unetr(3), out, complete=True)
    with pytest.raises(CheckpointError, match="of another shape"):
        load(make_unetr(3, mlp_dim=96), out)


def test_a_part_is_not_written_as_pt_which_could_not_tell(part_file, tmp_path):
    with pytest.raises(ConfigValueError, match=r"161 of 194 tensors.*give --out .*model\.safetensors"):
        convert(part_file, make_unetr(), tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def test_the_header_says_where_the_weights_come_from(old_file, tmp_path):
    convert(old_file, make_unetr(), tmp_path / "model.safetensors")
    header = read_metadata(tmp_path / "model.safetensors")
    assert header["source"].startswith("old.pth, sha256 ")
    assert header["licence"] == "not stated by its owner"
    assert "licence  not stated by its owner" in str(compare(tmp_path / "model.safetensors", make_unetr()))


def test_weights_that_do_not_fit_are_not_written(old_file, tmp_path, caplog):
    with pytest.raises(CheckpointError, match=r"with hidden_size=24 \(here 48\)"):
        convert(old_file, make_unetr(hidden_size=48, mlp_dim=96), tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()
    assert "misshapen" in caplog.text


def test_another_ending_is_refused(old_file, tmp_path):
    with pytest.raises(ConfigValueError, match=r"model\.bin, wanted a \.safetensors or \.pt"):
        convert(old_file, make_unetr(), tmp_path / "model.bin")


def test_inspection_tells_the_layout_and_the_network(old_file):
    text = inspect(old_file)
    assert "unetr_monai_0.7: a UNETR of MONAI 0.7" in text
    assert "tensors   171, 0." in text
    assert "hidden_size=24, patches=8, mlp_dim=48, num_layers=12, proj_type=perceptron, qkv_bias=False" in text
    assert "feature_size=4, in_channels=1, out_channels=2" in text
    assert "for       UNETR; tensors that match at the published size: 170" in text
    assert "left out  1 of the file's tensors" in text


def test_inspection_of_foreign_weights_says_that_they_are(tmp_path):
    torch.save({"a.weight": torch.rand(3).half()}, tmp_path / "foreign.pt")
    text = inspect(tmp_path / "foreign.pt")
    assert "own: weights in no public layout" in text
    assert "network   not recognized" in text
    assert "1 float16" in text


def test_inspection_of_no_file_is_an_error(tmp_path):
    with pytest.raises(MissingFileError):
        inspect(tmp_path / "none.pt")


def test_the_network_of_a_bundle_is_built_with_overlays(tmp_path):
    (tmp_path / "small.yaml").write_text("network_def#hidden_size: 24\nnetwork_def#num_heads: 3\nlabels: [a, b]\n")
    network = build_network("unetr_btcv", [tmp_path / "small.yaml"])
    assert network.vit.norm.weight.shape == (24,)
    assert network.out.conv.conv.bias.shape == (2,)
    with pytest.raises(ConfigValueError, match="no such file"):
        build_network("unetr_btcv", [tmp_path / "none.yaml"])
    with pytest.raises(ConfigValueError, match="unetr_btcv"):
        build_network("unetr")


def test_the_command_line_has_the_four_commands(old_file):
    assert weights.commands.keys() == {"inspect", "convert", "list", "fetch"}
    assert "unetr_monai_0.7" in CliRunner().invoke(inspect_weights, [str(old_file)]).output


def test_a_perceptron_reads_a_patch_as_the_convolution_does_in_every_channel():
    shape, patch, channels = (8, 12, 16), (2, 3, 4), 3
    torch.manual_seed(0)
    convolution, perceptron = (
        PatchEmbeddingBlock(channels, shape, patch, 12, 3, proj_type=kind).double() for kind in ("conv", "perceptron")
    )
    perceptron.position_embeddings = convolution.position_embeddings
    with torch.no_grad():
        perceptron.patch_embeddings[1].weight.copy_(order_as_perceptron(convolution.patch_embeddings.weight))
        perceptron.patch_embeddings[1].bias.copy_(convolution.patch_embeddings.bias)
        image = torch.rand(2, channels, *shape).double()
        assert_equal_to_scale(perceptron(image), convolution(image))
