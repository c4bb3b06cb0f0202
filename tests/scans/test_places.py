# SPDX-License-Identifier: Apache-2.0
"""Through the chains of the bundles and through a network: the result lies where the patient lies."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from places import KINDS, ORDERS, turn, write
from products import cover, thin
from scipy.spatial.transform import Rotation

from tools.api import LoadedModel, load_model
from tools.bundles import BUNDLES
from tools.checks import check_pair
from tools.demonstration import EMBEDDED

NAMES = ["unetr_btcv", "swin_unetr_ssl", "voco_finetune", "inflated_vit_seg"]
# in mm, right, front and head: two balls of different size, so that a mirror image is another one
CENTRES, RADII = np.array([[-14.0, 3, -4], [15, -5, 8]]), np.array([15.0, 9])
THRESHOLD = 0.5
LEAST_DICE = 0.97


def measure(points: np.ndarray) -> np.ndarray:
    """Return a smooth intensity at points `(..., 3)` in mm: above 0.5 in the left ball, below -0.5 in the right one."""
    distances = np.linalg.norm(points[..., None, :] - CENTRES, axis=-1)
    edges = 1 / (1 + np.exp((distances - RADII) / 1.5))  # soft over 3 mm, 0.5 at the surface
    return edges[..., 0] - edges[..., 1]


def classify(values: np.ndarray) -> np.ndarray:
    return np.where(values > THRESHOLD, 1, np.where(values < -THRESHOLD, 2, 0)).astype(np.uint8)


def find_points(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def write_pair(folder: Path, affine: np.ndarray, shape: tuple[int, int, int], codes: tuple[int, int]) -> dict[str, str]:
    """Write the balls, seen on a grid, with their labels."""
    values = measure(find_points(affine, shape))
    paths = {}
    for key, voxels in (("image", values.astype(np.float32)), ("label", classify(values))):
        image = nib.Nifti1Image(voxels, affine)
        image.set_qform(affine if codes[0] else None, codes[0])
        image.set_sform(affine, codes[1])
        paths[key] = str(folder / f"{key}.nii.gz")
        nib.save(image, paths[key])
    return paths


def measure_dice(found: np.ndarray, truth: np.ndarray) -> list[float]:
    return [2 * ((found == c) & (truth == c)).sum() / ((found == c).sum() + (truth == c).sum()) for c in (1, 2)]


def make_affine(seed: int, sheared: bool) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Return a random turned grid over the balls, its axes in any order and sheared by up to 0.3 where asked for."""
    rng = np.random.default_rng(seed)
    spacing = rng.uniform(0.9, 1.8, 3)
    matrix = Rotation.random(random_state=seed).as_matrix()
    if sheared:
        matrix = matrix @ (np.eye(3) + np.triu(rng.uniform(-0.3, 0.3, (3, 3)), 1))
    matrix = matrix / np.linalg.norm(matrix, axis=0) * spacing
    shape = tuple(map(int, np.ceil(80 / spacing)))
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = -matrix @ (np.array(shape) - 1) / 2 + rng.uniform(-3, 3, 3)
    return affine, shape  # type: ignore[return-value]


def read_config(name: str, file: str) -> ConfigParser:
    """Return a bundle's config for voxels of about 1.2 mm, with intensities as they are."""
    parser = ConfigParser(ConfigParser.load_config_file(BUNDLES / name / "configs" / f"{file}.yaml"))
    labels = {"labels": ["background", "right", "left"], "intensity": [], "foreground_crop": []}
    size = {"image_size": [64, 64]} if "image_size" in parser else {"pixdim": [1.2, 1.2, 1.2]}
    parser.update({**labels, **size, "bundle_root": str(BUNDLES / name)})
    return parser


GRIDS = [(seed, False) for seed in range(20)] + [(seed, True) for seed in range(20, 30)]
# each grid with one bundle a commit
CHAINS = cover(NAMES, GRIDS)


@pytest.mark.parametrize(("name", "grid"), CHAINS, ids=str)
def test_a_segmentation_of_an_oblique_or_sheared_scan_is_the_truth_on_its_grid(name, grid, tmp_path):
    affine, shape = make_affine(*grid)
    pair = write_pair(tmp_path, affine, shape, (0, 1))
    parser = read_config(name, "inference")
    parser.update({"output_dir": str(tmp_path), "dataset_dir": str(tmp_path)})
    data = parser.get_parsed_content("preprocessing")({"image": pair["image"]})
    values = data["image"][0]
    data["pred"] = torch.stack([torch.full_like(values, THRESHOLD), values, -values])
    parser.get_parsed_content("postprocessing")(data)
    written = nib.load(tmp_path / "image_seg.nii.gz")
    np.testing.assert_array_equal(written.affine, nib.load(pair["image"]).affine)
    truth = classify(measure(find_points(written.affine, shape)))
    assert min(measure_dice(np.asanyarray(written.dataobj), truth)) >= LEAST_DICE


