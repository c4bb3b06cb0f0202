# SPDX-License-Identifier: Apache-2.0
"""Crops are turned as torch.rot90 does, and boxes cut out of them within their budget."""

from __future__ import annotations

import math

import pytest
import torch
from comparisons import assert_equal_to_scale
from monai.data import MetaTensor
from torch import Tensor

from tools.errors import ConfigValueError
from tools.pretraining import ProxyTasks, find_turn_axis
from tools.pretraining.proxy_tasks import draw_boxes, list_voxels

SHAPE = (32, 32, 32)


def make_crops(count: int = 3, shape: tuple[int, ...] = SHAPE, channels: int = 1) -> Tensor:
    """Return crops whose voxels all differ, below 0, so that noise from 0 to 1 stands out."""
    size = count * channels * math.prod(shape)
    values = -torch.randperm(size, generator=torch.Generator().manual_seed(0)) - 1
    return values.float().view(count, channels, *shape) / size


@pytest.mark.parametrize(("axis", "plane"), [(0, (2, 3)), (1, (1, 3)), (2, (1, 2))])
def test_each_view_is_turned_by_the_quarter_turns_of_its_label(axis, plane):
    crops = make_crops(8)
    views, target = ProxyTasks(SHAPE, axis, cutout=0, swap=0, seed=0)({"image": MetaTensor(crops)})
    assert type(views) is Tensor
    assert set(target["rotation"].tolist()) == {0, 1, 2, 3}
    assert target["rotation"].dtype == torch.long
    for number, (view, turn) in enumerate(zip(views, target["rotation"].tolist(), strict=True)):
        assert torch.equal(view, torch.rot90(crops[number % 8], turn, plane))  # dimensions of C, X, Y, Z
    assert torch.equal(target["reconstruction"], views)
    assert not target["mask"].any()


def test_a_quarter_turn_by_hand():
    crop = torch.arange(4.0).view(1, 1, 1, 2, 2)  # rows along Y, columns along Z
    _, target = ProxyTasks((1, 2, 2), turns=[1], cutout=0, swap=0)({"image": crop})
    assert target["reconstruction"][0, 0, 0].tolist() == [[1.0, 3.0], [0.0, 2.0]]


def test_crops_are_not_turned_when_there_is_no_turn_to_choose():
    crops = make_crops()
    _, target = ProxyTasks((32, 16, 8), turns=())({"image": crops})
    assert "rotation" not in target
    assert torch.equal(target["reconstruction"], torch.cat([crops, crops]))


@pytest.mark.parametrize(
    ("roi_size", "axis"),
    [((96, 96, 96), 0), ((64, 32, 32), 0), ((128, 128, 32), 2), ((32, 64, 32), 1), ((32, 64, 96), 0)],
    ids=str,
)
def test_crops_are_turned_about_x_unless_another_axis_keeps_their_shape(roi_size, axis):
    assert find_turn_axis(roi_size) == axis
    if len(set(roi_size)) < 3:
        assert (
            len(
                {
                    torch.rot90(torch.zeros(roi_size), turn, [a for a in range(3) if a != axis]).shape
                    for turn in range(4)
                }
            )
            == 1
        )
        ProxyTasks(roi_size, axis)


def test_a_crop_that_is_not_square_gets_half_turns_only():
    crops = make_crops(8, (20, 24, 28))
    _, target = ProxyTasks((20, 24, 28), turns=(0, 2), cutout=0, swap=0, seed=0)({"image": crops})
    assert set(target["rotation"].tolist()) == {0, 2}
    turned = target["rotation"] == 2
    clean = torch.cat([crops, crops])
    assert torch.equal(target["reconstruction"][turned], clean[turned].flip(3, 4))
    assert torch.equal(target["reconstruction"][~turned], clean[~turned])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"roi_size": (96, 96, 64)}, "found 96×96×64, wanted the same along Y and Z .* set --turn_axis 2 or --turns"),
        ({"roi_size": (32, 64, 96), "axis": 2}, r"along X and Y .* change it, set --turns \[0,2\]"),
        ({"axis": 3}, "turn_axis: found 3"),
        ({"turns": (0, 4)}, r"turns: found \[0, 4\]"),
        ({"cutout": -0.1}, r"cutout: found -0\.1"),
        ({"swap": 30}, "swap: found 30"),
        ({"fill_range": "hu"}, "fill_range: found 'hu'"),
    ],
)
def test_values_that_do_not_fit_are_told(changes, words):
    with pytest.raises(ConfigValueError, match=words):
        ProxyTasks(**({"roi_size": 96} | changes))


