# SPDX-License-Identifier: Apache-2.0
"""Operations are counted as published, whatever the network and however its attention is computed."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tools.flops import FlopCount, count_flops, tabulate, tabulate_segmenter
from tools.networks import InflatedSegmenter

WIDTH, MLP, DEPTH, SIZE, PATCH = 24, 96, 2, 32, 8
PLAIN = {
    "img_size": SIZE,
    "patch_size": PATCH,
    "in_chans": 1,
    "num_classes": 0,
    "global_pool": "",
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": 3,
}
PATCHES = (SIZE // PATCH) ** 2
EMBEDDING = PATCHES * WIDTH * PATCH**2  # one input channel


class Encoder(nn.Module):
    """The outputs of all blocks, without final norm and head, as a decoder takes them."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return self.transformer.forward_intermediates(image, intermediates_only=True)


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lateral = nn.Conv2d(6, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 5, 2, stride=2)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return self.up(self.norm(self.lateral(torch.cat(maps, 1))))


def count_block(tokens: int, products: int) -> tuple[int, int]:
    """Return multiply-adds of a plain block, and its LayerNorm and element-wise outputs."""
    linear = tokens * (4 * WIDTH**2 + 2 * WIDTH * MLP)
    return linear + 2 * tokens**2 * WIDTH, (2 + products) * tokens * WIDTH


def count_twice(macs: int, outputs: int) -> FlopCount:
    return FlopCount(2 * macs, 2 * (macs + outputs))


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "swin":
        return SwinTransformer(
            img_size=SIZE,
            patch_size=4,
            in_chans=1,
            num_classes=0,
            global_pool="",
            embed_dim=8,
            depths=(2, 2),
            num_heads=(1, 2),
            window_size=4,
        )
    if name == "beit":
        return Encoder(Beit(**PLAIN, init_values=0.1, use_rel_pos_bias=True, use_abs_pos_emb=False))
    if name == "dinov2":
        return VisionTransformer(**PLAIN, init_values=1e-5, reg_tokens=4, no_embed_class=True)
    return VisionTransformer(**PLAIN)


# ---- the published numbers


@pytest.mark.parametrize(
    ("num_slices", "matmul", "published"),
    [(1, 213_248_937_984, 213_343_401_984), (5, 214_859_550_720, 214_954_014_720)],
)
@pytest.mark.parametrize("fused", [True, False])
def test_the_encoder_of_the_publication_has_its_published_numbers(num_slices, matmul, published, fused):
    with torch.device("meta"):
        transformer = timm.create_model("beit_base_patch16_224", img_size=512, in_chans=num_slices, num_classes=0)
        image = torch.empty(1, num_slices, 512, 512)
    for block in transformer.blocks:
        block.attn.fused_attn = fused
    assert count_flops(Encoder(transformer), image) == FlopCount(matmul, published)


# ---- other families, against closed forms


def count_expected(name: str) -> FlopCount:
    if name == "swin":
        # 8 x 8 tokens in 4 windows of 16, then 4 x 4 in one window; twice two blocks, the first of a stage unshifted
        macs, outputs = 64 * 8 * 16, 64 * 8  # embedding of 4 x 4 pixels, and its norm
        for tokens, width in ((64, 8), (16, 16)):
            macs += 2 * (12 * tokens * width**2 + 2 * tokens * 16 * width)
            outputs += 2 * 3 * tokens * width  # two norms and q times its scale
        macs, outputs = macs + 16 * 32 * 16, outputs + 16 * 32  # merging of 2 x 2 tokens
        return count_twice(macs, outputs + 16 * 16)  # last norm
    tokens = PATCHES + {"beit": 1, "dinov2": 5, "vit": 1}[name]
    macs, outputs = count_block(tokens, products=1 if name == "vit" else 3)
    last_norm = 0 if name == "beit" else tokens * WIDTH
    return count_twice(EMBEDDING + DEPTH * macs, DEPTH * outputs + last_norm)


