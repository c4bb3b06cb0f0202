# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comparisons import assert_equal_to_scale
from monai.networks.nets import UNETR
from torch import Tensor, nn

from tools.errors import ConfigValueError
from tools.networks import ModifiedUNETR

TINY = {"in_channels": 1, "out_channels": 3, "feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 3}
SWITCHES: dict[str, dict[str, bool]] = {
    "plain": {},
    "stem": {"stem": True},
    "light": {"light": True},
    "align": {"align": True},
    "fpn": {"fpn": True},
    "all": {"stem": True, "stem_residual": True, "light": True, "align": True, "fpn": True},
}
ANISOTROPIC_AND_CUBE = ((96, 96, 16), (48, 48, 48))
each_switch = pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)


def build_tiny(size: Any = (32, 32, 16), **switches: Any) -> ModifiedUNETR:
    return ModifiedUNETR(img_size=size, **TINY | switches).eval()


def build_full(**arguments: Any) -> ModifiedUNETR:
    """Build at the published widths without memory, to count parameters."""
    with torch.device("meta"):
        return ModifiedUNETR(**{"in_channels": 1, "out_channels": 14, "img_size": 96} | arguments)


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def record_calls(net: ModifiedUNETR, image: Tensor, *names: str) -> dict[str, tuple[Tensor, Any]]:
    """Run `net` and return the first input and the output of the named submodules."""
    calls: dict[str, tuple[Tensor, Any]] = {}
    for name in names:
        net.get_submodule(name).register_forward_hook(
            lambda _module, inputs, output, name=name: calls.__setitem__(name, (inputs[0], output))
        )
    with torch.no_grad():
        net(image)
    return calls


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({}, 92_802_478),
        ({"feature_size": 32}, 101_805_646),
        ({"feature_size": 32, "stem": True}, 101_805_646 + 465),
        ({"feature_size": 32, "stem": True, "fpn": True, "fpn_channels": 32}, 101_814_335),
        ({"feature_size": 32, "align": True}, 101_805_646),
    ],
)
def test_parameter_count(arguments, wanted):
    assert count_parameters(build_full(**arguments)) == wanted


def test_light_vit_has_two_thirds_of_everything():
    net = build_full(light=True)
    block = net.vit.blocks[0]
    assert len(net.vit.blocks) == net.num_layers == 8
    assert (net.hidden_size, block.attn.num_heads, block.mlp.linear1.out_features) == (512, 8, 2048)
    assert count_parameters(net.vit) == 27_424_256


@pytest.mark.numeric
@pytest.mark.parametrize("proj_type", ["conv", "perceptron"])
@pytest.mark.parametrize("size", [(32, 32, 16), (32, 48, 32)])
def test_without_switches_it_is_monais_unetr(proj_type, size):
    monai_net = UNETR(img_size=size, proj_type=proj_type, **TINY).eval()
    net = build_tiny(size, proj_type=proj_type)
    net.load_state_dict(monai_net.state_dict(), strict=True)
    assert list(net.state_dict()) == list(monai_net.state_dict())
    image = torch.rand(2, 1, *size)
    with torch.no_grad():
        assert torch.equal(net(image), monai_net(image))


@pytest.mark.parametrize(
    ("size", "switches"),
    [
        *(
            pytest.param(size, SWITCHES[name], id=f"{name}-{size}")
            for name in SWITCHES
            for size in ANISOTROPIC_AND_CUBE
        ),
        pytest.param((96, 96, 96), SWITCHES["all"], id="all-96", marks=pytest.mark.exhaustive),
    ],
)
def test_one_training_step_reaches_every_parameter(size, switches):
    net = build_tiny(size, **switches).train()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    logits = net(torch.rand(1, 1, *size))
    assert logits.shape == (1, 3, *size)
    F.cross_entropy(logits, torch.randint(3, (1, *size))).backward()
    torch.optim.SGD(net.parameters(), lr=1.0).step()
    for name, parameter in net.named_parameters():
        if "norm_cross_attn" in name:  # MONAI's ViT builds these and never calls them
            assert parameter.grad is None
        elif parameter.ndim > 1:  # the bias in front of an instance norm has no effect, so gradient 0
            assert not torch.equal(parameter, before[name]), name
        else:
            assert parameter.grad is not None, name


@pytest.mark.numeric
@pytest.mark.parametrize(("light", "taps"), [(False, (3, 6, 9)), (True, (2, 4, 6))])
def test_skips_leave_the_vit_at_its_quarters(light, taps):
    net = build_tiny(light=light)
    blocks = [f"vit.blocks.{tap}" for tap in taps]
    encoders = ["encoder2", "encoder3", "encoder4"]
    calls = record_calls(net, torch.rand(1, 1, 32, 32, 16), *blocks, *encoders)
    for block, encoder in zip(blocks, encoders, strict=True):
        assert torch.equal(calls[encoder][0], net.proj_feat(calls[block][1]))


def test_stem_filters_the_image_for_the_vit_only():
    image = torch.rand(1, 2, 32, 32, 16)
    net = build_tiny(in_channels=2, stem=True, feature_size=6)
    calls = record_calls(net, image, "stem", "vit", "encoder1")
    assert torch.equal(calls["encoder1"][0], image)
    assert torch.equal(calls["vit"][0], calls["stem"][1])
    assert calls["stem"][1].shape == image.shape
    assert not torch.equal(calls["stem"][1], image)
    assert net.stem.layers[0].out_channels == 3


