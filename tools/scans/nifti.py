# SPDX-License-Identifier: Apache-2.0
"""What is wrong with one scan, said before any time is spent on it."""

from __future__ import annotations

import functools
import gzip
import itertools
import logging
import math
import zlib
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from tools.channels import list_channel_files
from tools.errors import MissingFileError, UnreadableScanError

logger = logging.getLogger(__name__)

# what nibabel, gzip and numpy raise on bytes that are no sound NIfTI file; found by changing random header bytes
_READ_ERRORS = (
    ImageFileError,
    HeaderDataError,
    WrapStructError,
    zlib.error,
    EOFError,
    OSError,
    ArithmeticError,
    ValueError,
    LookupError,
    MemoryError,
)
# spatial codes 1 (metre) and 3 (micron) of NIfTI's xyzt_units; files that leave the unit unknown (0) mean mm too
_UNIT_MM = {1: 1e3, 3: 1e-3}
_ROUNDED, _CONTRADICTING = 0.01, 0.1  # of a spacing
_LARGEST_SHIFT = 0.5  # of a voxel, between the two forms of a header; rounding passes
_DEFLATE_LIMIT = 1032  # deflate cannot shrink data by more than this factor
_CONVERT = "convert it to a single .nii.gz file of one 3D volume"
_STACK = "stack the slices of the series into one volume"
_FETCH = "copy or download it again"


def get_unit_mm(image: nib.Nifti1Image) -> float:
    """Return the length in mm of the unit of the affine, which the NIfTI header states as `xyzt_units`."""
    return _UNIT_MM.get(int(image.header["xyzt_units"]) & 0b111, 1.0)  # the higher bits are the unit of time


def find_affine_mm(image: nib.Nifti1Image) -> np.ndarray:
    """Return where voxels lie, in mm: the sform if its code is above 0, else the qform, else the spacing alone."""
    affine = np.array(image.affine)
    affine[:3] *= get_unit_mm(image)
    return affine


def read_header(path: str | Path, num_channels: int | None = 1) -> nib.Nifti1Image:
    """Return a scan whose header is sound; its voxels are not read.

    Args:
        path: a `.nii` or `.nii.gz` file, NIfTI-1 or NIfTI-2.
        num_channels: how many volumes the file must hold, None for any number; axes of length 1 behind the third are
            ignored.

    Raises:
        MissingFileError: if there is no such file.
        UnreadableScanError: if it is no NIfTI file of 3D scalar volumes with a usable grid, or ends too early.
    """
    path = Path(path)
    try:
        header = _read_raw_header(path)
        offset, shape = header.get_data_offset(), header.get_data_shape()
        dtype = header.get_data_dtype()
    except _READ_ERRORS as error:
        raise UnreadableScanError(path, f"no readable NIfTI header ({error})", "a NIfTI file", _FETCH) from error
    _check_header(path, header, shape, dtype, num_channels)
    # a header can promise more than memory holds: compare with the file's size before anything is allocated
    needed, size = offset + math.prod(shape) * dtype.itemsize, path.stat().st_size
    if needed > size * (_DEFLATE_LIMIT if _is_gzip(path) else 1):
        raise _make_short_file_error(path, f"{size:,} of at least {needed:,} bytes")
    try:
        # not nib.load: it guesses the kind from the first 1024 bytes, and wrongly so where they cannot be unpacked
        image = (nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image).from_filename(path)
        affine = image.affine
    except FileNotFoundError as error:  # nibabel looks for x.nii when the file is called x.Nii
        raise UnreadableScanError(path, "a suffix of mixed case", ".nii or .nii.gz", "rename it") from error
    except _READ_ERRORS as error:
        raise UnreadableScanError(path, f"no readable NIfTI header ({error})", "a NIfTI file", _FETCH) from error
    if header.get_data_offset() < header.sizeof_hdr:
        found, wanted = f"voxels that begin at byte {header.get_data_offset()}", f"{header.sizeof_hdr} or more"
        raise UnreadableScanError(path, f"{found}, inside the header (vox_offset)", wanted, "correct the header")
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise UnreadableScanError(
            path, f"the singular affine {affine.tolist()}", "an invertible one", "export it again from its source"
        )
    _compare_spacing(path, header, affine)
    _compare_forms(path, image)
    if header["qform_code"] == 0 and header["sform_code"] == 0:
        _warn_once(f"{path}: found no orientation (qform and sform code 0); axes are taken as LAS")
    return image


