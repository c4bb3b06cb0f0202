# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandRotate90d,
    ScaleIntensityRanged,
)

from tools.errors import UnreadableScanError, find_cause
from tools.transforms import (
    FillNonFinited,
    LoadScand,
    PlainSpacingd,
    RandMirrord,
    RandQuarterTurnd,
    RandStructureCropd,
    TakeCentreSliced,
    keep_image,
)

fill = FillNonFinited("image")


def test_nan_and_infinity_become_the_smallest_finite_value(caplog):
    image = torch.tensor([[3.0, math.nan, -1000.0], [math.inf, -math.inf, 40.0]]).reshape(1, 2, 3, 1)
    before = image.clone()
    filled = fill({"image": image, "other": "kept"})
    assert filled["image"].flatten().tolist() == [3, -1000, -1000, -1000, -1000, 40]
    assert filled["other"] == "kept"
    assert torch.equal(image.nan_to_num(), before.nan_to_num()), "the input was changed in place"
    assert "3 voxels that are NaN, infinite or beyond 1e30" in caplog.text


def test_a_finite_image_is_passed_on_as_it_is(caplog):
    image = torch.rand(1, 4, 4, 4)
    assert fill({"image": image})["image"] is image
    assert not caplog.records


def test_whole_numbers_are_always_finite():
    image = torch.arange(8, dtype=torch.int16).reshape(1, 2, 2, 2)
    assert fill({"image": image})["image"] is image


def test_half_precision_stays():
    image = torch.tensor([1.0, math.nan], dtype=torch.float16).reshape(1, 2, 1, 1)
    assert fill({"image": image})["image"].dtype == torch.float16


def test_an_image_without_any_number_is_refused_by_name():
    image = MetaTensor(torch.full((1, 2, 2, 2), math.nan), meta={"filename_or_obj": "folder/empty.nii.gz"})
    with pytest.raises(UnreadableScanError, match=r"^folder/empty\.nii\.gz: found only voxels that are NaN"):
        fill({"image": image})


def test_metadata_and_the_history_of_transforms_stay(write_phantom):
    path = write_phantom(grid="oblique", dtype="float32")
    steps = [LoadImaged("image"), EnsureChannelFirstd("image"), Orientationd("image", "RAS", labels=None)]
    image = Compose(steps)({"image": path})["image"]
    image[0, 3, 4, 5] = math.nan
    filled = fill({"image": image})["image"]
    assert isinstance(filled, MetaTensor)
    assert torch.equal(filled.affine, image.affine)
    assert filled.meta["filename_or_obj"] == str(path)
    assert filled.applied_operations == image.applied_operations
    back = Compose(steps).inverse({"image": filled})["image"]
    assert back.shape == (1, 24, 22, 20)


def test_one_voxel_does_not_spoil_the_scaling_to_0_and_1(write_phantom):
    image = Compose([LoadImaged("image"), EnsureChannelFirstd("image")])({"image": write_phantom()})
    image["image"][0, 0, 0, 0] = math.nan
    scaled = ScaleIntensityRanged("image", -175, 250, 0, 1, clip=True)(fill(image))["image"]
    assert bool(torch.isfinite(scaled).all())


def test_a_missing_key_is_an_error_unless_allowed():
    with pytest.raises(KeyError):
        fill({"label": torch.zeros(1)})
    assert FillNonFinited("image", allow_missing_keys=True)({"label": 1}) == {"label": 1}


def test_the_reason_survives_monai_s_wrapper():
    with pytest.raises(RuntimeError) as caught:
        Compose([fill])({"image": torch.full((1, 2, 2, 2), math.nan)})
    assert isinstance(find_cause(caught.value), UnreadableScanError)


def test_a_file_that_cannot_be_read_is_explained(tmp_path, write_phantom):
    scan = write_phantom()
    content = scan.read_bytes()
    scan.write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableScanError, match="ends early"):
        LoadScand("image")({"image": str(scan)})