@pytest.mark.parametrize(("name", "grid"), CHAINS, ids=str)
def test_image_and_label_of_an_oblique_or_sheared_pair_stay_with_the_patient(name, grid, tmp_path):
    affine, shape = make_affine(*grid)
    data = write_pair(tmp_path, affine, shape, (0, 1))
    parser = read_config(name, "train")
    geometry: Compose = Compose(parser.get_parsed_content("train#geometry"))
    made = geometry(data)
    points = find_points(made["image"].affine.numpy(), made["image"].shape[1:])
    inside = made["image"].numpy()[0]
    truth = measure(points)
    assert np.abs(inside - truth).mean() < 0.01  # of a range of 2; a mirror image is 0.1 off
    assert min(measure_dice(classify(inside), classify(truth))) >= LEAST_DICE
    assert min(measure_dice(made["label"].numpy()[0], classify(truth))) >= 0.93  # by the nearest of coarser voxels
    np.testing.assert_allclose(made["label"].affine.numpy(), made["image"].affine.numpy(), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_whose_headers_round_differently_stays_together(name, tmp_path):
    affine = np.diag([-1.2, 1.2, 1.2, 1.0])  # LAS
    affine[:3, 3] = [36, -36, -36]
    data = write_pair(tmp_path, affine, (61, 61, 61), (0, 1))
    image = nib.load(data["image"])
    image = nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine, image.header)
    image.header["pixdim"][1:4] *= 1.0001  # MONAI's reader takes the qform then, which is said to be none
    nib.save(image, data["image"])
    check_pair(data["image"], data["label"], [0, 1, 2])
    made = Compose(read_config(name, "train").get_parsed_content("train#geometry"))(data)
    found, truth = made["label"].numpy()[0], classify(made["image"].numpy()[0])
    assert min(measure_dice(found, truth)) >= 0.93
    mirrored = measure_dice(found[::-1], truth)
    assert max(mirrored) < 0.6


@pytest.mark.parametrize("name", NAMES)
def test_channels_as_itk_writes_them_are_trained_on_as_channels(name, tmp_path):
    affine = np.diag([1.2, 1.2, 1.2, 1.0])
    data = write_pair(tmp_path, affine, (20, 22, 24), (0, 1))
    voxels = np.random.default_rng(0).normal(size=(20, 22, 24, 1, 4)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, affine), data["image"])
    check_pair(data["image"], data["label"], [0, 1, 2], num_channels=4)
    parser = read_config(name, "train")
    parser.update({"pixdim": [1.2, 1.2, 1.2]} if "pixdim" in parser else {"image_size": [20, 22]})
    made = Compose(parser.get_parsed_content("train#geometry"))(data)
    np.testing.assert_allclose(made["image"].numpy(), np.moveaxis(voxels[..., 0, :], -1, 0), atol=1e-5)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("unetr_btcv/msd04_hippocampus", "cpu")


@pytest.fixture(scope="module")
def scan() -> nib.Nifti1Image:
    return nib.load(EMBEDDED / "msd04_hippocampus" / "imagesTr" / "hippocampus_011.nii.gz")


@pytest.fixture(scope="module")
def expected(model: LoadedModel, scan: nib.Nifti1Image) -> np.ndarray:
    """The segmentation of the scan as it is, RAS."""
    found = nib.as_closest_canonical(model.segment(scan))
    voxels = np.asanyarray(found.dataobj)
    assert set(np.unique(voxels)) == {0, 1, 2}
    return voxels


@pytest.mark.numeric
@pytest.mark.parametrize(("order", "kind"), thin(itertools.product(ORDERS, KINDS), 29), ids=str)
def test_a_network_sees_the_same_patient_in_every_order_and_header(order, kind, model, scan, expected, tmp_path):
    path = write(turn(scan, order), tmp_path / "scan.nii.gz", kind)
    found = model.segment(path)
    np.testing.assert_array_equal(found.affine, nib.load(path).affine)
    canonical = nib.as_closest_canonical(found)
    np.testing.assert_allclose(canonical.affine, nib.as_closest_canonical(scan).affine, atol=1e-3)
    assert min(measure_dice(np.asanyarray(canonical.dataobj), expected)) >= 0.999
