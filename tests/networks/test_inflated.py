# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from comparisons import assert_equal_to_scale
from products import cover
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.utils.flop_counter import FlopCounterMode

from tools.errors import CheckpointError, ConfigValueError
from tools.networks import InflatedEncoder, InflatedSegmenter, flatten_slices
from tools.networks.decoders import DECODERS

FOUR_BLOCKS, FOUR_STAGES = {"depth": 4}, {"depths": (2, 1, 1, 1)}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": FOUR_BLOCKS,
    "deit_tiny_patch16_224": FOUR_BLOCKS,
    "deit3_small_patch16_224": FOUR_BLOCKS,
    "beit_base_patch16_224": {**FOUR_BLOCKS, "embed_dim": 96, "num_heads": 4},
    "eva02_tiny_patch14_224": FOUR_BLOCKS,
    "swin_tiny_patch4_window7_224": FOUR_STAGES,
    "swinv2_tiny_window8_256": FOUR_STAGES,
    "swinv2_cr_tiny_ns_224": FOUR_STAGES,
    "vit_small_patch14_dinov2": FOUR_BLOCKS,
    "vit_small_patch14_reg4_dinov2": FOUR_BLOCKS,
    "vit_small_patch16_dinov3": FOUR_BLOCKS,
}
TINY, TINY_SWIN, DINO = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "vit_small_patch14_dinov2"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:timm.layers.interpolate")  # on how timm indexes
each_transformer = pytest.mark.parametrize("name", TRANSFORMERS)
each_decoder = pytest.mark.parametrize("decoder", DECODERS)


def build_encoder(name: str = TINY, **arguments: Any) -> InflatedEncoder:
    arguments = {"img_size": (60, 45), "num_slices": 3, "options": TRANSFORMERS.get(name)} | arguments
    return InflatedEncoder(name, **arguments).eval()


def build_segmenter(encoder: str = TINY, decoder: str = "unetr", **arguments: Any) -> InflatedSegmenter:
    arguments = {"img_size": (60, 45), "num_slices": 3, "decoder_channels": 8, "out_channels": 3} | arguments
    return InflatedSegmenter(encoder, decoder, encoder_options=TRANSFORMERS.get(encoder), **arguments).eval()


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("slices", "flops", "parameters"), [(1, 213_248_937_984, 85_833_792), (5, 214_859_550_720, 86_620_224)]
)
def test_beit_costs_what_transseg_says(slices, flops, parameters):
    with torch.device("meta"):
        encoder = InflatedEncoder("beit_base_patch16_224", 1, slices, 512, depths=(3, 5, 7, 11))
        windows = torch.empty(1, 1, 512, 512, slices)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        maps = encoder(windows)
    assert counter.get_total_flops() == flops
    assert count_parameters(encoder) == parameters
    assert [features.shape for features in maps] == [(1, 768, 32, 32)] * 4


def test_swin_has_the_parameters_of_transseg():
    with torch.device("meta"):
        encoder = InflatedEncoder("swin_base_patch4_window7_224", 1, 5, 512)
    added_norms = 2 * (128 + 256 + 512)  # TransSeg normalizes the first three stages, too
    assert count_parameters(encoder) == 86_749_112 - added_norms


def test_flattening_puts_the_slices_of_a_channel_next_to_each_other():
    windows = torch.rand(2, 3, 4, 5, 7)
    assert torch.equal(flatten_slices(windows)[:, 1 * 7 + 2], windows[:, 1, :, :, 2])


@pytest.mark.numeric
def test_flattened_kernel_is_the_3d_convolution():
    windows, kernel = torch.rand(2, 3, 32, 16, 5), torch.rand(6, 3, 8, 8, 5)
    wanted = F.conv3d(windows, kernel, stride=(8, 8, 1)).squeeze(-1)
    assert_equal_to_scale(F.conv2d(flatten_slices(windows), flatten_slices(kernel), stride=8), wanted)


@pytest.mark.numeric
@each_transformer
def test_kernel_on_the_centre_slice_gives_the_2d_transformer(name):
    size = (70, 56) if "patch14" in name else (64, 96)
    encoder, planar = (build_encoder(name, num_slices=slices, img_size=size, in_channels=2) for slices in (3, 1))
    weights = planar.model.state_dict()
    kernel = torch.zeros(*weights["patch_embed.proj.weight"].shape, 3)
    kernel[..., 1] = weights["patch_embed.proj.weight"]
    encoder.model.load_state_dict({**weights, "patch_embed.proj.weight": flatten_slices(kernel)})
    windows = torch.rand(2, 2, *size, 3)
    with torch.no_grad():
        for features, wanted in zip(encoder(windows), planar(windows[..., 1:2]), strict=True):
            assert_equal_to_scale(features, wanted)


