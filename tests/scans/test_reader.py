# SPDX-License-Identifier: Apache-2.0
"""A scan lies where its file says: in every order of axes, with every kind of header, in mm; or it is refused."""

from __future__ import annotations

import contextlib
import gzip

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd, Orientationd
from places import KINDS, ORDERS, turn, write

from tools.demonstration import EMBEDDED
from tools.errors import GeometryMismatchError, MissingFileError, UnreadableScanError
from tools.scans import Scan, check_same_grid
from tools.scans.nifti import load_scan
from tools.transforms import FillNonFinited, LoadScand

SPACING = (0.8, 1.25, 3.75)


@pytest.fixture(scope="module")
def truth() -> nib.Nifti1Image:
    """A volume without symmetry, RAS, off the origin."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = [-31, 17, 5]
    voxels = np.random.default_rng(0).integers(-1000, 1000, (9, 7, 5)).astype(np.int16)
    return nib.Nifti1Image(voxels, affine)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_of_axes_in_every_kind_of_header_is_the_same_patient(order, kind, truth, tmp_path):
    path = write(turn(truth, order), tmp_path / "scan.nii.gz", kind)
    chain = Compose(
        [LoadScand("image"), EnsureChannelFirstd("image"), Orientationd("image", axcodes="RAS", labels=None)]
    )
    found = chain({"image": str(path)})["image"]
    np.testing.assert_array_equal(found[0].numpy(), np.asanyarray(truth.dataobj))
    np.testing.assert_allclose(found.affine.numpy(), truth.affine, atol=1e-3)


def test_two_forms_that_exchange_left_and_right_are_refused_and_two_places_are_told(truth, tmp_path, caplog):
    image = nib.Nifti1Image(np.asanyarray(truth.dataobj), truth.affine)
    image.set_sform(truth.affine, 1)
    image.set_qform(truth.affine @ np.diag([-1, 1, 1, 1]), 1)
    nib.save(image, tmp_path / "scan.nii.gz")
    with pytest.raises(UnreadableScanError, match=r"exchange left and right, wanted two that agree"):
        Scan(tmp_path / "scan.nii.gz")
    assert not caplog.text
    Scan(write(truth, tmp_path / "template.nii.gz", "template"))
    template = nib.load(tmp_path / "template.nii.gz")
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [8, 6, 4, 1]
    apart = np.linalg.norm((corners @ (template.get_qform() - template.get_sform()).T)[:, :3], axis=1).max()
    assert f"up to {apart:.4g} mm apart; the sform is taken" in caplog.text
    caplog.clear()
    for kind in ("sform", "qform", "both"):
        Scan(write(truth, tmp_path / "scan.nii.gz", kind))
    assert not caplog.text


def test_an_image_and_its_label_stay_together_whatever_their_headers_round(truth, tmp_path):
    image = write(turn(truth, "LAS"), tmp_path / "image.nii.gz", "pixdim 1e-4")
    label = write(turn(truth, "LAS"), tmp_path / "label.nii.gz", "sform")
    data = LoadScand(["image", "label"])({"image": str(image), "label": str(label)})
    np.testing.assert_array_equal(data["image"].numpy(), data["label"].numpy())
    np.testing.assert_allclose(data["image"].affine.numpy(), data["label"].affine.numpy(), atol=1e-6)


@pytest.mark.parametrize(("unit", "length_mm"), [("mm", 1.0), ("meter", 1000.0), ("micron", 0.001), ("unknown", 1.0)])
def test_units_become_mm(unit, length_mm, truth, tmp_path):
    affine = np.array(truth.affine)
    affine[:3] /= length_mm
    image = nib.Nifti1Image(np.asanyarray(truth.dataobj), affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "scan.nii.gz")
    loaded = load_scan(tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(loaded.affine, truth.affine, rtol=1e-5)
    assert LoadScand("image")({"image": str(tmp_path / "scan.nii.gz")})["image"].pixdim.tolist() == pytest.approx(
        SPACING, rel=1e-5
    )


def test_two_grids_are_the_same_in_mm_whatever_their_units(truth, tmp_path):
    affine = np.array(truth.affine)
    affine[:3] /= 1000
    metres = nib.Nifti1Image(np.asanyarray(truth.dataobj), affine)
    metres.header.set_xyzt_units("meter")
    nib.save(truth, tmp_path / "image.nii.gz")
    nib.save(metres, tmp_path / "label.nii.gz")
    check_same_grid(Scan(tmp_path / "image.nii.gz"), Scan(tmp_path / "label.nii.gz"))
    affine[0, 3] += 0.6e-3 * SPACING[0]
    moved = nib.Nifti1Image(np.asanyarray(truth.dataobj), affine)
    moved.header.set_xyzt_units("meter")
    nib.save(moved, tmp_path / "label.nii.gz")
    with pytest.raises(GeometryMismatchError, match=r"up to 0\.6 voxels \(0\.5 mm\) off"):
        check_same_grid(Scan(tmp_path / "image.nii.gz"), Scan(tmp_path / "label.nii.gz"))


def test_a_spacing_that_contradicts_the_affine_is_refused_and_one_that_is_a_little_off_is_told(truth, tmp_path, caplog):
    Scan(write(truth, tmp_path / "little.nii.gz", "pixdim 0.02"))
    assert "that of the affine is taken" in caplog.text
    with pytest.raises(UnreadableScanError, match=r"beside one of 0\.8 x 1\.25 x 3\.75 \(affine\)"):
        Scan(write(truth, tmp_path / "much.nii.gz", "pixdim 0.2"))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: data[: len(data) // 2], "ends early"),
        (lambda data: data[:-8], "ends early"),
        (lambda data: data[:-8] + b"\1\2\3\4" + data[-4:], "damaged data"),
        (lambda data: data + b"garbage", "damaged data"),
    ],
    ids=["cut", "no trailer", "wrong checksum", "garbage behind"],
)
def test_a_damaged_gzip_file_is_refused(damage, told, truth, tmp_path):
    nib.save(truth, tmp_path / "scan.nii")
    data = gzip.compress((tmp_path / "scan.nii").read_bytes())
    (tmp_path / "scan.nii.gz").write_bytes(damage(data))
    with pytest.raises(UnreadableScanError, match=told):
        load_scan(tmp_path / "scan.nii.gz")


def test_no_flipped_bit_of_the_packed_data_goes_unnoticed(tmp_path):
    source = next((EMBEDDED / "msd04_hippocampus" / "imagesTr").glob("*.nii.gz"))
    data, expected = bytearray(source.read_bytes()), np.asanyarray(nib.load(source).dataobj)
    path = tmp_path / "scan.nii.gz"
    for position in np.random.default_rng(0).integers(20, len(data) - 8, 40):
        data[position] ^= 4
        path.write_bytes(data)
        with contextlib.suppress(UnreadableScanError):
            np.testing.assert_array_equal(np.asanyarray(load_scan(path).dataobj), expected)
        data[position] ^= 4


def test_a_file_that_says_its_voxels_begin_in_the_header_is_refused(truth, tmp_path):
    nib.save(truth, tmp_path / "scan.nii")
    data = bytearray((tmp_path / "scan.nii").read_bytes())
    data[108:112] = np.float32(0).tobytes()
    (tmp_path / "scan.nii").write_bytes(data)
    with pytest.raises(UnreadableScanError, match=r"begin at byte 0, inside the header \(vox_offset\)"):
        load_scan(tmp_path / "scan.nii")


@pytest.mark.parametrize(("tail", "shape"), [((1,), ()), ((1, 1), ()), ((1, 4), (4,)), ((3,), (3,))])
def test_axes_behind_the_third_are_channels_or_nothing(tail, shape, truth, tmp_path):
    voxels = np.random.default_rng(0).integers(0, 9, (*truth.shape, *tail)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, truth.affine), tmp_path / "scan.nii.gz")
    chain = Compose([LoadScand("image"), EnsureChannelFirstd("image")])
    found = chain({"image": str(tmp_path / "scan.nii.gz")})["image"].numpy()
    expected = np.moveaxis(voxels.reshape(*truth.shape, -1), -1, 0)
    np.testing.assert_array_equal(found, expected)
    assert load_scan(tmp_path / "scan.nii.gz").shape == (*truth.shape, *shape)


def test_the_largest_number_of_a_program_counts_as_no_data(tmp_path, caplog):
    voxels = np.random.default_rng(0).normal(0, 100, (8, 8, 8))
    voxels[0] = -3.4e38
    voxels[1, 1, 1] = 1e300  # infinite in float32
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "scan.nii.gz")
    chain = Compose([LoadScand("image"), EnsureChannelFirstd("image"), FillNonFinited("image")])
    found = chain({"image": str(tmp_path / "scan.nii.gz")})["image"].numpy()[0]
    lowest = np.delete(voxels[1:].ravel(), voxels[1:].argmax()).min()
    np.testing.assert_allclose(found[0], lowest, rtol=1e-6)
    np.testing.assert_allclose(found[1, 1, 1], lowest, rtol=1e-6)
    np.testing.assert_allclose(found[2:], voxels[2:], rtol=1e-6)
    assert "65 voxels" in caplog.text


@pytest.mark.parametrize("path", sorted(EMBEDDED.glob("*/*Tr/*.nii.gz")), ids=lambda path: path.name)
def test_a_sound_scan_is_read_as_nibabel_does(path):
    image, found = nib.load(path), load_scan(path)
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), np.asanyarray(image.dataobj))
    np.testing.assert_array_equal(found.affine, image.affine)


def test_what_is_wrong_reaches_the_user_of_a_chain(tmp_path):
    with pytest.raises(MissingFileError, match="gone"):
        LoadScand("image")({"image": str(tmp_path / "gone.nii.gz")})


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_result_is_written_in_its_own_type_whatever_the_scan_has(dtype, truth, tmp_path):
    nib.save(truth, tmp_path / "scan.nii.gz")
    values = np.random.default_rng(1).integers(0, 200, truth.shape).astype(dtype) / dtype(
        4 if dtype == np.float32 else 1
    )
    Scan(tmp_path / "scan.nii.gz").write_like(values.astype(dtype), tmp_path / "result.nii.gz", {0: "a"})
    written = nib.load(tmp_path / "result.nii.gz")
    assert written.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), values)
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "scan.nii.gz").affine)


def test_what_is_odd_about_a_header_is_told_once(truth, tmp_path, caplog):
    path = write(truth, tmp_path / "scan.nii.gz", "pixdim 0.02")
    for _ in range(3):
        Scan(path).read()
        load_scan(path)
    assert caplog.text.count("that of the affine is taken") == 1
