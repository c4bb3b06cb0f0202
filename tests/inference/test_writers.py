# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from tools.errors import ConfigValueError, GeometryMismatchError
from tools.inference import SaveProbabilitiesd, SaveSegmentationd
from tools.inference.writers import write_segmentation
from tools.scans import find_names

LABELS = ["background", "liver", "Milz (links)"]


def make_segmentation(shape=(24, 22, 20)):
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(0)).float()


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 2), (4, 3), (0, 0)])
@pytest.mark.parametrize("grid", ["RAS", "LPI", "oblique"])
def test_the_grid_is_that_of_the_scan_to_the_last_bit(write_phantom, tmp_path, grid, codes, kind):
    source = write_phantom(grid=grid, codes=codes, units=("mm", "msec"), kind=kind)
    segmentation = make_segmentation()
    write_segmentation(segmentation, source, tmp_path / "seg.nii.gz", dict(enumerate(LABELS)))

    scan, result = nib.load(source), nib.load(tmp_path / "seg.nii.gz")
    assert type(result) is type(scan)
    assert np.array_equal(result.affine, scan.affine)
    for field in ("qform_code", "sform_code", "xyzt_units", "pixdim", "srow_x", "srow_y", "srow_z"):
        assert np.array_equal(result.header[field], scan.header[field]), field
    for field in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
        assert np.array_equal(result.header[field], scan.header[field]), field
    assert result.get_data_dtype() == np.uint8
    assert np.array_equal(np.asanyarray(result.dataobj), segmentation.numpy())


@pytest.mark.parametrize(("structures", "classes"), [(None, [0, 1, 2]), (["Milz (links)"], [2])])
@pytest.mark.parametrize("slope_inter", [None, (0.5, -1024)])
def test_probabilities_are_the_softmax_of_the_logits_in_the_grid_of_the_scan(
    structures, classes, slope_inter, write_phantom, tmp_path
):
    source = write_phantom(grid="oblique", slope_inter=slope_inter)
    logits = torch.randn(3, 24, 22, 20, generator=torch.Generator().manual_seed(0)) * 5
    image = MetaTensor(logits, meta={"filename_or_obj": str(source)})
    data = SaveProbabilitiesd("pred", tmp_path, LABELS, structures)({"pred": image, "name": "x"})
    assert data["pred"] is image
    written = nib.load(tmp_path / "x_prob.nii.gz")
    powers = np.exp(logits.double().numpy())
    expected = np.moveaxis(powers / powers.sum(axis=0), 0, -1)[..., classes]
    np.testing.assert_allclose(np.asanyarray(written.dataobj), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(written.affine, nib.load(source).affine)


def test_label_names_travel_in_a_comment(write_phantom, tmp_path):
    write_segmentation(make_segmentation(), write_phantom(), tmp_path / "seg.nii.gz", dict(enumerate(LABELS)))
    (extension,) = nib.load(tmp_path / "seg.nii.gz").header.extensions
    assert extension.get_code() == 6  # NIFTI_ECODE_COMMENT
    text = extension.text if hasattr(extension, "text") else extension.get_content().decode()
    assert json.loads(text.rstrip("\0")) == {"labels": {"0": "background", "1": "liver", "2": "Milz (links)"}}


def test_neither_scaling_nor_grey_window_nor_comments_of_the_scan_stay(write_phantom, tmp_path):
    source = write_phantom("raw.nii.gz", slope_inter=(0.5, -1024))
    scan = nib.load(source)
    scan.header["cal_min"], scan.header["cal_max"] = -175, 250
    scan.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"name of a patient"))
    nib.save(scan, tmp_path / "scan.nii.gz")
    segmentation = make_segmentation()
    write_segmentation(segmentation, tmp_path / "scan.nii.gz", tmp_path / "seg.nii.gz", dict(enumerate(LABELS)))
    result = nib.load(tmp_path / "seg.nii.gz")
    assert (result.dataobj.slope, result.dataobj.inter) == (1, 0)
    assert (result.header["cal_min"], result.header["cal_max"]) == (0, 0)
    assert len(result.header.extensions) == 1
    assert np.array_equal(np.asanyarray(result.dataobj), segmentation.numpy())


