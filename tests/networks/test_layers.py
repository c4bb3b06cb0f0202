# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tools.networks.layers import NORMS, PyramidPooling, build_norm, build_skip, describe_norm, resize


@pytest.mark.parametrize(
    ("channels", "groups"), [(4, 1), (8, 1), (16, 2), (24, 3), (31, 1), (100, 10), (256, 32), (384, 32), (768, 32)]
)
def test_groups_have_eight_channels_or_more(channels, groups):
    assert describe_norm("group", channels) == ("group", {"num_groups": groups})
    assert channels % groups == 0


@pytest.mark.parametrize(("norm", "kind"), zip(NORMS, (nn.GroupNorm, nn.BatchNorm2d, nn.InstanceNorm2d), strict=True))
def test_norm_is_the_one_that_was_named(norm, kind):
    assert type(build_norm(norm, 16)) is kind


@pytest.mark.parametrize("norm", NORMS)
def test_pooling_trains_with_a_batch_of_one(norm):
    pooling = PyramidPooling(8, 8, norm).train()
    features = torch.rand(1, 8, 5, 3, requires_grad=True)
    joined = pooling(features)
    assert joined.shape == (1, 8, 5, 3)
    joined.square().sum().backward()
    for name, parameter in pooling.named_parameters():
        assert parameter.grad.any(), name


@pytest.mark.numeric
@pytest.mark.parametrize("size", [(7, 4), (1, 1), (6, 12)])
def test_branches_are_means_over_one_to_six_cells(size):
    pooling, features = PyramidPooling(8, 4, "group").eval(), torch.rand(2, 8, *size)
    for branch, scale in zip(pooling.branches, (1, 2, 3, 6), strict=True):
        assert torch.equal(branch[1:](F.adaptive_avg_pool2d(features, scale)), branch(features))
        assert branch(features).shape == (2, 4, scale, scale)
    assert pooling(features).shape == (2, 4, *size)


@pytest.mark.parametrize("doublings", [0, 1, 3])
def test_skip_is_as_large_as_the_level_it_joins(doublings):
    skip = build_skip(12, 8, doublings, "group")
    assert skip(torch.rand(1, 12, 3, 2)).shape == (1, 8, 3 * 2**doublings, 2 * 2**doublings)


def test_resizing_keeps_what_has_the_size():
    features = torch.rand(1, 2, 3, 4)
    assert resize(features, (3, 4)) is features
    assert torch.equal(resize(features, (6, 2)), F.interpolate(features, (6, 2), mode="bilinear"))