def check_scan(path: str | Path, num_channels: int | None = 1, *, need_contrast: bool = False) -> None:
    """Raise if a scan cannot be segmented; warn of voxels that are no number and of a constant image.

    All voxels are read once: only that shows whether a compressed file is complete.

    Args:
        path: a `.nii` or `.nii.gz` file, or the first of several, see `list_channel_files`.
        num_channels: how many volumes the scan must hold, None for any number.
        need_contrast: whether to refuse a constant image, from which nothing can be learned.

    Raises:
        MissingFileError: if there is no such file.
        UnreadableScanError: if `read_header` refuses it, its data are damaged, or no voxel is a finite number.
    """
    path = Path(path)
    files = list_channel_files(path, num_channels or 1)
    if len(files) > 1:
        for file in files:
            check_scan(file, need_contrast=need_contrast)
        return
    image = read_header(path, num_channels)
    voxels = read_voxels(path, image, scaled=False)
    if voxels.dtype.kind == "f":
        finite = np.isfinite(voxels)
        if not finite.all():
            nan_count = int(np.isnan(voxels).sum())
            infinite_count = voxels.size - int(finite.sum()) - nan_count
            voxels = voxels[finite]
            found = f"{nan_count} NaN and {infinite_count} infinite voxels of {finite.size}"
            if not voxels.size:
                raise UnreadableScanError(path, found, "finite intensities", "export it again from its source")
            logger.warning("%s: found %s; the result may be wrong around them", path, found)
    smallest = voxels.min()
    if smallest == voxels.max():
        found = f"the same value {smallest * image.dataobj.slope + image.dataobj.inter:g} in every voxel"
        if need_contrast:
            raise UnreadableScanError(path, found, "grey values that differ", "export it again from its source")
        logger.warning("%s: found %s; expect an empty result", path, found)


def load_scan(path: str | Path, num_channels: int = 1) -> nib.Nifti1Image:
    """Return a scan with its voxels in memory, `(H, W, D)` or `(H, W, D, C)`, and its grid in mm.

    The place of the voxels is what the file says: the sform if its code is above 0, else the qform, else the spacing
    alone. The spacing in the header (pixdim) never decides. Units are applied. The file is read to its end, and the
    checksum of a compressed one compared.

    Args:
        path: a `.nii` or `.nii.gz` file, or the first of several with a channel each, see `list_channel_files`.
        num_channels: how many the network takes.

    Raises:
        MissingFileError: if there is no such file.
        UnreadableScanError: if `read_header` refuses it, or its data are damaged.
    """
    image = read_header(path, num_channels=None)
    voxels = read_voxels(path, image)
    voxels = voxels.reshape(*image.shape[:3], -1)  # ITK writes channels as the fifth axis
    for file in list_channel_files(path, num_channels)[1:]:
        further = read_voxels(file, read_header(file))
        if further.size != voxels[..., 0].size:  # that they lie on one grid is checked by `Scan`
            raise UnreadableScanError(file, f"the shape {further.shape}", f"{voxels.shape[:3]}", "resample it")
        voxels = np.concatenate([voxels, further.reshape(*voxels.shape[:3], 1)], axis=-1)
    voxels = voxels[..., 0] if voxels.shape[3] == 1 else voxels
    loaded = type(image)(voxels, find_affine_mm(image), image.header)
    loaded.header.set_xyzt_units("mm", "sec")
    return loaded


def read_voxels(path: str | Path, image: nib.Nifti1Image, scaled: bool = True) -> np.ndarray:
    """Return the voxels `(H, W, D)` or `(H, W, D, ...)` of a scan and make sure that its file is whole.

    Args:
        path: where `image` was read from.
        image: what `read_header` returned.
        scaled: whether to apply slope and intercept of the header, which gives floats unless they are 1 and 0.

    Raises:
        UnreadableScanError: if the file ends early or is damaged.
    """
    path = Path(path)
    try:
        with _open(path) as stream:
            proxy = type(image).from_stream(stream).dataobj
            voxels = np.asanyarray(proxy) if scaled else proxy.get_unscaled()
            # nibabel stops at the last voxel, but gzip compares the checksum at the end of the file only
            while _is_gzip(path) and stream.read(1 << 20):
                pass
        return voxels
    except EOFError as error:
        raise _make_short_file_error(path, "an incomplete gzip stream") from error
    except _READ_ERRORS as error:
        if "Expected" in str(error) and "got" in str(error):  # how nibabel tells that data are missing
            raise _make_short_file_error(path, "too few voxels") from error
        raise UnreadableScanError(path, f"damaged data ({error})", "a sound NIfTI file", _FETCH) from error


def _read_raw_header(path: Path) -> nib.Nifti1Header:
    """Return the header as it is in the file: on loading nibabel makes a spacing of 0 to 1, and of -1 to 1."""
    if not path.exists():
        raise MissingFileError(path, "no such file", "a NIfTI scan", "correct the path")
    if path.is_dir():
        raise UnreadableScanError(path, "a folder", "a NIfTI file", "give the files in it, or rename the folder")
    if not path.stat().st_size:
        raise UnreadableScanError(path, "an empty file of 0 bytes", "a NIfTI file", _FETCH)
    named_gzip = _is_gzip(path)
    with path.open("rb") as file:
        if named_gzip != (file.read(2) == b"\x1f\x8b"):
            found, suffix = ("no gzip data under a .gz name", ".nii") if named_gzip else ("gzip data", ".nii.gz")
            raise UnreadableScanError(path, found, "a name that fits", f"rename it to end in {suffix}, or {_FETCH}")
    with _open(path) as stream:
        try:
            block = stream.read(nib.Nifti2Header.sizeof_hdr)
        except EOFError as error:
            raise _make_short_file_error(path, "an incomplete header") from error
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if kind.may_contain_header(block):
            header = kind(block[: kind.sizeof_hdr], check=False)
            if header["magic"] != kind.single_magic:
                raise UnreadableScanError(path, "one half of a .hdr/.img pair", "a single-file NIfTI scan", _CONVERT)
            return header
    raise UnreadableScanError(path, "no NIfTI header", "a NIfTI file", _CONVERT)


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _open(path: Path) -> IO[Any]:
    return gzip.open(path) if _is_gzip(path) else path.open("rb")  # type: ignore[return-value]


