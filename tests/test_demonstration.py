# SPDX-License-Identifier: Apache-2.0
"""The demonstration ends well with every committed model that has embedded scans."""

from __future__ import annotations

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from tools.bundles import BUNDLES
from tools.demonstration import EMBEDDED, demonstrate
from tools.errors import MissingFileError

MODELS = [
    (path.parents[1].name, path.stem)
    for path in sorted(BUNDLES.glob("*/models/*.yaml"))
    if (EMBEDDED / path.stem).is_dir()
]
LOWEST_DICE = {"openkbp_hn": 0.5}  # small organs in voxels of 4 mm


@pytest.mark.parametrize(("bundle", "card"), MODELS)
def test_demo_segments_the_embedded_scans_well(bundle, card, tmp_path):
    text = demonstrate(bundle, card, tmp_path)
    dice = float(next(line.split()[-1] for line in text.splitlines() if line.startswith("mean Dice")))
    assert dice > LOWEST_DICE.get(card, 0.8)
    scans = sorted((EMBEDDED / card / "imagesTr").glob("*.nii.gz"))
    assert scans
    for scan in scans:
        name = scan.name.removesuffix(".nii.gz")
        source, segmentation = nib.load(scan), nib.load(tmp_path / f"{name}_seg.nii.gz")
        assert segmentation.shape == source.shape
        np.testing.assert_array_equal(segmentation.affine, source.affine)
        assert segmentation.get_data_dtype() == np.uint8
        assert (tmp_path / f"{name}_seg.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "volumes.csv").read_text().splitlines()) == 1 + len(scans)


def test_a_model_that_does_not_exist_is_refused_with_those_that_do(tmp_path):
    with pytest.raises(MissingFileError, match="msd04_hippocampus"):
        demonstrate("unetr_btcv", "msd99", tmp_path)


def test_the_command_line_refuses_an_unknown_bundle_in_one_sentence():
    command = [sys.executable, "-m", "tools", "demo", "--bundle", "unter_btcv"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "'unter_btcv'" in result.stderr
    assert "unetr_btcv" in result.stderr
