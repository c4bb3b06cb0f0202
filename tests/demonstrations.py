# SPDX-License-Identifier: Apache-2.0
"""What a demonstration must leave behind."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from tools.bundles import choose_model
from tools.demonstration import EMBEDDED, demonstrate

LOWEST_DICE = {"openkbp_hn": 0.5}  # small organs in voxels of 4 mm


def check_demo(bundle: str, card: str | None, output_dir: Path) -> None:
    """Run the demonstration of a committed model, by default the bundle's, and look at all that it writes."""
    text = demonstrate(bundle, card, output_dir)
    card = card or choose_model(bundle, "--card")
    dice = float(next(line.split()[-1] for line in text.splitlines() if line.startswith("mean Dice")))
    assert dice > LOWEST_DICE.get(card, 0.8)
    scans = sorted((EMBEDDED / card / "imagesTr").glob("*.nii.gz"))
    assert scans
    for scan in scans:
        name = scan.name.removesuffix(".nii.gz")
        source, segmentation = nib.load(scan), nib.load(output_dir / f"{name}_seg.nii.gz")
        assert segmentation.shape == source.shape
        np.testing.assert_array_equal(segmentation.affine, source.affine)
        assert segmentation.get_data_dtype() == np.uint8
        assert (output_dir / f"{name}_seg.png").read_bytes().startswith(b"\x89PNG")
    assert len((output_dir / "volumes.csv").read_text().splitlines()) == 1 + len(scans)
