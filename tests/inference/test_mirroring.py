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


def test_a_network_that_tells_sides_apart_still_does_with_mirroring():
    """It calls what lies in one half of an axis 1 and what lies in the other 2, as one trained with exchange does."""

    def tell_sides(volumes: torch.Tensor) -> torch.Tensor:
        half = torch.arange(volumes.shape[2]).reshape(-1, 1, 1) < volumes.shape[2] // 2
        return torch.cat([1 - volumes, volumes * ~half, volumes * half], dim=1)

    volume = torch.rand(1, 1, 6, 3, 4)
    plain = tell_sides(volume)
    torch.testing.assert_close(MirroringInferer(SimpleInferer(), [0], [0, 2, 1])(volume, tell_sides), plain)
    kept = MirroringInferer(SimpleInferer(), [0])(volume, tell_sides)
    torch.testing.assert_close(kept[:, 1], kept[:, 2])  # right cannot be told from left any more
    # a turn by two axes leaves right on the right of the patient: classes stay
    parts = [plain, plain, tell_sides(volume.flip(3)).flip(3)[:, [0, 2, 1]], tell_sides(volume.flip(2, 3)).flip(2, 3)]
    turned = MirroringInferer(SimpleInferer(), [0, 1], [0, 2, 1])(volume, tell_sides)
    torch.testing.assert_close(turned, sum(parts) / 4)
