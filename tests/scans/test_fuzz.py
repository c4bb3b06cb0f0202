# SPDX-License-Identifier: Apache-2.0
"""A sample of tests/fuzz_scans.py: damaged files are read rightly or refused with a sentence, and nothing else."""

from __future__ import annotations

import fuzz_scans
import nibabel as nib
import numpy as np
import pytest


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("damage", "count", "is_right"),
    [(fuzz_scans.damage_headers, 300, False), (fuzz_scans.truncate, 80, True), (fuzz_scans.flip_bits, 80, True)],
)
def test_damage_is_refused_or_does_no_harm(damage, count, is_right, tmp_path):
    source = fuzz_scans.make_file()
    (tmp_path / "scan.nii").write_bytes(source)
    expected = fuzz_scans.CHAIN({"image": str(tmp_path / "scan.nii")})["image"].numpy()
    image = nib.as_closest_canonical(nib.load(tmp_path / "scan.nii"))
    np.testing.assert_allclose(expected[0], np.asanyarray(image.dataobj))
    generator = np.random.default_rng(7)
    counts, faults = fuzz_scans.fuzz(damage(source, count, generator), expected if is_right else None)
    assert faults == []
    assert sum(counts.values()) == count
    assert counts["refused"] > 0
