# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from comparisons import assert_equal_to_scale
from monai.networks.nets import UNETR
from torch import Tensor, nn

from tools.errors import ConfigValueError
from tools.networks.decoders import DECODERS, Plan
from tools.networks.layers import NORMS

SWIN = (4, 8, 16, 32)
TRANSFORMERS = {"patch16": (16,) * 12, "patch14": (14,) * 12, "patch8": (8,) * 12, "patch32": (32,) * 12, "swin": SWIN}
each_decoder = pytest.mark.parametrize("decoder", DECODERS)


def plan(**changes: Any) -> Plan:
    arguments = {"channels": [24] * 4, "strides": [16] * 4, "in_channels": 2, "out_channels": 3, "width": 8}
    return Plan(**arguments | changes)


def read(decoder: str, strides: tuple[int, ...], size: tuple[int, int] = (2, 3), batch: int = 2, **changes: Any):
    """Build the decoder of a transformer and random maps; its coarsest map has `size`."""
    chosen = [strides[depth] for depth in DECODERS[decoder].choose_depths(strides)]
    channels = [8 * (1 + index) for index in range(len(chosen))] if chosen[0] != chosen[-1] else [24] * len(chosen)
    stride = chosen[-1]
    maps = [
        torch.rand(batch, count, *(edge * stride // fine for edge in size), requires_grad=True)
        for count, fine in zip(channels, chosen, strict=True)
    ]
    image = torch.rand(batch, 2, *(edge * stride for edge in size), requires_grad=True)
    return DECODERS[decoder](plan(channels=channels, strides=chosen, **changes)), maps, image


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("decoder", "arguments", "wanted"),
    [
        ("upernet", {"channels": [768] * 4, "width": 768, "norm": "batch"}, 74_940_686),
        ("upernet", {"channels": [768] * 4, "width": 768, "norm": "group"}, 74_940_686),
        ("upernet", {"channels": [128, 256, 512, 1024], "strides": SWIN, "width": 512}, 33_246_222),
        ("setr_pup", {"channels": [768], "strides": [16], "width": 768, "norm": "instance"}, 21_247_502),
        ("transposed", {"channels": [768], "strides": [16], "width": 768, "norm": "instance"}, 7_123_214),
    ],
)
def test_parameters_are_those_of_transseg(decoder, arguments, wanted):
    with torch.device("meta"):
        net = DECODERS[decoder](plan(out_channels=14, **arguments))
    assert count_parameters(net) == wanted


@pytest.mark.parametrize(
    ("decoder", "strides", "wanted"),
    [
        ("upernet", [16] * 12, [3, 5, 7, 11]),
        ("upernet", [16] * 24, [7, 11, 15, 23]),
        ("upernet", [16] * 5, [0, 1, 2, 4]),
        ("upernet", SWIN, [0, 1, 2, 3]),
        ("unetr", [16] * 12, [3, 6, 9, 11]),
        ("unetr", [14] * 12, [3, 6, 9, 11]),
        ("unetr", [16] * 24, [6, 12, 18, 23]),
        ("unetr", [8] * 12, [4, 8, 11]),
        ("unetr", [16] * 4, [0, 1, 2, 3]),
        ("unetr", SWIN, [0, 1, 2, 3]),
        ("setr_pup", [16] * 12, [11]),
        ("transposed", SWIN, [3]),
    ],
)
def test_depths_are_those_of_the_papers(decoder, strides, wanted):
    assert DECODERS[decoder].choose_depths(strides) == wanted


@each_decoder
@pytest.mark.parametrize("transformer", TRANSFORMERS)
@pytest.mark.parametrize("norm", NORMS)
def test_everything_learns_from_maps_of_any_size(decoder, transformer, norm):
    strides = TRANSFORMERS[transformer]
    net, maps, image = read(decoder, strides, size=(3, 5), norm=norm)
    logits = net.train()(maps, image)
    doublings = {"upernet": 2, "setr_pup": 3, "transposed": 4, "unetr": 4}[decoder]
    if decoder != "upernet":
        doublings += {"patch8": -1, "patch32": 1, "swin": 1}.get(transformer, 0)
    elif transformer == "swin":
        doublings = 3
    size = [edge * 2**doublings for edge in (3, 5)]
    assert logits.shape == (2, 3, *(image.shape[2:] if decoder == "unetr" else size))
    (logits * torch.rand_like(logits)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
    for features in maps:
        assert features.grad.any()
    assert (image.grad is not None) == (decoder == "unetr")


@each_decoder
@pytest.mark.parametrize("transformer", ["patch16", "swin"])
def test_batch_norm_trains_with_a_batch_of_one(decoder, transformer):
    net, maps, image = read(decoder, TRANSFORMERS[transformer], batch=1, norm="batch")
    assert net.train()(maps, image).isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (1, 4)])
