# SPDX-License-Identifier: Apache-2.0
"""Bad scans are refused with a sentence, odd but sound ones are not."""

from __future__ import annotations

import gzip
import logging
import random

import nibabel as nib
import numpy as np
import pytest

from tools.checks import check_scan
from tools.errors import MissingFileError, ToolsError, UnreadableScanError
from tools.scans import Scan


@pytest.mark.parametrize("cut", [10, 100, 300, -30], ids=lambda cut: f"{cut} bytes")
def test_a_truncated_gzip_file_ends_early(write_scan, assert_readable, cut):
    path = write_scan(voxels=np.random.default_rng(0).integers(0, 9999, (8, 9, 10)).astype(np.int16))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UnreadableScanError) as caught:
        check_scan(path)
    assert_readable(caught.value, path, "ends early", "again")


def test_a_gzip_file_that_was_cut_before_compression_ends_early(write_scan, assert_readable):
    path = write_scan()
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-100]))
    with pytest.raises(UnreadableScanError) as caught:
        check_scan(path)
    assert_readable(caught.value, path, "ends early", "again")


def test_a_truncated_plain_file_ends_early_before_its_voxels_are_read(write_scan, assert_readable):
    path = write_scan("scan.nii")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnreadableScanError) as caught:
        Scan(path)
    assert_readable(caught.value, path, "ends early", "again")


def test_a_header_that_promises_terabytes_is_refused_without_allocating_them(patch_header, assert_readable):
    path = patch_header(40, "<4h", 3, 30000, 30000, 30000)
    packed = path.with_name("huge.nii.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for scan in (path, packed):
        with pytest.raises(UnreadableScanError) as caught:
            check_scan(scan)
        assert_readable(caught.value, scan, "ends early", "again")


def test_damaged_compressed_data_are_refused(write_scan, assert_readable):
    path = write_scan(voxels=np.random.default_rng(0).integers(0, 9999, (8, 9, 10)).astype(np.int16))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(UnreadableScanError) as caught:
        check_scan(path)
    assert_readable(caught.value, path, "damaged", "again")


@pytest.mark.parametrize(
    ("name", "content", "found", "remedy"),
    [
        ("zero.nii.gz", b"", "0 bytes", "download it again"),
        ("other.nii.gz", gzip.compress(b"hello" * 200), "no NIfTI header", "convert it"),
        ("page.nii.gz", b"<!DOCTYPE html><html>" * 50, "no gzip data", "rename it to end in .nii, or copy"),
        ("page.nii", b"<!DOCTYPE html><html>" * 50, "no NIfTI header", "convert it"),
        ("short.nii", b"\x5c\x01\x00\x00", "no NIfTI header", "convert it"),
        ("packed.nii", gzip.compress(b"hello" * 200), "gzip data", "rename it to end in .nii.gz"),
    ],
    ids=["empty", "packed text", "web page, .nii.gz", "web page, .nii", "too short", "packed, .nii"],
)
def test_a_file_that_is_no_nifti_is_refused(tmp_path, assert_readable, name, content, found, remedy):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnreadableScanError) as caught:
        check_scan(path)
    assert_readable(caught.value, path, found, remedy)


def test_a_plain_file_under_a_gz_name_is_to_be_renamed(write_scan, assert_readable):
    path = write_scan("scan.nii").rename(write_scan("scan.nii.gz"))
    with pytest.raises(UnreadableScanError) as caught:
        check_scan(path)
    assert_readable(caught.value, path, "no gzip data", "rename it to end in .nii")


def test_missing_files_dangling_links_and_folders_are_named(tmp_path, assert_readable):
    (tmp_path / "link.nii").symlink_to(tmp_path / "gone.nii")
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    for name in ("missing.nii.gz", "link.nii", "loop.nii"):
        with pytest.raises(MissingFileError) as caught:
            check_scan(tmp_path / name)
        assert_readable(caught.value, tmp_path / name, "no such file", "path")
    folder = tmp_path / "folder.nii.gz"
    folder.mkdir()
    with pytest.raises(UnreadableScanError) as unreadable:
        check_scan(folder)
    assert_readable(unreadable.value, folder, "a folder", "files in it")


def test_half_of_a_pair_and_analyze_are_to_be_converted(tmp_path, assert_readable):
    for kind, name in ((nib.Nifti1Pair, "pair.hdr"), (nib.AnalyzeImage, "analyze.hdr")):
        nib.save(kind(np.zeros((4, 4, 4), np.int16), np.eye(4)), tmp_path / name)
        with pytest.raises(UnreadableScanError) as caught:
            check_scan(tmp_path / name)
        assert_readable(caught.value, tmp_path / name, "hdr/.img pair" if "pair" in name else "no NIfTI", "convert it")


@pytest.mark.parametrize(
    ("shape", "found", "remedy"),
    [
        ((8, 9), "2D data of shape 8×9", "stack"),
        ((8, 9, 1), "8×9×1", "stack"),
        ((1, 9, 8), "1×9×8", "stack"),
        ((8, 9, 10, 5), "5 volumes in 4D data", "save the wanted volume"),
        ((1, 1, 1, 1, 3), "3 volumes in 5D data", "save the wanted volume"),
    ],
)
def test_other_than_one_volume_of_3d_is_refused(write_scan, assert_readable, shape, found, remedy):
    path = write_scan(voxels=np.zeros(shape, np.float32))
    with pytest.raises(UnreadableScanError) as caught:
        check_scan(path)
    assert_readable(caught.value, path, found, remedy)


def test_the_wanted_number_of_channels_is_accepted(write_scan, assert_readable):
    path = write_scan(voxels=np.arange(8 * 9 * 10 * 4, dtype=np.float32).reshape(8, 9, 10, 4))
    check_scan(path, num_channels=4)
    with pytest.raises(UnreadableScanError, match="wanted 2 volumes"):
        check_scan(path, num_channels=2)


