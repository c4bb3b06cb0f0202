# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from tools.errors import GeometryMismatchError, LabelValueError, MissingFileError, UnreadableScanError
from tools.reports import write_preview
from tools.reports.colours import pick_colour

LABELS = ["background", "marker", "cube", "absent"]
OBLIQUE = np.array([[0.75, 0, -0.38, 12], [0.22, -1.5, 0.85, -40], [0.16, 2.1, 0.6, 8], [0, 0, 0, 1]])

Pair = tuple[Path, Path]
WritePair = Callable[..., Pair]


@pytest.fixture
def write_pair(tmp_path: Path) -> WritePair:
    """Give a function that writes a scan and its label map: a marker at the right-anterior-superior end, a cube."""

    def write(
        affine: np.ndarray | None = None,
        axcodes: str | None = None,
        voxels: np.ndarray | None = None,
        labels: np.ndarray | None = None,
    ) -> Pair:
        if voxels is None:
            voxels = np.random.default_rng(0).normal(100, 20, (30, 26, 22)).astype(np.float32)
        if labels is None:
            labels = np.zeros(voxels.shape, np.uint8)
            labels[24:28, 20:24, 15:20] = 1
            labels[10:18, 8:16, 6:16] = 2
        paths = []
        for name, array in (("scan.nii.gz", voxels), ("scan_seg.nii.gz", labels)):
            image = nib.Nifti1Image(array, np.diag([1.5, 1.5, 2, 1]) if affine is None else affine)
            if axcodes:
                image = image.as_reoriented(nib.orientations.axcodes2ornt(axcodes))
            path = tmp_path / (axcodes or "source") / name
            path.parent.mkdir(exist_ok=True)
            nib.save(image, path)
            paths.append(path)
        return paths[0], paths[1]

    return write


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float, str]]:
    """Return the texts of a figure as they are written, with their places from the lower left corner."""
    texts: list[tuple[float, float, str]] = []
    write_text = Figure.text

    def record(figure: Figure, x: float, y: float, text: str, **style: object) -> object:
        texts.append((x, y, text))
        return write_text(figure, x, y, text, **style)

    monkeypatch.setattr(Figure, "text", record)
    return texts


def draw(pair: Pair, **options: object) -> np.ndarray:
    path = pair[1].with_suffix(".png")
    write_preview(*pair, LABELS, path, **options)
    return np.asarray(Image.open(path))


def find_colour(picture: np.ndarray, value: int) -> np.ndarray:
    """Return where the picture has exactly the colour of a class, `(points, 2)`, rows and columns."""
    colour = np.round(np.multiply(to_rgb(pick_colour(value)), 255))
    # the legend below the planes holds the colour too
    return np.argwhere((picture == colour).all(axis=-1)[:-75])


def test_preview_is_a_small_png_of_150_dpi(write_pair: WritePair):
    pair = write_pair()
    draw(pair)
    path = pair[1].with_suffix(".png")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.mode == "RGB"
        assert picture.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert picture.width > 900
        assert picture.height > 500
    assert 20_000 < path.stat().st_size < 400_000
    assert sorted(file.name for file in path.parent.iterdir()) == ["scan.nii.gz", "scan_seg.nii.gz", "scan_seg.nii.png"]