def _check_header(
    path: Path, header: nib.Nifti1Header, shape: tuple[int, ...], dtype: np.dtype, num_channels: int | None
) -> None:
    """Check kind and grid of a raw header, which nibabel has not repaired."""
    shape_text = "×".join(map(str, shape))
    if dtype.kind not in "iuf":
        kind = "RGB colours" if dtype.names else "complex numbers" if dtype.kind == "c" else f"data type {dtype}"
        raise UnreadableScanError(path, f"{kind} as voxels", "one number per voxel", "export it as a grey-value scan")
    if len(shape) < 3:
        raise UnreadableScanError(path, f"{len(shape)}D data of shape {shape_text}", "a 3D volume", _STACK)
    if num_channels is not None and (volumes := math.prod(shape[3:])) != num_channels:
        raise UnreadableScanError(
            path,
            f"{volumes} volumes in {len(shape)}D data of shape {shape_text}",
            "a single 3D volume" if num_channels == 1 else f"{num_channels} volumes",
            "save the wanted volume as a file of its own, or, if they are the channels of one image, take or train a "
            f"model with in_channels {volumes}",
        )
    if min(shape[:3]) < 2:
        raise UnreadableScanError(path, f"the shape {shape_text}", "at least 2 voxels along each axis", _STACK)
    spacing_mm = header["pixdim"][1:4]
    if not (np.isfinite(spacing_mm).all() and (spacing_mm > 0).all()):
        raise UnreadableScanError(
            path,
            f"the voxel spacing (pixdim) {spacing_mm.tolist()} mm",
            "three positive numbers",
            "correct the header or export it again from its source",
        )


def _compare_spacing(path: Path, header: nib.Nifti1Header, affine: np.ndarray) -> None:
    """Refuse a header whose two spacings differ by more than a tenth, warn if by more than a hundredth."""
    said, meant = header["pixdim"][1:4].astype(float), np.linalg.norm(affine[:3, :3], axis=0)
    difference = float(np.abs(said / meant - 1).max())
    if difference <= _ROUNDED:
        return
    said_text, meant_text = (" x ".join(f"{length:.4g}" for length in lengths) for lengths in (said, meant))
    found = f"a spacing of {said_text} (pixdim) beside one of {meant_text} (affine)"
    if difference > _CONTRADICTING:
        raise UnreadableScanError(path, found, "one spacing", "correct the header or export it again from its source")
    _warn_once(f"{path}: found {found}; that of the affine is taken")


def _compare_forms(path: Path, image: nib.Nifti1Image) -> None:
    """Refuse a header whose two forms exchange left and right, warn where they put a voxel in two places."""
    header = image.header
    if header["qform_code"] <= 0 or header["sform_code"] <= 0:
        return
    try:
        qform, sform = header.get_qform(), header.get_sform()
    except _READ_ERRORS:  # no quaternion of a rotation; the sform is taken anyway
        return
    found = f"a qform (code {header['qform_code']}) and a sform (code {header['sform_code']})"
    if np.linalg.det(qform[:3, :3]) * np.linalg.det(sform[:3, :3]) < 0:
        remedy = "correct the one that is wrong, or set its code to 0"
        raise UnreadableScanError(path, f"{found} that exchange left and right", "two that agree", remedy)
    corners = np.array([*itertools.product(*((0, size - 1) for size in image.shape[:3]), (1,))]).T
    shift = float(np.linalg.norm((qform - sform)[:3] @ corners, axis=0).max())
    if shift > _LARGEST_SHIFT * np.linalg.norm(sform[:3, :3], axis=0).min():
        apart = f"{shift * get_unit_mm(image):.4g} mm apart"
        _warn_once(f"{path}: found {found} that put the same voxel up to {apart}; the sform is taken")


@functools.lru_cache(maxsize=4096)
def _warn_once(text: str) -> None:
    """Log a warning, once a process: a header is read for its check, for the voxels, the result and the picture."""
    logger.warning("%s", text)


def _make_short_file_error(path: Path, found: str) -> UnreadableScanError:
    return UnreadableScanError(path, f"that the file ends early ({found})", "a complete NIfTI file", _FETCH)