def test_a_sound_file_is_read_as_monai_reads_it(write_phantom):
    scan = str(write_phantom())
    expected, found = (load("image")({"image": scan})["image"] for load in (LoadImaged, LoadScand))
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor())
    torch.testing.assert_close(found.affine, expected.affine)


@pytest.mark.parametrize("kind", [torch.as_tensor, MetaTensor])
def test_the_slice_in_the_middle_of_a_window_is_taken(kind):
    window = torch.rand(2, 4, 3, 5)
    taken = TakeCentreSliced("label")({"label": kind(window), "image": 1})
    assert torch.equal(taken["label"], window[..., 2])
    assert type(taken["label"]) is torch.Tensor
    assert taken["image"] == 1


def test_what_stands_beside_an_image_is_left_alone_when_it_is_resampled():
    image = MetaTensor(torch.rand(1, 6, 6, 4), torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0])))
    image.meta["filename_or_obj"] = "ct.nii.gz"
    spacing = PlainSpacingd("image", (1.0, 1.0, 3.0), mode="bilinear")
    data = spacing({"image": image, "image_path": "ct.nii.gz"})  # as MONAI Label gives it
    assert data["image_path"] == "ct.nii.gz"
    assert data["image"].shape == (1, 11, 11, 4)
    inverted = Invertd("image", Compose([spacing]), "image")(data)
    assert inverted["image"].shape == image.shape


# ---- cropping the image alone


def make_crop() -> CropForegroundd:
    return CropForegroundd(["image", "label"], source_key="image", allow_smaller=True)


def test_the_label_stays_as_it_is_and_need_not_be_there():
    image, label = torch.zeros(1, 6, 6, 6), torch.arange(216.0).reshape(1, 6, 6, 6)
    image[:, 1:5, 2:4, 3:] = 1
    crop = make_crop()
    (alone,) = keep_image([crop])
    cropped = alone({"image": image, "label": label})
    assert cropped["image"].shape == (1, 4, 2, 3)
    assert torch.equal(cropped["label"], label)
    assert alone({"image": image})["image"].shape == (1, 4, 2, 3)
    assert crop({"image": image, "label": label})["label"].shape == (1, 4, 2, 3)  # the given one crops both


@pytest.mark.numeric
@pytest.mark.parametrize("has_body", [False, True])
def test_what_was_cropped_comes_back_as_background(has_body):
    image = MetaTensor(torch.zeros(1, 9, 10, 11))
    if has_body:
        image[:, 2:6, 3:9, 4:8] = 1
    chain = Compose(keep_image([make_crop()]))
    data = chain({"image": image})
    logits = SlidingWindowInferer((8, 8, 8))(data["image"][None], lambda x: torch.cat([x - 2, x], dim=1))[0]
    data["pred"] = MetaTensor(logits, meta=data["image"].meta)
    pred = Invertd("pred", chain, "image", nearest_interp=False)(data)["pred"].argmax(dim=0)
    assert pred.shape == image.shape[1:]
    assert torch.equal(pred.as_tensor(), image[0].as_tensor().long())


# ---- turns that keep the shape


def make_crop_of(shape: tuple[int, ...], pixdim_mm: tuple[float, ...] | None = None) -> torch.Tensor:
    crop = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    return crop if pixdim_mm is None else MetaTensor(crop, torch.diag(torch.tensor([*pixdim_mm, 1.0])))


def list_turns(crop: torch.Tensor, prob: float = 1.0, draws: int = 40) -> list[torch.Tensor]:
    turn = RandQuarterTurnd(["image", "label"], prob=prob)
    turn.set_random_state(seed=0)
    turned = []
    for _ in range(draws):
        data = turn({"image": crop, "label": crop > 0.5})
        assert torch.equal(data["label"], data["image"] > 0.5), "image and label are turned alike"
        turned.append(torch.as_tensor(data["image"]))
    return turned


