# SPDX-License-Identifier: Apache-2.0
"""Swin UNETR is MONAI's, and becomes TorchScript."""

from __future__ import annotations

import re

import pytest
import torch
from comparisons import assert_equal_to_scale
from monai.networks.nets import SwinUNETR

from tools.errors import ConfigValueError
from tools.networks import ScriptableSwinUNETR

SIZE = {"feature_size": 12, "window_size": (4, 4, 4)}


@pytest.fixture(scope="module")
def network() -> ScriptableSwinUNETR:
    torch.manual_seed(0)
    return ScriptableSwinUNETR((32, 64, 32), 1, 3, **SIZE).eval()


@pytest.mark.numeric
def test_it_computes_what_monai_computes(network):
    monai = SwinUNETR(1, 3, **SIZE).eval()
    monai.load_state_dict(network.state_dict())
    image = torch.randn(1, 1, 64, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(image), monai(image))


@pytest.mark.numeric
def test_its_torchscript_takes_any_batch_of_the_stated_size(network):
    program = torch.jit.script(network)
    with torch.no_grad(), torch.jit.optimized_execution(False):
        for count in (1, 3):
            image = torch.randn(count, 1, 32, 64, 32)
            assert_equal_to_scale(program(image), network(image))
        with pytest.raises(torch.jit.Error, match="ConfigValueError"):
            program(torch.randn(1, 1, 64, 32, 32))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"img_size": (32, 48, 32)},
            "roi_size: found 32×48×32, wanted multiples of 32, not all of them 32; set --roi_size [32,64,32]",
        ),
        ({"img_size": (32, 32, 32)}, "set --roi_size [32,32,64]"),
        ({"img_size": (32, 0, 65)}, "set --roi_size [32,32,96]"),
        ({"feature_size": 20}, "feature_size: found 20, wanted a multiple of 12; use 12, 24, 48 or 96."),
    ],
)
def test_sizes_that_cannot_be_trained_are_refused(options, sentence):
    with pytest.raises(ConfigValueError, match=re.escape(sentence)):
        ScriptableSwinUNETR(**{"img_size": (32, 64, 32), "in_channels": 1, "out_channels": 2, **options})