@pytest.mark.parametrize(("cutout", "swap"), [(0.3, 0.0), (0.3, 0.3), (0.0, 0.3), (0.1, 0.0)])
def test_the_removed_volume_stays_within_its_budget_and_the_rest_is_untouched(cutout, swap):
    shares = []
    for seed in range(8):
        views, target = ProxyTasks(SHAPE, cutout=cutout, swap=swap, seed=seed)({"image": make_crops(4)})
        mask, clean = target["mask"], target["reconstruction"]
        assert torch.equal(views[~mask], clean[~mask])
        if not swap:  # else a crop may get back what another one had from it
            assert torch.equal(views != clean, mask)
        shares += mask.flatten(1).float().mean(1).tolist()
    assert max(shares) <= cutout + swap
    assert max(shares) > 0.6 * (cutout + swap) * (0.75 if cutout and swap else 1)  # boxes overlap
    assert min(shares) < 0.1 * (cutout + swap) + 0.02


def test_boxes_fill_their_budget_with_the_edges_of_the_published_code():
    torch.manual_seed(0)
    shape = (96, 96, 64)
    budgets = torch.tensor([0, 1, 5000, 90_000] + [int(0.3 * math.prod(shape))] * 20)
    boxes = draw_boxes(budgets, shape)
    volume = torch.zeros_like(budgets).index_add(0, boxes.sample, boxes.edge.prod(1))
    assert bool((volume <= budgets).all())
    assert bool((budgets - volume < 24 * 16).all())  # less than a layer of a box
    assert bool((boxes.start >= 0).all())
    assert bool((boxes.start + boxes.edge <= torch.tensor(shape)).all())
    assert boxes.edge.amax(0).tolist() == [23, 23, 15]  # 4 to 23 of 96 voxels, 3 to 15 of 64
    assert boxes.edge[:, 1:].amin(0).tolist() == [4, 3]
    assert boxes.start.amax(0).tolist() == [91, 91, 60]
    assert boxes.start.amin(0).tolist() == [0, 0, 0]


def test_a_budget_that_takes_many_boxes_is_reached():
    volume = draw_boxes(torch.tensor([8 * 32**3]), SHAPE).edge.prod(1)  # more boxes than are drawn at a time
    assert len(volume) > 192
    assert 8 * 32**3 - 49 < int(volume.sum()) <= 8 * 32**3


def test_voxels_of_boxes_are_listed_as_slices_would():
    torch.manual_seed(0)
    shape = (20, 24, 28)
    boxes = draw_boxes(torch.tensor([500, 0, 900]), shape)
    sample, place, box = list_voxels(boxes, shape)
    found = torch.full((3, math.prod(shape)), -1)
    for number in range(len(boxes.sample)):
        here = box == number
        found[sample[here], place[here]] = number
    expected = torch.full((3, *shape), -1)
    for number, (crop, (x, y, z), (a, b, c)) in enumerate(zip(*(part.tolist() for part in boxes), strict=True)):
        expected[crop, x : x + a, y : y + b, z : z + c] = number
    assert torch.equal(found.view(expected.shape), expected)


def test_noise_of_each_box_goes_from_0_to_1():
    torch.manual_seed(0)
    views, target = ProxyTasks(SHAPE, turns=(), swap=0, cutout=0.3)({"image": make_crops(8, channels=2)})
    noise = views[target["mask"].expand_as(views)]
    assert float(noise.min()) == 0
    assert float(noise.max()) == 1
    assert 0.4 < float(noise.mean()) < 0.6
    assert bool(torch.isfinite(views).all())  # boxes of one voxel included