def count_turns(turned: list[torch.Tensor], crop: torch.Tensor, plane: tuple[int, int]) -> list[int]:
    """Return how many are the crop turned by no, one, two and three quarter turns in a plane of its spatial axes."""
    plain, dims = torch.as_tensor(crop), [axis + 1 for axis in plane]
    wanted = [torch.rot90(plain, k, dims) for k in range(4)]
    found = [
        [k for k in range(4) if image.shape == wanted[k].shape and torch.equal(image, wanted[k])] for image in turned
    ]
    assert all(len(ks) == 1 for ks in found), "turned in another plane"
    return [sum(ks == [k] for ks in found) for k in range(4)]


@pytest.mark.parametrize("seed", range(8))
def test_square_crops_are_turned_as_by_monai(seed):
    crop = make_crop_of((5, 5, 3), (0.8, 0.8, 2.5))
    transforms = [kind(["image", "label"], prob=0.6) for kind in (RandQuarterTurnd, RandRotate90d)]
    for transform in transforms:
        transform.set_random_state(seed=seed)
    for _ in range(8):
        found, expected = (transform({"image": crop, "label": crop + 1}) for transform in transforms)
        for key in ("image", "label"):
            assert torch.equal(found[key].as_tensor(), expected[key].as_tensor())
            assert torch.equal(found[key].affine, expected[key].affine)


@pytest.mark.parametrize(
    ("shape", "pixdim_mm", "plane"),
    [
        ((4, 6, 4), (1.0, 1.0, 1.0), (0, 2)),  # the crop of msd04_hippocampus
        ((4, 6, 6), (2.0, 1.0, 1.0), (1, 2)),
        ((4, 6, 4), None, (0, 2)),  # a plain tensor knows no voxels
        ((4, 4, 4), (1.0, 1.0, 1.0), (0, 1)),
        ((4, 4, 6), (1.0, 2.0, 1.0), (0, 1)),  # as published, whatever the voxels are
    ],
    ids=str,
)
def test_quarter_turns_happen_where_the_crop_is_square(shape, pixdim_mm, plane):
    crop = make_crop_of(shape, pixdim_mm)
    turned = list_turns(crop)
    assert {tuple(image.shape) for image in turned} == {(2, *shape)}
    counts = count_turns(turned, crop, plane)
    assert counts[0] == 0
    assert min(counts[1:]) >= 5, "one, two and three quarter turns are as likely"


@pytest.mark.parametrize(
    ("shape", "pixdim_mm"),
    [
        ((4, 6, 8), (1.0, 1.0, 1.0)),
        ((4, 6, 4), (1.0, 1.0, 5.0)),  # a quarter turn would stretch by five what the crop shows
        ((4, 6, 5), None),
        ((4, 6), None),
    ],
    ids=str,
)
def test_other_crops_are_turned_by_half_turns(shape, pixdim_mm):
    crop = make_crop_of(shape, pixdim_mm)
    turned = list_turns(crop)
    assert {tuple(image.shape) for image in turned} == {(2, *shape)}
    assert count_turns(turned, crop, (0, 1)) == [0, 0, 40, 0]


def test_half_of_the_crops_stay_as_they_are_at_a_probability_of_a_half():
    crop = make_crop_of((4, 6, 8), (1.0, 1.0, 1.0))
    stayed, _, turned, _ = count_turns(list_turns(crop, prob=0.5, draws=200), crop, (0, 1))
    assert 75 <= stayed <= 125
    assert stayed + turned == 200


def test_one_transform_takes_crops_of_any_shapes_after_each_other():
    turn = RandQuarterTurnd("image", prob=1.0)
    turn.set_random_state(seed=1)
    for shape in [(4, 6, 8), (4, 4, 6), (4, 6, 4)] * 4:
        assert turn({"image": make_crop_of(shape)})["image"].shape == (2, *shape)


