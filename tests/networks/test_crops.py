# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools
import logging

import pytest

from tools.errors import ConfigValueError
from tools.networks.crops import fit_roi_size
from tools.networks.swin_unetr import check_sizes


@pytest.mark.parametrize(
    ("roi_size", "fitting"),
    [
        ([96, 96, 96], [96, 96, 96]),
        ([128, 128, 16], [128, 128, 32]),  # acdc
        ([32, 48, 32], [32, 64, 32]),  # msd04_hippocampus
        ([128, 128, 48], [128, 128, 64]),  # msd07_pancreas
        ([16, 32, 32], [32, 32, 64]),  # one token has nothing to be normalized over
        (96, [96, 96, 96]),
    ],
    ids=str,
)
def test_a_crop_is_rounded_up_to_multiples_of_32(roi_size, fitting):
    assert fit_roi_size(roi_size) == fitting


def test_the_network_takes_every_fitted_crop_and_no_smaller_one_of_its_kind():
    for roi_size in itertools.product((1, 16, 31, 32, 33, 48, 64, 95), repeat=3):
        fitted = fit_roi_size(roi_size)
        check_sizes(fitted, feature_size=12)
        assert all(size <= fit for size, fit in zip(roi_size, fitted, strict=True))
        for axis in range(3):
            smaller = [fit - 32 * (other == axis) for other, fit in enumerate(fitted)]
            if all(size <= fit for size, fit in zip(roi_size, smaller, strict=True)):
                with pytest.raises(ConfigValueError):
                    check_sizes(smaller, feature_size=12)


def test_a_changed_crop_is_told_and_another_is_not(caplog):
    caplog.set_level(logging.INFO)
    fit_roi_size([64, 64, 32])
    assert not caplog.records
    fit_roi_size([32, 48, 32])
    assert caplog.messages == [
        "crops have 32×64×32 voxels, not the 32×48×32 of roi_size: Swin UNETR takes multiples of 32"
    ]


@pytest.mark.parametrize("roi_size", [[96, 96], [96, 0, 96], [96, -32, 96], [96, 96.5, 96], "all"], ids=str)
def test_what_is_no_size_is_refused(roi_size):
    with pytest.raises(ConfigValueError, match=r"^roi_size: .*correct --roi_size"):
        fit_roi_size(roi_size)
