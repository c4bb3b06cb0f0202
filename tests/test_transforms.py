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
    ScaleIntensityRanged,
)

from tools.errors import UnreadableScanError, find_cause
from tools.transforms import FillNonFinited, LoadScand, PlainSpacingd, TakeCentreSliced, keep_image

fill = FillNonFinited("image")


def test_nan_and_infinity_become_the_smallest_finite_value(caplog):
    image = torch.tensor([[3.0, math.nan, -1000.0], [math.inf, -math.inf, 40.0]]).reshape(1, 2, 3, 1)
    before = image.clone()
    filled = fill({"image": image, "other": "kept"})
    assert filled["image"].flatten().tolist() == [3, -1000, -1000, -1000, -1000, 40]
    assert filled["other"] == "kept"
    assert torch.equal(image.nan_to_num(), before.nan_to_num()), "the input was changed in place"
    assert "3 NaN or infinite voxels" in caplog.text


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
    with pytest.raises(UnreadableScanError, match=r"^folder/empty\.nii\.gz: found only NaN"):
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
