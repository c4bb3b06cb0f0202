# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from monai.data import MetaTensor, decollate_batch
from monai.transforms import Compose, Invertd, Resized
from torch import Tensor

from tools.errors import ConfigValueError
from tools.inference import SliceWindowInferer


def weigh(windows: Tensor) -> Tensor:
    """Stand in for a network: class 0 is the middle slice, class 1 sums the slices with weights 1, 10, 100, ..."""
    weights = 10.0 ** torch.arange(windows.shape[-1])
    middle = windows[:, 0, ..., windows.shape[-1] // 2]
    return torch.stack([middle, (windows[:, 0] * weights).sum(-1)], dim=1)


def test_every_slice_is_predicted_from_its_neighbours_in_their_order():
    volume = torch.arange(6.0).expand(1, 1, 2, 3, 6)
    logits = SliceWindowInferer(3, batch_size=4)(volume, weigh)
    assert logits.shape == (1, 2, 2, 3, 6)
    assert torch.equal(logits[:, 0], volume[:, 0])
    assert logits[0, 1, 0, 0].tolist() == [100, 210, 321, 432, 543, 554]  # the ends repeat their slice


@pytest.mark.numeric
@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_size_of_the_batch_does_not_matter(batch_size):
    volume = torch.rand(2, 1, 4, 5, 7)
    expected = SliceWindowInferer(5, batch_size=7)(volume, weigh)
    assert torch.equal(SliceWindowInferer(5, batch_size=batch_size)(volume, weigh), expected)
    assert not torch.equal(expected[0], expected[1])


@pytest.mark.parametrize("num_slices", [1, 3, 5, 9])
def test_a_volume_thinner_than_a_window_is_segmented(num_slices):
    volume = torch.rand(1, 2, 4, 4, 2)
    logits = SliceWindowInferer(num_slices)(volume, lambda windows: windows[..., num_slices // 2])
    assert torch.equal(logits, volume)


def test_the_network_never_sees_more_than_one_batch_of_windows():
    seen: list[tuple[int, ...]] = []

    def record(windows: Tensor) -> Tensor:
        seen.append(tuple(windows.shape))
        return windows[..., 0]

    SliceWindowInferer(5, batch_size=4)(torch.rand(1, 3, 8, 6, 10), record)
    assert seen == [(4, 3, 8, 6, 5), (4, 3, 8, 6, 5), (2, 3, 8, 6, 5)]


def test_the_header_of_the_volume_is_kept_so_that_transforms_can_be_inverted():
    image = torch.rand(1, 8, 6, 5)
    resize = Compose([Resized(keys="image", spatial_size=[4, 12, -1])])
    data = resize({"image": MetaTensor(image)})
    logits = SliceWindowInferer(3)(data["image"][None], lambda windows: windows[..., 1])
    data["pred"] = decollate_batch(logits)[0]
    inverted = Invertd(keys="pred", transform=resize, orig_keys="image", nearest_interp=False)(data)["pred"]
    assert inverted.shape == image.shape


def test_arguments_reach_the_network():
    volume = torch.rand(1, 1, 2, 2, 3)
    logits = SliceWindowInferer(1)(volume, lambda windows, plus, times: (windows[..., 0] + plus) * times, 1, times=2)
    assert torch.allclose(logits, (volume + 1) * 2)


def test_logits_can_be_collected_elsewhere():
    logits = SliceWindowInferer(1, output_device="meta")(torch.rand(1, 1, 2, 2, 3), lambda windows: windows[..., 0])
    assert logits.device.type == "meta"


@pytest.mark.parametrize("num_slices", [0, 2, -1, 4])
def test_an_even_number_of_slices_has_no_middle(num_slices):
    with pytest.raises(ConfigValueError, match=f"num_slices: found {num_slices}, wanted an odd number"):
        SliceWindowInferer(num_slices)


def test_an_empty_batch_is_refused():
    with pytest.raises(ConfigValueError, match="batch_size"):
        SliceWindowInferer(3, batch_size=0)
    with pytest.raises(ConfigValueError, match="at least one slice"):
        SliceWindowInferer(3)(torch.rand(1, 1, 2, 2, 0), weigh)


MEASURE = """
import torch
from tools.hardware import measure_peak_memory_gb
from tools.inference import SliceWindowInferer
for depth in (120, 520):
    volume = torch.zeros(1, 1, 256, 256, depth)
    SliceWindowInferer(5, batch_size=4)(volume, lambda windows: windows[..., 2].repeat(1, 3, 1, 1))
    print(measure_peak_memory_gb(torch.device("cpu")))
"""


@pytest.mark.exhaustive  # a process of its own imports everything for 10 s
@pytest.mark.costs(processes=1)  # a fork would find room in the heap of the process that tests
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell the peak of a process this way")
def test_memory_grows_with_the_volume_and_its_logits_only():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, check=True)
    short_gb, long_gb = map(float, done.stdout.split())
    slice_gb = 256 * 256 * (1 + 3) * 4 / 1e9  # an image, three logits
    assert 0.9 * 400 * slice_gb < long_gb - short_gb < 1.1 * 400 * slice_gb