@pytest.mark.parametrize("name", ["beit", "vit", "dinov2", "swin"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_family_has_the_number_of_its_closed_form(name, fused, device):
    network = make(name).to(device)
    attentions = [module for module in network.modules() if hasattr(module, "fused_attn")]
    assert len(attentions) == (4 if name == "swin" else DEPTH)
    for attention in attentions:
        attention.fused_attn = fused
    assert count_flops(network, torch.zeros(1, 1, SIZE, SIZE, device=device)) == count_expected(name)


def test_the_attention_of_pytorch_is_counted_with_its_scaling():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)

    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.attention(tokens, tokens, tokens, need_weights=False)[0]

    assert count_flops(SelfAttention(), torch.zeros(1, 10, 8)) == count_twice(4 * 10 * 64 + 2 * 100 * 8, 80)


# ---- what is counted


class Apply(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.function(tokens)


@pytest.mark.parametrize(
    ("function", "outputs"),
    [
        (lambda x: 2 * x, 12),
        (lambda x: x * torch.ones(5, 1, 1), 60),  # of the product, not of its factors
        (lambda x: x.mul_(2), 12),
        (lambda x: torch.multiply(x, x), 12),
        (lambda x: x + x / 2, 0),
        (lambda x: x.long() * 2, 0),  # an index
        (nn.LayerNorm(4), 12),
        (nn.LayerNorm(4, bias=False), 12),
        (nn.LayerNorm(4, elementwise_affine=False), 0),
        (nn.GELU(), 0),
    ],
    ids=["scalar", "broadcast", "in place", "function", "sum", "integers", "norm", "no bias", "not affine", "GELU"],
)
def test_elementwise_outputs_are_counted_if_they_are_products_or_affine_norms(function, outputs):
    assert count_flops(Apply(function), torch.zeros(3, 4)) == FlopCount(0, 2 * outputs)


def test_only_modules_that_run_are_counted():
    network = Apply(nn.Linear(4, 4))
    network.unused = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 400))
    assert count_flops(network, torch.zeros(3, 4)) == FlopCount(96, 96)


def test_the_network_is_left_as_it_was():
    network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    network[2].eval()  # frozen
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    count_flops(network, torch.ones(3, 4))
    assert [module.training for module in network.modules()] == [True, True, True, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network[0].weight.requires_grad

    with pytest.raises(RuntimeError):
        count_flops(network, torch.ones(3, 5))
    assert [module.training for module in network.modules()] == [True, True, True, False]


# ---- the table


def test_parts_of_a_network_are_rows_of_a_table():
    encoder, decoder = nn.Linear(6, 6), Pyramid()
    maps = [torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)]
    lines = tabulate({"encoder": (encoder, torch.zeros(7, 6)), "decoder": (decoder, maps)}).splitlines()
    assert lines[0].split("  ")[0] == "part"
    assert [line.split() for line in lines[2:]] == [
        ["encoder", "42", "504", "504"],
        ["decoder", str(28 + 8 + 85), str(2 * 64 * (24 + 80)), str(2 * 64 * (24 + 80))],
    ]


def test_the_encoder_of_the_bundle_has_the_published_operations():
    """Zhang et al., ML4H 2022: 213,343,401,984 for one slice of 512 x 512 pixels, 214,954,014,720 for five."""
    counts = {}
    for depth in (1, 5):
        with torch.device("meta"):
            network = InflatedSegmenter("beit_base_patch16_224", "upernet", 1, 14, 512, depth)
            windows = torch.empty(1, 1, 512, 512, depth)
        counts[depth] = count_flops(network.encoder, windows)
        assert count_flops(network, windows).matmul > 1.2 * counts[depth].matmul
    assert counts == {
        1: FlopCount(matmul=213_248_937_984, published=213_343_401_984),
        5: FlopCount(matmul=214_859_550_720, published=214_954_014_720),
    }


def test_the_table_of_a_segmenter_has_encoder_and_whole_for_one_slice_and_for_the_window():
    table = tabulate_segmenter("vit_tiny_patch16_224", "unetr", 32, 3)
    names = ["vit_tiny_patch16_224, 1 slice", "vit_tiny_patch16_224 + unetr, 1 slice"]
    names += ["vit_tiny_patch16_224, 3 slices", "vit_tiny_patch16_224 + unetr, 3 slices"]
    assert all(any(line.startswith(f"{name} ") for line in table.splitlines()) for name in names)