@pytest.mark.numeric
@pytest.mark.parametrize("name", [TINY, TINY_SWIN, DINO, "beit_base_patch16_224"])
def test_only_the_last_map_is_normalized(name):
    encoder = build_encoder(name, in_channels=3, num_slices=1, img_size=112, depths=(1, 3))
    for parameter in encoder.model.norm.parameters():
        nn.init.uniform_(parameter)
    windows = torch.rand(1, 3, 112, 112, 1)
    image = encoder.prepare(windows)
    plain, normalized = (
        encoder.model.forward_intermediates(image, indices=[1, 3], norm=norm, intermediates_only=True)
        for norm in (False, True)
    )
    first, last = encoder(windows)
    assert torch.equal(first, plain[0])
    assert torch.equal(last, normalized[1])
    assert torch.equal(last, plain[1]) == (name == "beit_base_patch16_224")  # timm's BEiT normalizes for its head only


@pytest.mark.parametrize(("name", "decoder"), cover(list(TRANSFORMERS), list(DECODERS), everywhere=["unetr"]))
def test_every_pair_trains_a_step(name, decoder):
    net = build_segmenter(name, decoder, in_channels=2).train()
    before = {key: parameter.detach().clone() for key, parameter in net.named_parameters()}
    logits = net(torch.rand(2, 2, 60, 45, 3))
    assert logits.shape == (2, 3, 60, 45)
    loss = F.cross_entropy(logits, torch.randint(3, (2, 60, 45)))
    loss.backward()
    torch.optim.AdamW(net.parameters()).step()
    assert loss.isfinite()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert not torch.equal(parameter, before[key]) or not parameter.grad.any(), key
    assert net.encoder.model.patch_embed.proj.weight.grad.any()


