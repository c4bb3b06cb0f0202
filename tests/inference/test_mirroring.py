# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from comparisons import assert_equal_to_scale
from monai.data import MetaTensor
from monai.inferers import SimpleInferer

from tools.errors import ConfigValueError
from tools.inference import MirroringInferer

RAMP = torch.arange(24.0).reshape(2, 3, 4)


def weigh(volumes: torch.Tensor) -> torch.Tensor:
    """Stand in for a network that knows where it is: voxels times their position."""
    return volumes * RAMP


@pytest.mark.numeric
@pytest.mark.parametrize(("axes", "passes"), [([], 1), ([0], 2), ([1, 2], 4), ([0, 1, 2], 8)])
def test_the_mean_over_all_mirror_images_is_returned(axes, passes):
    calls = []
    volume = torch.rand(1, 1, 2, 3, 4)
    logits = MirroringInferer(SimpleInferer(), axes)(volume, lambda v: (calls.append(1), weigh(v))[1])
    position = RAMP
    for axis in axes:
        position = (position + position.flip(axis)) / 2
    assert_equal_to_scale(logits, volume * position)
    assert len(calls) == passes


def test_without_it_there_is_one_pass_and_nothing_changes():
    volume = torch.rand(1, 1, 2, 3, 4)
    assert torch.equal(MirroringInferer(SimpleInferer(), [0, 1], enabled=False)(volume, weigh), weigh(volume))


@pytest.mark.parametrize("enabled", [True, False])
def test_the_header_of_the_volume_is_kept(enabled):
    affine = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    logits = MirroringInferer(SimpleInferer(), enabled=enabled)(MetaTensor(torch.rand(1, 1, 2, 3, 4), affine), weigh)
    assert torch.equal(logits.affine, affine)


@pytest.mark.parametrize("axes", [[0, 0], [3], [-1]])
def test_axes_that_a_volume_has_not_are_refused(axes):
    with pytest.raises(ConfigValueError, match="mirror_axes"):
        MirroringInferer(SimpleInferer(), axes)