def test_upernet_takes_a_grid_of_one_row(size):
    net, maps, image = read("upernet", TRANSFORMERS["patch16"], size=size)
    assert net(maps, image).shape == (2, 3, *(4 * edge for edge in size))


@pytest.mark.numeric
def test_unetr_is_monais():
    monai_net = UNETR(1, 3, (64, 32), 4, 24, 48, 3, norm_name="instance", spatial_dims=2).eval()
    net = DECODERS["unetr"](plan(in_channels=1, width=4, norm="instance")).eval()
    pairs = [("stem", "encoder1"), ("classifier", "out")]
    pairs += [(f"skips.{index}", f"encoder{index + 2}") for index in range(3)]
    pairs += [(f"joins.{index}", f"decoder{index + 2}") for index in range(4)]
    for name, monai_name in pairs:
        net.get_submodule(name).load_state_dict(monai_net.get_submodule(monai_name).state_dict(), strict=True)
    assert count_parameters(net) == count_parameters(monai_net) - count_parameters(monai_net.vit)
    image = torch.rand(2, 1, 64, 32)
    with torch.no_grad():
        tokens, states = monai_net.vit(image)
        maps = [monai_net.proj_feat(states) for states in (states[3], states[6], states[9], tokens)]
        assert_equal_to_scale(net(maps, image), monai_net(image))


def test_patches_of_14_meet_the_image_at_its_own_grid():
    net, maps, image = read("unetr", TRANSFORMERS["patch14"], size=(4, 5))
    seen: list[Tensor] = []
    net.joins[0].register_forward_hook(lambda _module, inputs, _output: seen.extend(inputs))
    assert net(maps, image).shape[2:] == (56, 70)
    below, skip = seen
    assert below.shape[2:] == (28, 35)
    assert skip.shape[2:] == (56, 70)


@each_decoder
def test_dropout_is_for_training_only(decoder):
    net, maps, image = read(decoder, TRANSFORMERS["patch16"], norm="instance", dropout_rate=0.5)
    assert not torch.equal(net.train()(maps, image), net(maps, image))
    assert torch.equal(net.eval()(maps, image), net(maps, image))


@pytest.mark.parametrize(
    ("decoder", "changes", "subject"),
    [
        ("upernet", {"channels": [24] * 3, "strides": [16] * 3}, "depths"),
        ("unetr", {"channels": [24] * 5, "strides": [16] * 5}, "depths"),
        ("setr_pup", {}, "depths"),
        ("transposed", {}, "depths"),
        ("upernet", {"strides": [8, 16, 16, 16]}, "encoder"),
        ("upernet", {"norm": "layer"}, "norm"),
        ("upernet", {"width": 0}, "decoder_channels"),
        ("upernet", {"out_channels": 0}, "out_channels"),
        ("upernet", {"dropout_rate": 1.0}, "dropout_rate"),
    ],
)
def test_values_that_do_not_fit_are_refused(decoder, changes, subject):
    with pytest.raises(ConfigValueError) as caught:
        DECODERS[decoder](plan(**changes))
    assert caught.value.subject == subject


def test_transformer_of_too_few_blocks_is_refused():
    with pytest.raises(ConfigValueError, match="3 blocks, wanted at least 4"):
        DECODERS["unetr"].choose_depths([16] * 3)