@pytest.mark.parametrize(
    ("name", "size", "padded", "channels", "strides"),
    [
        (TINY, (60, 45), [64, 48], [192], [16]),
        (DINO, (60, 45), [70, 56], [384], [14]),
        (TINY_SWIN, (60, 65), [64, 96], [96, 192, 384, 768], [4, 8, 16, 32]),
        (TINY, 64, [64, 64], [192], [16]),
        (TINY, [5, 17], [16, 32], [192], [16]),
    ],
)
def test_maps_are_those_that_the_encoder_announces(name, size, padded, channels, strides):
    encoder = build_encoder(name, img_size=size)
    assert (encoder.padded_size, encoder.channels, encoder.strides) == (padded, channels, strides)
    with torch.no_grad():
        maps = encoder(torch.rand(1, 1, *encoder.img_size, 3))
    grids = [
        (1, count, padded[0] // stride, padded[1] // stride) for count, stride in zip(channels, strides, strict=True)
    ]
    assert [features.shape for features in maps] == grids


@pytest.mark.numeric
@each_decoder
def test_slices_are_padded_with_their_last_rows_and_columns(decoder):
    net, padded_net = build_segmenter(decoder=decoder), build_segmenter(decoder=decoder, img_size=(64, 48))
    padded_net.load_state_dict(net.state_dict(), strict=True)
    windows = torch.rand(1, 1, 60, 45, 3)
    rows, columns = torch.arange(64).clamp(max=59), torch.arange(48).clamp(max=44)
    with torch.no_grad():
        wanted = padded_net(windows[:, :, rows][:, :, :, columns])[..., :60, :45]
        assert_equal_to_scale(net(windows), wanted)


def test_all_slices_of_the_window_count():
    net = build_segmenter()
    windows = torch.rand(1, 1, 60, 45, 3, requires_grad=True)
    net(windows).square().sum().backward()
    assert windows.grad.abs().sum(dim=(0, 1, 2, 3)).all()


@pytest.mark.parametrize(("name", "depths"), [(TINY, (0, 2)), (TINY_SWIN, (0, 1)), ("beit_base_patch16_224", (1,))])
def test_what_comes_after_the_last_depth_is_not_built(name, depths):
    encoder, full = build_encoder(name, depths=depths), build_encoder(name)
    assert count_parameters(encoder) < count_parameters(full)
    assert not any(key.startswith(("norm.", "fc_norm.")) for key in encoder.model.state_dict())
    assert len(encoder(torch.rand(1, 1, 60, 45, 3))) == len(depths)
    planar = timm.create_model(name, **TRANSFORMERS[name]).state_dict()
    assert set(encoder.resize_planar(planar)) == set(encoder.model.state_dict())


def test_depths_can_be_chosen_for_a_decoder():
    assert build_segmenter(decoder="upernet", depths=(0, 1, 2, 3)).encoder.depths == [0, 1, 2, 3]
    assert build_segmenter(decoder="transposed", depths=[1]).encoder.depths == [1]
    assert build_segmenter(TINY_SWIN, "unetr", depths=[0, 2]).encoder.strides == [4, 16]


@pytest.mark.numeric
@pytest.mark.parametrize("name", [TINY, TINY_SWIN, "beit_base_patch16_224"])
def test_checkpointing_changes_memory_only(name):
    net = build_segmenter(name, "transposed").train()
    twin = build_segmenter(name, "transposed", use_checkpoint=True).train()
    twin.load_state_dict(net.state_dict())
    windows = torch.rand(2, 1, 60, 45, 3)
    for model in (net, twin):
        model(windows).square().sum().backward()
    # as one vector: of biases in front of a normalization the gradient is rounding alone
    found, wanted = (parameters_to_vector(p.grad for p in model.parameters()) for model in (twin, net))
    assert_equal_to_scale(found, wanted)


def test_drop_path_is_passed_on():
    net = build_segmenter(drop_path_rate=0.9, decoder="transposed")
    windows = torch.rand(4, 1, 60, 45, 3)
    assert torch.equal(net(windows), net(windows))
    assert not torch.equal(net.train()(windows), net(windows))


@pytest.mark.numeric
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # from comparing sizes
@pytest.mark.parametrize(("name", "decoder"), [(DINO, "unetr"), (TINY_SWIN, "upernet"), (TINY, "setr_pup")])
def test_traced_network_equals_the_eager_one(name, decoder):
    net = build_segmenter(name, decoder)
    traced = torch.jit.trace(net, torch.rand(2, 1, 60, 45, 3), check_trace=False)
    windows = torch.rand(3, 1, 60, 45, 3)
    with torch.no_grad():
        assert_equal_to_scale(traced(windows), net(windows))


# ---- fitting 2D checkpoints ----


def make_planar(name: str) -> dict[str, Tensor]:
    """Return a checkpoint of the size that timm pre-trained `name` at, with head; its values are random."""
    return timm.create_model(name, **TRANSFORMERS.get(name, {})).state_dict()


@pytest.mark.parametrize("size", [(60, 100), (130, 45)], ids=str)
@each_transformer
def test_checkpoint_is_fitted_as_timm_does_it(name, size):
    planar = make_planar(name)
    given = {key: tensor.clone() for key, tensor in planar.items()}
    encoder = build_encoder(name, img_size=size)
    fitted = encoder.resize_planar(planar)
    timms = timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": copy.copy(planar)},  # timm then loads these and nothing else
        img_size=tuple(encoder.padded_size),
        num_classes=0,
        **TRANSFORMERS[name],
    )
    assert set(fitted) == set(encoder.model.state_dict())
    for key, wanted in timms.state_dict().items():
        if key in fitted:
            assert torch.equal(fitted[key], wanted), key
    assert fitted["patch_embed.proj.weight"].shape[1] == 3
    assert all(torch.equal(tensor, planar[key]) for key, tensor in given.items())