@pytest.mark.parametrize("shape", [(4, 6, 8), (4, 4, 6), (4, 6, 4)])
def test_a_turn_is_undone(shape):
    crop = make_crop_of(shape, (1.0, 1.0, 1.0))
    turn = RandQuarterTurnd("image", prob=1.0)
    for seed in range(4):
        turn.set_random_state(seed=seed)
        back = turn.inverse(turn({"image": crop}))["image"]
        assert torch.equal(back.as_tensor(), crop.as_tensor())
        torch.testing.assert_close(back.affine, crop.affine)


def make_pair() -> dict[str, MetaTensor]:
    generator = torch.Generator().manual_seed(0)
    affine = torch.diag(torch.tensor([2.0, 1.0, 3.0, 1.0], dtype=torch.float64))
    label = torch.randint(0, 4, (1, 5, 6, 7), generator=generator).float()
    return {
        "image": MetaTensor(torch.rand(1, 5, 6, 7, generator=generator), affine),
        "label": MetaTensor(label, affine),
    }


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flip_without_classes_is_that_of_monai(axis):
    crop = make_pair()
    found = RandMirrord(["image", "label"], axes=[axis], prob=1.0)(crop)
    wanted = RandFlipd(["image", "label"], prob=1.0, spatial_axis=axis)(crop)
    for key, value in wanted.items():
        assert torch.equal(found[key], value)
        assert torch.equal(found[key].affine, value.affine)


def test_a_flip_gives_a_structure_the_name_of_the_other_side_and_two_flips_do_not():
    crop = make_pair()
    places = torch.tensor([0, 2, 1, 3])
    once = RandMirrord(["image", "label"], axes=[0], prob=1.0, classes=places.tolist())(crop)
    assert torch.equal(once["image"].as_tensor(), crop["image"].as_tensor().flip(1))
    assert torch.equal(once["label"].as_tensor(), places[crop["label"].as_tensor().long()].float().flip(1))
    assert once["label"].dtype == crop["label"].dtype
    twice = RandMirrord(["image", "label"], axes=[0, 2], prob=1.0, classes=places.tolist())(crop)
    assert torch.equal(twice["label"].as_tensor(), crop["label"].as_tensor().flip(1, 3))


def test_each_axis_is_flipped_as_often_as_it_is_asked_for():
    transform = RandMirrord(["image", "label"], axes=[0, 2], prob=0.25).set_random_state(0)
    counts = [0, 0, 0]
    for _ in range(2000):
        transform.randomize()
        for axis in transform._flipped:
            counts[axis] += 1
    assert counts[1] == 0
    assert all(abs(count - 500) < 80 for count in (counts[0], counts[2]))  # four standard deviations


def test_without_a_flip_crops_are_passed_on_as_they_are():
    crop = make_pair()
    kept = RandMirrord(["image", "label"], prob=0.0)(crop)
    assert all(kept[key] is value for key, value in crop.items())


@pytest.mark.parametrize(("label", "image"), [(0.0, -1000.0), (1.0, -1000.0), (0.0, 50.0)])
def test_a_volume_with_neither_structure_nor_tissue_is_cropped_anywhere(label, image):
    data = {"image": torch.full((1, 12, 12, 12), image), "label": torch.full((1, 12, 12, 12), label)}
    options = {"label_key": "label", "spatial_size": (4, 4, 4), "num_samples": 3, "image_key": "image"}
    crops = RandStructureCropd(["image", "label"], image_threshold=0.0, **options)(data)
    assert [crop["image"].shape for crop in crops] == [(1, 4, 4, 4)] * 3


def test_other_volumes_are_cropped_as_by_monai():
    generator = torch.Generator().manual_seed(0)
    data = {key: torch.rand(1, 12, 12, 12, generator=generator) for key in ("image", "label")}
    data["label"] = (data["label"] > 0.9).float()
    options = {"label_key": "label", "spatial_size": (4, 4, 4), "num_samples": 3, "image_key": "image"}
    found, wanted = (
        kind(["image", "label"], image_threshold=0.5, **options).set_random_state(3)(data)
        for kind in (RandStructureCropd, RandCropByPosNegLabeld)
    )
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one["image"], other["image"])
