# SPDX-License-Identifier: Apache-2.0
"""The demonstration ends well, or with a sentence."""

from __future__ import annotations

import pytest
from demonstrations import check_demo

from tools.demonstration import demonstrate
from tools.errors import MissingFileError


@pytest.mark.costs(processes=1)
@pytest.mark.numeric
@pytest.mark.usefixtures("commands_in_forks")
def test_demo_segments_the_embedded_scans_well(tmp_path):
    check_demo("unetr_btcv", None, tmp_path)  # of all other models: tests/contract


def test_a_model_that_does_not_exist_is_refused_with_those_that_do(tmp_path):
    with pytest.raises(MissingFileError, match="msd04_hippocampus"):
        demonstrate("unetr_btcv", "msd99", tmp_path)