@pytest.mark.parametrize(
    ("dtype", "found"),
    [
        (np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), "RGB"),
        (np.complex64, "complex"),
        (np.complex128, "complex"),
    ],
)
def test_voxels_that_are_no_single_number_are_refused(write_scan, assert_readable, dtype, found):
    path = write_scan(voxels=np.zeros((8, 9, 10), dtype))
    with pytest.raises(UnreadableScanError) as caught:
        check_scan(path)
    assert_readable(caught.value, path, found, "grey-value")


def test_an_unknown_data_type_is_refused(patch_header, assert_readable):
    path = patch_header(70, "<h", 9999)
    with pytest.raises(UnreadableScanError) as caught:
        check_scan(path)
    assert_readable(caught.value, path, "no readable NIfTI header", "again")


@pytest.mark.parametrize("spacing_mm", [-1.5, 0.0, float("nan"), float("inf")])
def test_a_spacing_that_nibabel_would_repair_silently_is_refused(patch_header, assert_readable, spacing_mm):
    path = patch_header(84, "<f", spacing_mm)
    with pytest.raises(UnreadableScanError) as caught:
        check_scan(path)
    assert_readable(caught.value, path, "spacing", "export it again")


@pytest.mark.parametrize("row", [(0, 0, 0, 0), (0, 1, 0, 0), (float("nan"), 0, 0, 0)], ids=["zero", "dependent", "NaN"])
def test_a_singular_affine_is_refused(patch_header, assert_readable, row):
    path = patch_header(280, "<4f", *row)  # srow_x; srow_y is (0, 1.5, 0, -20)
    with pytest.raises(UnreadableScanError) as caught:
        check_scan(path)
    assert_readable(caught.value, path, "the singular affine", "export it again")


def test_a_scan_without_orientation_gives_a_warning(patch_header, caplog):
    check_scan(patch_header(252, "<2h", 0, 0))
    assert "no orientation" in caplog.text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_some_voxels_that_are_no_number_are_counted(write_scan, caplog, value):
    voxels = np.random.default_rng(0).random((8, 9, 10)).astype(np.float32)
    voxels[0, 0, :7] = value
    path = write_scan(voxels=voxels)
    check_scan(path)
    counts = (7, 0) if np.isnan(value) else (0, 7)
    assert f"{path}: found {counts[0]} NaN and {counts[1]} infinite voxels of 720" in caplog.text


def test_voxels_that_are_all_nan_are_refused(write_scan, assert_readable):
    path = write_scan(voxels=np.full((8, 9, 10), np.nan, np.float32))
    with pytest.raises(UnreadableScanError) as caught:
        check_scan(path)
    assert_readable(caught.value, path, "720 NaN", "export it again")


@pytest.mark.parametrize("value", [0, -1024])
def test_a_constant_image_gives_a_warning(write_scan, caplog, value):
    check_scan(write_scan(voxels=np.full((8, 9, 10), value, np.int16)))
    assert f"the same value {value} " in caplog.text


def test_a_constant_image_is_refused_where_contrast_is_needed(write_scan, assert_readable):
    path = write_scan(voxels=np.full((8, 9, 10), -1024, np.int16))
    with pytest.raises(UnreadableScanError) as caught:
        check_scan(path, need_contrast=True)
    assert_readable(caught.value, path, "the same value -1024 in every voxel", "export it again")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u1", "i1", "<u2", ">f4", "<f8"])
def test_every_scalar_type_and_byte_order_passes_in_silence(write_scan, caplog, dtype, kind):
    caplog.set_level(logging.WARNING)
    voxels = np.random.default_rng(0).integers(0, 99, (8, 9, 10)).astype(dtype)
    check_scan(write_scan("scan.nii", voxels, kind=kind))
    check_scan(write_scan("scan.nii.gz", voxels, kind=kind))
    assert not caplog.records


def test_axes_of_length_one_behind_the_third_pass(write_scan):
    path = write_scan(voxels=np.arange(720, dtype=np.int16).reshape(8, 9, 10, 1))
    check_scan(path)
    assert Scan(path).shape == (8, 9, 10)


@pytest.mark.parametrize(
    "name",
    [
        "with space.nii.gz",
        "composed_ü.nii.gz",
        "decomposed_u\u0308.nii.gz",
        'it\'s "quoted".nii',
        "$HOME.nii",
        "-x.nii",
        "@x.nii.gz",
        "%x.nii.gz",
        "ct.1.2.nii.gz",
        "SCAN.NII.GZ",
        "n" * 200 + ".nii.gz",
    ],
)
def test_no_name_is_special(write_scan, name):
    check_scan(write_scan(name))


def test_a_suffix_of_mixed_case_that_nibabel_cannot_open_is_to_be_renamed(write_scan, assert_readable):
    path = write_scan("scan.Nii")
    if path.with_name("scan.nii").exists():
        pytest.skip("the file system does not tell upper from lower case")
    with pytest.raises(UnreadableScanError) as caught:
        check_scan(path)
    assert_readable(caught.value, path, "mixed case", "rename")


def test_random_damage_ends_in_a_sentence_or_passes(write_scan):
    path = write_scan("scan.nii")
    content = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    with np.errstate(all="ignore"):
        for _ in range(300):
            damaged = bytearray(content)
            for _ in range(chance.choice([1, 2, 8])):
                damaged[chance.randrange(352)] = chance.choice([0, 127, 128, 255])
            path.write_bytes(damaged)
            try:
                check_scan(path)
            except ToolsError:
                refused += 1
    assert refused > 50
