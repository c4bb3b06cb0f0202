# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import timm
import torch
from monai.engines import SupervisedTrainer
from torch import nn

from tools.errors import ConfigValueError
from tools.handlers import GradientClipping
from tools.optimization import group_parameters


def make_network() -> nn.Module:
    """A timm transformer of 12 blocks with a decoder."""
    encoder = nn.Module()
    encoder.model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
    network = nn.Module()
    network.encoder = encoder
    network.decoder = nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4))
    return network


def look_up(network: nn.Module, **options) -> dict[str, tuple[float, float]]:
    """Return weight decay and learning rate of every parameter by its name."""
    groups = group_parameters(network, 1.0, 0.05, **options)
    found = {id(p): (group["weight_decay"], group["lr"]) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found) == len(list(network.parameters()))
    return {name: found[id(parameter)] for name, parameter in network.named_parameters()}


def test_norms_biases_and_tables_are_not_decayed_and_all_else_is():
    found = look_up(make_network())
    spared = {name for name, (decay, _) in found.items() if decay == 0}
    assert {name for name in found if "norm" in name or name.endswith("bias")} <= spared
    assert {"encoder.model.cls_token", "encoder.model.pos_embed", "decoder.1.weight"} <= spared
    assert {name for name in found if name not in spared} == {
        name for name, parameter in make_network().named_parameters() if parameter.ndim > 1 and "token" not in name
    } - {"encoder.model.pos_embed"}
    assert {rate for _, rate in found.values()} == {1.0}


def test_layers_learn_the_slower_the_deeper_they_lie():
    found = look_up(make_network(), layer_decay=0.5)
    rates = [found[f"encoder.model.blocks.{i}.attn.qkv.weight"][1] for i in range(12)]
    assert rates == pytest.approx([rates[-1] * 0.5 ** (11 - i) for i in range(12)])
    assert found["encoder.model.patch_embed.proj.weight"][1] == pytest.approx(rates[0] / 2)
    assert found["decoder.0.weight"][1] == 1.0


def test_an_optimizer_takes_the_groups():
    network = make_network()
    optimizer = torch.optim.AdamW(group_parameters(network, 1e-3, 0.05, 0.75), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5)
    assert max(scheduler.get_last_lr()) == pytest.approx(5e-4)
    assert len({round(rate, 9) for rate in scheduler.get_last_lr()}) > 10


@pytest.mark.parametrize("layer_decay", [0, -1, 1.5])
def test_a_decay_that_makes_no_sense_is_refused(layer_decay):
    with pytest.raises(ConfigValueError, match="layer_decay"):
        group_parameters(make_network(), 1e-3, 0.05, layer_decay)


def train_a_step(norm: float | None) -> torch.Tensor:
    """Return how far one step of plain descent with a gradient of norm 5 moves the parameters."""
    network = nn.Linear(2, 1, bias=False)
    before = network.weight.detach().clone()
    SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[{"image": torch.tensor([[3.0, 4.0]]), "label": torch.zeros(1)}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=lambda output, _: output.sum(),
        train_handlers=[GradientClipping(network.parameters(), norm)],
        decollate=False,
    ).run()
    return before - network.weight.detach()


@pytest.mark.numeric
@pytest.mark.parametrize(("norm", "moved"), [(None, 5.0), (10.0, 5.0), (1.0, 1.0), (0.5, 0.5)])
def test_a_gradient_is_scaled_down_to_the_norm_and_never_up(norm, moved):
    step = train_a_step(norm)
    assert float(step.norm()) == pytest.approx(moved, rel=1e-4)
    assert torch.allclose(step / step.norm(), torch.tensor([[0.6, 0.8]]), atol=1e-4)


def test_a_norm_that_is_not_positive_is_refused():
    with pytest.raises(ConfigValueError, match="clip_norm"):
        GradientClipping([], 0)