@pytest.mark.numeric
def test_residual_stem_of_zeros_leaves_the_network_as_it_was():
    plain, net = build_tiny(), build_tiny(stem=True, stem_residual=True)
    net.load_state_dict({**net.state_dict(), **plain.state_dict()})
    nn.init.zeros_(net.stem.layers[-1].weight)
    nn.init.zeros_(net.stem.layers[-1].bias)
    image = torch.rand(1, 1, 32, 32, 16)
    with torch.no_grad():
        assert torch.equal(net(image), plain(image))


@pytest.mark.numeric
def test_align_changes_nothing_at_multiples_of_the_patch():
    plain, net = build_tiny(), build_tiny(align=True)
    net.load_state_dict(plain.state_dict())
    image = torch.rand(1, 1, 32, 32, 16)
    with torch.no_grad():
        assert torch.equal(net(image), plain(image))


@pytest.mark.numeric
@pytest.mark.parametrize("size", [(96, 96, 20), (40, 33, 7)], ids=str)
def test_align_takes_any_size(size):
    net = build_tiny(size, align=True)
    image = torch.rand(1, 1, *size)
    calls = record_calls(net, image, "vit", "encoder1", "out")
    padded = [-(-edge // 16) * 16 for edge in size]
    assert torch.equal(calls["encoder1"][0], image)
    assert torch.equal(calls["vit"][0], F.interpolate(image, padded, mode="trilinear"))
    with torch.no_grad():
        assert torch.equal(net(image), F.interpolate(calls["out"][1], size, mode="trilinear"))


@pytest.mark.numeric
@pytest.mark.parametrize(("fpn_channels", "wanted"), [(None, 12), (5, 5)])
def test_fpn_fuses_the_decoder_with_the_upsampled_skips(fpn_channels, wanted):
    net = build_tiny((32, 48, 32), feature_size=6, fpn=True, fpn_channels=fpn_channels)
    names = ["decoder3", "encoder2", "encoder3", "encoder4", "fusion", "decoder2"]
    calls = record_calls(net, torch.rand(1, 1, 32, 48, 32), *names)
    dec1, enc2, enc3, enc4 = (calls[name][1] for name in names[:4])
    skips = [F.interpolate(skip, (16, 24, 16), mode="trilinear") for skip in (enc3, enc4)]
    assert torch.equal(calls["fusion"][0], torch.cat([dec1, enc2, *skips], dim=1))
    assert torch.equal(calls["decoder2"][0], calls["fusion"][1])
    assert calls["fusion"][1].shape == (1, wanted, 16, 24, 16)
    assert calls["fusion"][1].min() == 0


@pytest.mark.numeric
@each_switch
def test_scripted_network_equals_the_eager_one(switches):
    size = (32, 24, 20) if switches.get("align") else (32, 32, 16)
    net, image = build_tiny(size, **switches), torch.rand(1, 1, *size)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(net), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    with torch.no_grad(), torch.jit.optimized_execution(False):
        assert_equal_to_scale(scripted(image), net(image))
    with pytest.raises(torch.jit.Error, match="ConfigValueError"):
        scripted(image[..., :-1])


@pytest.mark.numeric
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # from comparing sizes, as MONAI and torch do too
@pytest.mark.parametrize(("size", "name"), [((32, 32, 16), "plain"), ((32, 24, 20), "all")])
def test_traced_network_equals_the_eager_one(size, name):
    net = build_tiny(size, **SWITCHES[name])
    traced = torch.jit.trace(net, torch.rand(1, 1, *size), check_trace=False)
    image = torch.rand(1, 1, *size)
    with torch.no_grad():
        assert_equal_to_scale(traced(image), net(image))


@pytest.mark.parametrize("align", [False, True])
def test_image_of_another_size_is_refused(align):
    with pytest.raises(ConfigValueError, match=r"size \[32, 32, 32\], wanted size \[32, 32, 16\]"):
        build_tiny(align=align)(torch.rand(1, 1, 32, 32, 32))


@pytest.mark.parametrize(
    ("arguments", "subject"),
    [
        ({"img_size": (96, 96, 20)}, "img_size"),
        ({"img_size": (96, 96)}, "img_size"),
        ({"img_size": (96, 96, 0)}, "img_size"),
        ({"img_size": (-7, 20, 20), "align": True}, "img_size"),
        ({"hidden_size": 770}, "hidden_size"),
        ({"light": True, "hidden_size": 512, "num_heads": 8}, "hidden_size"),
        ({"light": True, "num_heads": 16}, "num_heads"),
        ({"light": True, "mlp_dim": 2000}, "mlp_dim"),
        ({"stem": True, "feature_size": 1}, "feature_size"),
        ({"stem_residual": True}, "stem_residual"),
        ({"fpn": True, "fpn_channels": 0}, "fpn_channels"),
        ({"spatial_dims": 2}, "spatial_dims"),
    ],
)
def test_values_that_do_not_fit_are_refused(arguments, subject):
    with pytest.raises(ConfigValueError) as caught:
        build_full(**arguments)
    assert caught.value.subject == subject