@pytest.mark.parametrize("shape", [(10, 9, 8, 1), (10, 9, 8, 1, 1)])
def test_trailing_axes_of_the_scan_stay(write_phantom, tmp_path, shape):
    source = write_phantom(shape=shape)
    write_segmentation(make_segmentation((10, 9, 8)), source, tmp_path / "seg.nii.gz", dict(enumerate(LABELS)))
    assert nib.load(tmp_path / "seg.nii.gz").shape == nib.load(source).shape


def test_a_segmentation_of_another_shape_is_refused(write_phantom, tmp_path):
    with pytest.raises(GeometryMismatchError, match=r"\(24, 22, 19\) voxels, .*Invertd"):
        write_segmentation(
            make_segmentation((24, 22, 19)), write_phantom(), tmp_path / "seg.nii.gz", dict(enumerate(LABELS))
        )
    assert not (tmp_path / "seg.nii.gz").exists()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_the_result_is_named_after_the_scan_or_as_told(write_phantom, tmp_path, suffix):
    source = write_phantom(f"in/patient.1{suffix}")
    prediction = MetaTensor(make_segmentation()[None], meta={"filename_or_obj": str(source)})
    writer = SaveSegmentationd("pred", tmp_path / "out", LABELS)
    assert isinstance(writer, SaveImaged), "MONAI Label leaves out what is a SaveImaged"
    data = {"pred": prediction}
    assert writer(data) == data
    writer({"pred": prediction, "name": "in_patient.1"})
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["in_patient.1_seg.nii.gz", "patient.1_seg.nii.gz"]
    assert writer.locate("patient.1") == tmp_path / "out" / "patient.1_seg.nii.gz"


def test_a_write_that_fails_half_way_leaves_no_file(write_phantom, tmp_path, monkeypatch):
    def fail(image, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    source = write_phantom("in/scan.nii.gz")
    monkeypatch.setattr(nib, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        write_segmentation(make_segmentation(), source, tmp_path / "out" / "seg.nii.gz", dict(enumerate(LABELS)))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("values", "dtype"), [([0, 1, 7], np.uint8), ([0, 205, 420], np.uint16)])
def test_values_are_those_of_the_label_files_and_the_table_says_so(values, dtype, write_phantom, tmp_path):
    numbers = make_segmentation()
    image = MetaTensor(torch.tensor(values)[numbers.long()][None].float(), meta={"filename_or_obj": write_phantom()})
    SaveSegmentationd("pred", tmp_path, LABELS, values=values)({"pred": image, "name": "all"})
    SaveSegmentationd("pred", tmp_path, LABELS, structures=LABELS[2:], values=values)({"pred": image, "name": "one"})
    written, alone = (nib.load(tmp_path / f"{name}_seg.nii.gz") for name in ("all", "one"))
    assert written.get_data_dtype() == dtype
    expected = np.choose(numbers.numpy().astype(int), values)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), expected)
    np.testing.assert_array_equal(np.asanyarray(alone.dataobj), np.where(expected == values[2], expected, 0))
    assert find_names(written) == dict(zip(values, LABELS, strict=True))
    assert find_names(alone) == {0: LABELS[0], values[2]: LABELS[2]}


@pytest.mark.parametrize("values", [[0, 1, 1], [0, 1], [0, 1, 70_000], [0, -1, 2]])
def test_values_that_no_file_can_hold_apart_are_refused(values, tmp_path):
    with pytest.raises(ConfigValueError, match="a value of its own for each of 3 labels"):
        SaveSegmentationd("pred", tmp_path, LABELS, values=values)