@pytest.mark.numeric
def test_absolute_positions_are_resampled_bicubically():
    planar = make_planar(DINO)
    table = planar["pos_embed"]
    assert table.shape == (1, 1 + 37 * 37, 384)
    fitted = build_encoder(DINO, img_size=(112, 84)).resize_planar(planar)["pos_embed"]
    grid = table[:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    wanted = F.interpolate(grid, (8, 6), mode="bicubic", antialias=True).flatten(2).mT
    assert torch.equal(fitted[:, :1], table[:, :1])
    assert_equal_to_scale(fitted[:, 1:], wanted)


@pytest.mark.numeric
def test_relative_positions_are_resampled_at_growing_distances():
    name = "beit_base_patch16_224"
    planar, key = make_planar(name), "blocks.1.attn.relative_position_bias_table"
    fitted = build_encoder(name, img_size=(384, 320)).resize_planar(planar)[key].numpy()
    table = planar[key].numpy()

    def find_distances(largest: int) -> np.ndarray:
        low, high = 1.01, 1.5
        while high - low > 1e-6:
            ratio = (low + high) / 2
            low, high = (low, ratio) if (1 - ratio**13) / (1 - ratio) > largest else (ratio, high)
        steps = np.cumsum(ratio ** np.arange(13))
        return np.concatenate([-steps[::-1], [0], steps])

    def interpolate(values: np.ndarray, largest: int) -> np.ndarray:
        return np.interp(np.arange(-largest, largest + 1), find_distances(largest), values)

    planes = table[:-3].reshape(27, 27, 4)
    planes = np.apply_along_axis(interpolate, 0, planes, 23)  # 24 patches high
    planes = np.apply_along_axis(interpolate, 1, planes, 19)  # 20 patches wide
    assert fitted.shape == (47 * 39 + 3, 4)
    np.testing.assert_array_equal(fitted[-3:], table[-3:])  # those of the class token
    np.testing.assert_allclose(fitted[:-3], planes.reshape(-1, 4), atol=1e-4)


def test_half_precision_stays_half():
    planar = {key: tensor.half() for key, tensor in make_planar(TINY).items()}
    fitted = build_encoder().resize_planar(planar)
    assert {tensor.dtype for tensor in fitted.values()} == {torch.float16}
    assert fitted["pos_embed"].shape == (1, 1 + 4 * 3, 192)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        (TINY, lambda planar: planar | {"pos_embed": planar["pos_embed"][:, :-1]}),  # no square
        (TINY, lambda planar: planar | {"norm.weight": torch.ones(384)}),
        (
            TINY_SWIN,
            lambda planar: planar | {"layers.3.blocks.7.attn.relative_position_bias_table": torch.ones(169, 24)},
        ),
        ("hiera_tiny_224", lambda planar: planar),  # timm has no rule for its table
    ],
)
def test_checkpoint_that_cannot_be_fitted_is_refused(name, spoil):
    encoder = build_encoder(name, img_size=96)
    with pytest.raises(CheckpointError, match=f"2D weights for {name}: found .*; give a checkpoint of this timm model"):
        encoder.resize_planar(spoil(make_planar(name)))


# ---- bad input ----


@pytest.mark.parametrize("shape", [(1, 1, 60, 45, 5), (1, 1, 45, 60, 3), (1, 2, 60, 45, 3), (1, 1, 60, 45)], ids=str)
def test_windows_of_another_shape_are_refused(shape):
    with pytest.raises(ConfigValueError) as caught:
        build_segmenter(decoder="transposed")(torch.rand(shape))
    assert str(shape[1:]) in caught.value.found
    assert caught.value.wanted == "(1, 60, 45, 3)"
    assert "img_size" in caught.value.remedy


@pytest.mark.parametrize(
    ("arguments", "subject"),
    [
        ({"num_slices": 4}, "num_slices"),
        ({"num_slices": 0}, "num_slices"),
        ({"num_slices": -1}, "num_slices"),
        ({"in_channels": 0}, "in_channels"),
        ({"img_size": (64, 0)}, "img_size"),
        ({"img_size": (64, 64, 64)}, "img_size"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"depths": []}, "depths"),
        ({"depths": (0, 12)}, "depths"),
        ({"depths": (3, 1)}, "depths"),
        ({"depths": (-1,)}, "depths"),
        ({"options": {"dept": 4}}, "encoder vit_tiny_patch16_224"),
        ({"options": {"in_chans": 4}}, "encoder vit_tiny_patch16_224"),
        ({"options": {"img_size": 64}}, "encoder vit_tiny_patch16_224"),
        ({"options": {"pretrained": True}}, "encoder vit_tiny_patch16_224"),  # nothing is downloaded
        ({"name": "vit_tiny_patch16_224.nonsense"}, "encoder vit_tiny_patch16_224.nonsense"),
        ({"name": "hf-hub:timm/vit_tiny_patch16_224"}, "encoder"),
        ({"name": "resnet50"}, "encoder"),
        ({"name": "vit_small_r26_s32_224"}, "encoder"),  # a CNN in front of the patches
        ({"name": "pvt_v2_b0"}, "encoder pvt_v2_b0"),  # takes no img_size
    ],
    ids=str,
)
def test_values_that_do_not_fit_are_refused(arguments, subject):
    with pytest.raises(ConfigValueError) as caught:
        InflatedEncoder(**{"name": TINY} | arguments)
    assert caught.value.subject == subject


def test_misspelt_encoder_is_answered_with_the_nearest_names():
    with pytest.raises(ConfigValueError, match=r"'vit_smal_patch14_dinov2', .*; try vit_small_patch14_dinov2, "):
        InflatedSegmenter("vit_smal_patch14_dinov2")


def test_unknown_decoder_is_answered_with_the_known_ones():
    with pytest.raises(ConfigValueError, match="one of upernet, setr_pup, transposed, unetr"):
        InflatedSegmenter(decoder="fpn")


def test_depths_that_the_decoder_cannot_use_are_refused():
    with pytest.raises(ConfigValueError, match=r"depths: found 2 maps .* wanted 4 for upernet"):
        build_segmenter(decoder="upernet", depths=(1, 2))