@pytest.mark.numeric
def test_noise_can_have_the_range_of_the_crop_in_each_channel():
    crops = make_crops(2, channels=2)
    crops[1, 1] = 1000 * crops[1, 1] - 7
    views, target = ProxyTasks(SHAPE, swap=0, fill_range="crop", seed=4)({"image": crops})
    for view, clean in zip(views.flatten(0, 1), target["reconstruction"].flatten(0, 1), strict=True):
        assert_equal_to_scale(torch.stack(view.aminmax()), torch.stack(clean.aminmax()))
    torch.testing.assert_close(views[3, 1].mean(), crops[1, 1].mean(), rtol=0.1, atol=0)


def test_pieces_come_from_the_same_place_of_another_crop_of_the_same_view():
    crops = make_crops(4)
    views, target = ProxyTasks(SHAPE, cutout=0, swap=0.3, seed=2)({"image": crops})
    clean, mask = target["reconstruction"], target["mask"]
    sources = set()
    for number in range(8):
        here = mask[number]
        if not here.any():
            continue
        half = range(4 * (number // 4), 4 * (number // 4) + 4)
        # an earlier crop of the batch has its pieces already, a later one is still clean
        found = [o for o in half if torch.equal((views if o < number else clean)[o][here], views[number][here])]
        assert len(found) == 1
        assert found != [number]
        sources |= {(number, found[0])}
    assert len(sources) >= 4


def test_a_crop_that_draws_itself_gets_no_pieces():
    swapped = []
    for seed in range(40):
        _, target = ProxyTasks(16, cutout=0, swap=0.3, seed=seed)({"image": make_crops(2, (16, 16, 16))})
        swapped += target["mask"].flatten(1).any(1).tolist()
    assert 0.35 < sum(swapped) / len(swapped) < 0.65  # 1 - 1 / 2


def test_a_batch_of_one_has_noise_and_no_pieces():
    crops = make_crops(1)
    views, target = ProxyTasks(SHAPE, swap=1.0, seed=1)({"image": crops})
    assert views.shape == (2, 1, *SHAPE)
    assert 0 < float(target["mask"].float().mean()) <= 0.3
    assert float(views[target["mask"]].min()) >= 0  # the crop is below
    views, target = ProxyTasks(SHAPE, cutout=0, swap=1.0)({"image": crops})
    assert torch.equal(views, target["reconstruction"])


def test_the_global_seed_decides_in_training():
    tasks, batch = ProxyTasks(SHAPE), {"image": make_crops()}
    torch.manual_seed(5)
    first, second = tasks(batch)[0], tasks(batch)[0]
    torch.manual_seed(5)
    assert torch.equal(tasks(batch)[0], first)
    assert not torch.equal(first, second)


def test_with_a_seed_of_its_own_a_batch_is_corrupted_in_the_same_way_and_no_generator_disturbed():
    batch, other = {"image": make_crops()}, {"image": make_crops().flip(0)}
    tasks = ProxyTasks(SHAPE, seed=0)
    first, target = tasks(batch)
    state = torch.get_rng_state()
    tasks(other)
    again, target_again = tasks(batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert all(torch.equal(target[key], target_again[key]) for key in target)
    assert not torch.equal(tasks(other)[1]["mask"], target["mask"])  # another batch, other boxes
    assert not torch.equal(ProxyTasks(SHAPE, seed=1)(batch)[1]["mask"], target["mask"])


def test_crops_given_are_not_changed_and_arguments_of_the_engine_are_followed():
    crops = make_crops()
    before = crops.clone()
    views, target = ProxyTasks(SHAPE)({"image": crops}, torch.device("cpu"), True, dtype=torch.float64)
    assert views.dtype == target["reconstruction"].dtype == torch.float64
    assert torch.equal(crops, before)
    views, _ = ProxyTasks(SHAPE)({"image": crops}, dtype=torch.bfloat16)
    assert views.dtype == torch.bfloat16
