# SPDX-License-Identifier: Apache-2.0
"""Crops are those of the volume, and their overlap is what counting voxels gives."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from tools.errors import ConfigValueError
from tools.pretraining import VolumeCrops
from tools.pretraining.volume_crops import compute_constant_retrieval, compute_overlap, take_crops

SIZE, GRID = (4, 4, 6), (3, 3, 1)
PLAIN = {"flip_prob": 0.0, "turn_prob": 0.0, "shift_prob": 0.0}


def make_volumes(count: int = 2, shape: tuple[int, ...] = (12, 12, 6), channels: int = 1) -> Tensor:
    """Return volumes whose voxels all differ."""
    return torch.arange(count * channels * torch.Size(shape).numel()).float().view(count, channels, *shape)


def count_voxels(start: Tensor, size: tuple[int, ...], grid: tuple[int, ...]) -> Tensor:
    """Count the voxels of a crop in each base crop, written into a volume as their numbers."""
    numbers = torch.arange(torch.Size(grid).numel()).view(grid)
    for axis in range(3):
        numbers = numbers.repeat_interleave(size[axis], dim=axis)
    inside = numbers[tuple(slice(int(first), int(first) + edge) for first, edge in zip(start, size, strict=True))]
    return torch.bincount(inside.flatten(), minlength=torch.Size(grid).numel()) / inside.numel()


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("size", "grid"),
    [((64, 64, 64), (3, 3, 1)), ((96, 96, 96), (4, 4, 1)), ((5, 7, 6), (3, 3, 2)), ((8, 9, 7), (1, 2, 4))],
)
def test_overlap_is_the_share_of_voxels_that_are_in_a_base_crop(size, grid):
    torch.manual_seed(0)
    ends = torch.tensor([edge * (count - 1) for edge, count in zip(size, grid, strict=True)])
    starts = (torch.rand(1000, 3) * (ends + 1)).long()
    starts[:2] = torch.stack([torch.zeros_like(ends), ends])  # the corners
    overlap = compute_overlap(starts.view(250, 4, 3), size, grid)
    assert overlap.dtype == torch.float32
    overlap = overlap.flatten(0, 1)
    torch.testing.assert_close(overlap.double().sum(1), torch.ones(1000, dtype=torch.double), rtol=0, atol=1e-6)
    few = torch.arange(1000 if min(size) < 64 else 8)  # counting takes long in large crops
    expected = torch.stack([count_voxels(starts[index], size, grid) for index in few])
    torch.testing.assert_close(overlap[few], expected, rtol=0, atol=1e-6)
    areas = torch.tensor([[compute_areas(start, size, grid)] for start in starts.tolist()]).flatten(1)
    torch.testing.assert_close(overlap, areas, rtol=0, atol=1e-6)


def compute_areas(start: list[int], size: tuple[int, ...], grid: tuple[int, ...]) -> list[float]:
    """Intersect a crop with one base crop after the other, by their first and last voxels."""
    shares = []
    for base in torch.cartesian_prod(*(torch.arange(count) for count in grid)).tolist():
        share = 1.0
        for first, edge, place in zip(start, size, base, strict=True):
            share *= max(0, min(first + edge, (place + 1) * edge) - max(first, place * edge)) / edge
        shares.append(share)
    return shares


@pytest.mark.parametrize("grid", [(3, 3, 1), (2, 3, 2)])
def test_a_crop_on_a_base_crop_overlaps_with_it_alone(grid):
    size = (8, 8, 4)
    places = torch.cartesian_prod(*(edge * torch.arange(count) for edge, count in zip(size, grid, strict=True)))
    assert torch.equal(compute_overlap(places[None], size, grid)[0], torch.eye(len(places)))


@pytest.mark.parametrize(("size", "grid"), [(SIZE, GRID), ((4, 4, 2), (2, 3, 3))])
def test_crops_are_pieces_of_the_volume_at_the_places_of_their_overlap(size, grid):
    volumes = make_volumes(3, tuple(a * b for a, b in zip(size, grid, strict=True)), channels=2)
    crops = VolumeCrops(size, grid, num_crops=5, seed=0, **PLAIN)
    views, overlap = crops({"image": MetaTensor(volumes)})
    count = torch.Size(grid).numel()
    assert type(views["base"]) is type(views["random"]) is type(overlap) is Tensor
    assert views["base"].shape == (3, count, 2, *size)
    assert views["random"].shape == (3, 5, 2, *size)
    assert overlap.shape == (3, 5, count)
    places = torch.cartesian_prod(*(edge * torch.arange(number) for edge, number in zip(size, grid, strict=True)))
    for number, (x, y, z) in enumerate(places.tolist()):
        expected = volumes[:, :, x : x + size[0], y : y + size[1], z : z + size[2]]
        assert torch.equal(views["base"][:, number], expected)
    for case in range(3):
        for sample in range(5):
            crop = views["random"][case, sample]
            start = (volumes[case, 0] == crop[0, 0, 0, 0]).nonzero()[0]  # all voxels differ
            x, y, z = start.tolist()
            assert torch.equal(crop, volumes[case, :, x : x + size[0], y : y + size[1], z : z + size[2]])
            torch.testing.assert_close(overlap[case, sample], count_voxels(start, size, grid))


def test_random_crops_are_everywhere_and_both_ends_are_as_likely():
    crops = VolumeCrops(SIZE, GRID, num_crops=3000, seed=1, **PLAIN)
    starts = crops._draw_starts(1, torch.device("cpu"), torch.Generator().manual_seed(0))[0]
    for axis in (0, 1):
        counts = torch.bincount(starts[:, axis])
        assert len(counts) == 9  # 12 - 4 + 1
        assert counts.min() > 250
        assert counts.max() < 420
    assert not starts[:, 2].any()


@pytest.mark.parametrize(
    ("grid", "share"), [((3, 3, 1), 1 / 4), ((4, 4, 1), 1 / 9), ((2, 2, 2), 1 / 8), ((1, 5, 1), 1 / 4)]
)
def test_one_base_crop_is_nearest_more_often_than_one_of_all_would_be(grid, share):
    assert compute_constant_retrieval(grid) == pytest.approx(share)
    crops = VolumeCrops(64, grid, num_crops=20_000)
    starts = crops._draw_starts(1, torch.device("cpu"), torch.Generator().manual_seed(0))
    nearest = torch.bincount(compute_overlap(starts, (64, 64, 64), grid)[0].argmax(1))
    assert float(nearest.max() / nearest.sum()) == pytest.approx(share, rel=0.15)


@pytest.mark.numeric
def test_each_crop_is_flipped_turned_and_shifted_by_itself():
    shape = (4, 4, 4)
    volume = make_volumes(1, (4, 8, 4))
    crops = VolumeCrops(
        shape, (1, 2, 1), num_crops=400, flip_prob=0.5, turn_prob=0.5, shift=0.1, shift_prob=0.5, seed=0
    )
    views, overlap = crops({"image": volume})
    kinds, shifts = [], []
    forms = []
    for flips in range(8):
        axes = [axis for axis in range(3) if flips >> axis & 1]
        forms += [(flips, turn, axes) for turn in range(4)]
    for crop, shares in zip(views["random"][0], overlap[0], strict=True):
        start = round(4 * float(shares[1]))
        original = volume[0, 0, :, start : start + 4]
        candidates = {
            (flips, turn): crop[0] - torch.rot90(original.flip(axes), turn, (0, 1)) for flips, turn, axes in forms
        }
        fitting = {kind: float(rest.mean()) for kind, rest in candidates.items() if rest.std() < 1e-4}
        assert len(fitting) == 2  # a half turn is two flips
        kinds.append(min(fitting))
        shifts.append(next(iter(fitting.values())))
    assert len(set(kinds)) == 16
    shifts = torch.tensor(shifts)
    assert shifts.abs().max() <= 0.1 + 1e-4
    assert float((shifts.abs() < 1e-4).float().mean()) == pytest.approx(0.5, abs=0.1)
    assert shifts.max() > 0.09
    assert shifts.min() < -0.09


@pytest.mark.parametrize("name", ["flip_prob", "turn_prob", "shift_prob"])
def test_probabilities_are_those_of_a_crop(name):
    volume = torch.rand(1, 1, 8, 8, 4)
    crops = VolumeCrops((4, 8, 4) if name != "turn_prob" else (4, 4, 4), (2, 1, 1), 2000, seed=0, **PLAIN | {name: 0.2})
    if name == "turn_prob":
        volume = volume[:, :, :, :4]
    views, overlap = crops({"image": volume})
    starts = torch.zeros(1, 2000, 3, dtype=torch.long)
    starts[..., 0] = (4 * overlap[..., 1]).round().long()
    same = (views["random"] == take_crops(volume, starts, crops.crop_size)).flatten(2).all(-1).float().mean()
    assert float(same) == pytest.approx(0.8**3 if name == "flip_prob" else 0.8, abs=0.04)  # three axes


@pytest.mark.numeric
def test_crops_can_be_resized_and_keep_their_overlap():
    volumes = make_volumes()
    _, expected = VolumeCrops(SIZE, GRID, seed=0, **PLAIN)({"image": volumes})
    views, overlap = VolumeCrops(SIZE, GRID, resized=(3, 3, 8), seed=0, **PLAIN)({"image": volumes})
    assert torch.equal(overlap, expected)
    assert views["base"].shape == (2, 9, 1, 3, 3, 8)
    base = volumes[0, 0, :4, :4]
    assert torch.equal(views["base"][0, 0, 0][::2, ::2, ::7], base[::3, ::3, ::5])  # corners stay corners


def test_a_seed_makes_validation_repeatable_and_leaves_the_training_alone():
    volumes = make_volumes()
    crops = VolumeCrops(SIZE, GRID, seed=3)
    torch.manual_seed(0)
    first, overlap = crops({"image": volumes})
    after = torch.rand(1)
    second, again = crops({"image": volumes})
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(overlap, again)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other, _ = VolumeCrops(SIZE, GRID, seed=4)({"image": volumes})
    assert not torch.equal(first["random"], other["random"])
    plain = VolumeCrops(SIZE, GRID)
    assert not torch.equal(plain({"image": volumes})[0]["random"], plain({"image": volumes})[0]["random"])


@pytest.mark.parametrize("shape", [(12, 8, 6), (11, 12, 6), (12, 12, 5), (24, 24, 12)])
def test_a_volume_that_the_grid_does_not_tile_is_refused(shape):
    words = rf"image: found volumes of {'×'.join(map(str, shape))} voxels, wanted 12×12×6, 3×3×1 crops of 4×4×6; pad"
    with pytest.raises(ConfigValueError, match=words):
        VolumeCrops(SIZE, GRID)({"image": make_volumes(1, shape)})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": (1, 1, 1)}, r"grid: found \[1, 1, 1\], wanted base crops along X, Y, Z, two in all"),
        ({"grid": (3, 3)}, r"grid: found \[3, 3\]"),
        ({"grid": (3, 3, 0)}, r"grid: found \[3, 3, 0\]"),
        ({"num_crops": 0}, "num_crops: found 0"),
        ({"flip_prob": 2}, "flip_prob: found 2"),
        ({"crop_size": (64, 32, 64)}, "crop_size: found 64×32×64, wanted the same along X and Y .* turn_prob to 0"),
    ],
)
def test_values_that_do_not_fit_are_told(changes, words):
    with pytest.raises(ConfigValueError, match=words):
        VolumeCrops(**changes)
