# SPDX-License-Identifier: Apache-2.0
"""Networks as TorchScript and ONNX, by MONAI's own commands: their outputs are those of the network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from comparisons import assert_equal_to_scale
from monai.bundle import ConfigParser, ckpt_export, onnx_export
from torch import Tensor, nn

from tools.bundles import BUNDLES
from tools.weights import load

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),  # from comparing sizes
    pytest.mark.filterwarnings("ignore::UserWarning:monai.bundle"),  # that configs can run code
]
UNETR, INFLATED, SWIN, VOCO = "unetr_btcv", "inflated_vit_seg", "swin_unetr_ssl", "voco_finetune"
SMALL: dict[str, dict[str, Any]] = {
    UNETR: {
        "roi_size": [32, 16, 16],
        "network_def#feature_size": 4,
        "network_def#hidden_size": 24,
        "network_def#mlp_dim": 48,
        "network_def#num_heads": 3,
    },
    SWIN: {"roi_size": [32, 64, 32], "feature_size": 12, "window_size": [4, 4, 4]},
    VOCO: {"roi_size": [64, 32, 32], "feature_size": 12, "window_size": [7, 7, 7]},
    INFLATED: {"image_size": [40, 30], "num_slices": 3, "network_def#decoder_channels": 8},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"depth": 4},
    "swin_tiny_patch4_window7_224": {"depths": [1, 1, 1, 1], "embed_dim": 24},
}
SWITCHES: dict[str, dict[str, Any]] = {
    "perceptron": {},
    "conv, stem, light": {"proj_type": "conv", "stem": True, "stem_residual": True, "light": True},
    "align, fpn": {"align": True, "fpn": True},
}


def describe_unetr(switches: str) -> dict[str, Any]:
    size = {"roi_size": [24, 20, 16]} if "align" in switches else {}
    return SMALL[UNETR] | {f"network_def#{name}": value for name, value in SWITCHES[switches].items()} | size


def describe_segmenter(encoder: str, decoder: str) -> dict[str, Any]:
    options = {"encoder": encoder, "decoder": decoder, "network_def#encoder_options": ENCODERS[encoder]}
    return SMALL[INFLATED] | options


VARIANTS = [
    *(pytest.param(UNETR, describe_unetr(switches), id=f"unetr: {switches}") for switches in SWITCHES),
    pytest.param(SWIN, SMALL[SWIN], id="swin unetr"),
    pytest.param(VOCO, SMALL[VOCO], id="swin unetr v2, padded windows"),
    *(
        pytest.param(INFLATED, describe_segmenter(encoder, decoder), id=f"{encoder.partition('_')[0]}, {decoder}")
        for encoder, decoder in [
            ("vit_tiny_patch16_224", "upernet"),
            ("vit_tiny_patch16_224", "setr_pup"),
            ("swin_tiny_patch4_window7_224", "unetr"),
            ("swin_tiny_patch4_window7_224", "transposed"),
        ]
    ),
]
SAMPLE = ("unetr: perceptron", "swin unetr", "vit, upernet")
each_variant = pytest.mark.parametrize(
    ("bundle", "overrides"),
    [
        variant if variant.id in SAMPLE else pytest.param(*variant.values, id=variant.id, marks=pytest.mark.exhaustive)
        for variant in VARIANTS
    ],
)


class Source:
    """A network of a bundle and what MONAI's commands need to make it anew: configs, overrides and weights."""

    def __init__(self, root: Path, weights: Path, files: list[Path], overrides: Mapping[str, Any]) -> None:
        parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in files]))
        parser.update(dict(overrides))
        self.network: nn.Module = parser.get_parsed_content("network_def").eval()
        if "image_size" in parser:  # slices, whatever the overlay says of 3D windows
            size = [*parser.get("image_size"), parser.get_parsed_content("window_slices")]
        else:
            size = parser.get("roi_size")
        self.shape = [1, parser.get("in_channels"), *size]
        self.arguments = dict(
            net_id="network_def",
            ckpt_file=str(weights),
            meta_file=str(root / "configs" / "metadata.json"),
            config_file=[str(file) for file in files],
            **overrides,
        )

    def draw(self, batch_size: int = 1) -> Tensor:
        """Return random images, other than those of an export."""
        return torch.randn(batch_size, *self.shape[1:], generator=torch.Generator().manual_seed(1))


@pytest.fixture
def source(bundle, overrides, tmp_path) -> Source:
    """A small network of a bundle, with random weights."""
    torch.manual_seed(0)
    made = Source(BUNDLES / bundle, tmp_path / "model.pt", [BUNDLES / bundle / "configs/inference.yaml"], overrides)
    torch.save(made.network.state_dict(), tmp_path / "model.pt")
    return made


def check_script(path: Path, network: nn.Module, *images: Tensor) -> None:
    program = torch.jit.load(path)
    with torch.no_grad(), torch.jit.optimized_execution(False):
        for image in images:
            assert_equal_to_scale(program(image), network(image))


def check_onnx(path: Path, network: nn.Module, image: Tensor) -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        assert_equal_to_scale(torch.from_numpy(logits), network(image), relative=1e-4)


# ---- TorchScript


def test_every_bundle_has_a_small_network_here():
    assert set(SMALL) == {path.parents[1].name for path in BUNDLES.glob("*/configs/metadata.json")}


@each_variant
def test_scripted_network_equals_the_network(bundle, source, tmp_path):
    ckpt_export(filepath=str(tmp_path / "model.ts"), **source.arguments)
    check_script(tmp_path / "model.ts", source.network, source.draw(), source.draw(3))
    with pytest.raises(torch.jit.Error, match="ConfigValueError"):
        torch.jit.load(tmp_path / "model.ts")(source.draw()[:, :, 1:])


@pytest.mark.parametrize(("bundle", "overrides"), [VARIANTS[2], VARIANTS[3], VARIANTS[-1]])
@pytest.mark.exhaustive
def test_traced_network_equals_the_network(bundle, source, tmp_path):
    ckpt_export(filepath=str(tmp_path / "model.ts"), use_trace=True, input_shape=source.shape, **source.arguments)
    check_script(tmp_path / "model.ts", source.network, source.draw())


# ---- ONNX


@each_variant
def test_onnx_network_equals_the_network(bundle, source, tmp_path):
    onnx_export(filepath=str(tmp_path / "model.onnx"), input_shape=source.shape, **source.arguments)
    check_onnx(tmp_path / "model.onnx", source.network, source.draw())


# ---- as users do it


def run_command(folder: Path, *words: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "monai.bundle", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_committed_model_becomes_torchscript_and_onnx(unpacked):
    """By the commands of the documents, in the folder of an exported bundle."""
    network = ["--ckpt_file", "models/model.pt", "--config_file", "configs/inference.json"]
    run_command(unpacked, "ckpt_export", "network_def", *network)
    run_command(
        unpacked,
        *("onnx_export", "network_def", "--filepath", "models/model.onnx", *network),
        *("--meta_file", "configs/metadata.json"),
    )
    made = Source(unpacked, Path(), [unpacked / "configs" / "inference.json"], {})
    load(made.network, unpacked / "models" / "model.pt", complete=True)
    check_script(unpacked / "models" / "model.ts", made.network, made.draw())
    check_onnx(unpacked / "models" / "model.onnx", made.network, made.draw())
    load(made.network, unpacked / "models" / "model.ts", complete=True)  # it serves as a checkpoint, too