def test_classes_are_outlined_in_their_colours_and_not_filled(write_pair: WritePair):
    picture = draw(write_pair())
    marker, cube, absent = (find_colour(picture, value) for value in (1, 2, 3))
    assert len(marker) > 300
    assert not len(absent)
    axial = cube[cube[:, 1] < picture.shape[1] // 3]
    (top, left), (bottom, right) = axial.min(axis=0), axial.max(axis=0)
    assert min(bottom - top, right - left) > 50
    inner = picture[top + 3 : bottom - 2, left + 3 : right - 2]
    assert (inner == inner[..., :1]).all()  # grey only


def test_letters_stand_at_the_sides_of_the_patient(write_pair: WritePair, written: list[tuple[float, float, str]]):
    labels = np.zeros((30, 26, 22), np.uint8)
    labels[24:28, 20:24, 15:20] = 1  # right, anterior, superior in the RAS grid
    picture = draw(write_pair(labels=labels))
    height, width = picture.shape[:2]
    letters = [(x * width, (1 - y) * height, text) for x, y, text in written if text in set("RLAPSI")]
    marker = find_colour(picture, 1)
    for first, (left, right, top, bottom) in zip((0, 4, 8), ("RLAP", "RLSI", "APSI"), strict=True):
        places = {text: (x, y) for x, y, text in letters[first : first + 4]}
        assert places[left][0] < places[top][0] < places[right][0]
        assert places[top][1] < places[left][1] < places[bottom][1]
        row, column = marker[(marker[:, 1] > places[left][0]) & (marker[:, 1] < places[right][0])].mean(axis=0)
        assert column < places[top][0]  # nearer to R in the axial and coronal plane, to A in the sagittal one
        assert row < places[left][1]  # nearer to A in the axial plane, to S in the others


@pytest.mark.parametrize("axcodes", ["LPI", "PSR", "IRA"])
def test_the_storage_order_of_the_voxels_does_not_change_the_picture(axcodes: str, write_pair: WritePair):
    np.testing.assert_array_equal(draw(write_pair(axcodes=axcodes)), draw(write_pair(axcodes="RAS")))


@pytest.mark.parametrize("affine", [OBLIQUE, np.diag([-1, 1, 1, 1]) @ OBLIQUE])
def test_oblique_scans_are_drawn_along_their_own_axes(affine: np.ndarray, write_pair: WritePair):
    picture = draw(write_pair(affine=affine))
    assert all(len(find_colour(picture, value)) > 300 for value in (1, 2))


def test_lengths_in_mm_are_the_same_in_all_directions_and_planes(write_pair: WritePair):
    labels = np.zeros((45, 60, 10), np.uint8)
    labels[15:35, 20:40, 4:8] = 2  # a cube of 20 mm
    voxels = np.random.default_rng(0).normal(size=labels.shape).astype(np.float32)
    points = find_colour(draw(write_pair(affine=np.diag([1, 1, 5, 1]), voxels=voxels, labels=labels)), 2)
    columns = np.unique(points[:, 1])
    panels = np.split(columns, np.flatnonzero(np.diff(columns) > 180) + 1)
    assert len(panels) == 3
    for panel in panels:
        rows = points[np.isin(points[:, 1], panel), 0]
        assert np.ptp(rows) == pytest.approx(np.ptp(panel), abs=1)
        assert np.ptp(rows) == pytest.approx(520 / 60 * 20, abs=3)


def test_an_empty_segmentation_is_said_and_the_middle_shown(
    write_pair: WritePair, written: list[tuple[float, float, str]]
):
    draw(write_pair(labels=np.zeros((30, 26, 22), np.uint8)))
    texts = [text for *_, text in written]
    assert "no label found" in texts
    assert "S 22 mm" in texts  # slice 11 of 22, 2 mm each


def test_names_volumes_and_missing_classes_are_listed(write_pair: WritePair, written: list[tuple[float, float, str]]):
    draw(write_pair(), title=r"$\frac$ is no mathematics")
    texts = [text for *_, text in written]
    assert texts[0] == r"$\frac$ is no mathematics"
    assert {"marker", "cube", "Not found: absent"} <= set(texts)
    assert {"0.36 mL", "2.88 mL"} <= set(texts)  # 4 · 4 · 5 and 8 · 8 · 10 voxels of 4.5 mm³
    assert "no label found" not in texts


def test_the_title_is_the_name_of_the_scan_cut_if_too_long(
    write_pair: WritePair, written: list[tuple[float, float, str]]
):
    pair = write_pair()
    draw(pair)
    draw(pair, title="x" * 300)
    titles = [text for _, y, text in written if y > 0.95]
    assert titles == ["scan", f"{'x' * 69}…"]


@pytest.mark.parametrize(
    "voxels",
    [
        np.full((12, 12, 12), 7, np.int16),
        np.full((12, 12, 12), -1000, np.int16),
        np.full((12, 12, 12), np.nan, np.float32),
        np.where(np.indices((12, 12, 12))[0] % 3, np.inf, np.nan).astype(np.float32),
    ],
    ids=["constant", "air", "NaN", "infinite"],
)
def test_a_scan_without_contrast_is_drawn(voxels: np.ndarray, write_pair: WritePair):
    labels = np.zeros(voxels.shape, np.uint8)
    labels[4:8, 4:8, 4:8] = 1
    assert len(find_colour(draw(write_pair(voxels=voxels, labels=labels)), 1)) > 300


def test_threads_draw_the_same_pictures_as_one(write_pair: WritePair, tmp_path: Path):
    pair = write_pair()
    expected = draw(pair)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda path: write_preview(*pair, LABELS, path), paths))
    for path in paths:
        np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)


def test_of_several_channels_the_first_is_drawn(write_pair: WritePair):
    pair = write_pair()
    expected = draw(pair)
    image = nib.load(pair[0])
    voxels = np.asanyarray(image.dataobj)
    nib.save(nib.Nifti1Image(np.stack([voxels, np.flip(voxels, 0)], axis=-1), image.affine), pair[0])
    np.testing.assert_array_equal(draw(pair), expected)


def test_a_scan_that_is_not_3d_is_refused(write_pair: WritePair, tmp_path: Path):
    scan_path, segmentation_path = write_pair()
    nib.save(nib.Nifti1Image(np.zeros((30, 26), np.int16), np.eye(4)), scan_path)
    with pytest.raises(UnreadableScanError, match="3D volume"):
        write_preview(scan_path, segmentation_path, LABELS, tmp_path / "preview.png")
    assert not (tmp_path / "preview.png").exists()


def test_a_trailing_axis_of_length_one_is_dropped(write_pair: WritePair):
    pair = write_pair()
    expected = draw(pair)
    for path in pair:
        image = nib.load(path)
        image = nib.Nifti1Image(np.asanyarray(image.dataobj)[..., None], image.affine)
        nib.save(image, path)
    np.testing.assert_array_equal(draw(pair), expected)


@pytest.mark.parametrize(
    ("shape", "shift_mm", "value", "error"),
    [
        ((30, 26, 21), 0, 1, GeometryMismatchError),
        ((30, 26, 22), 1, 1, GeometryMismatchError),
        ((30, 26, 22), 0, 4, LabelValueError),
    ],
)
def test_a_segmentation_that_does_not_fit_is_refused(
    shape: tuple[int, int, int],
    shift_mm: float,
    value: int,
    error: type[Exception],
    write_pair: WritePair,
    tmp_path: Path,
):
    scan_path, segmentation_path = write_pair()
    affine = nib.load(scan_path).affine
    affine[0, 3] += shift_mm
    nib.save(nib.Nifti1Image(np.full(shape, value, np.uint8), affine), segmentation_path)
    with pytest.raises(error, match="scan_seg"):
        write_preview(scan_path, segmentation_path, LABELS, tmp_path / "preview.png")


def test_a_missing_file_is_named(write_pair: WritePair, tmp_path: Path):
    scan_path, _ = write_pair()
    with pytest.raises(MissingFileError, match=r"none\.nii"):
        write_preview(scan_path, tmp_path / "none.nii", LABELS, tmp_path / "preview.png")
