# SPDX-License-Identifier: Apache-2.0
"""Comparison of numbers that were computed in two ways, on any processor."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_equal_to_scale(found: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    """Assert that no value differs by more than `relative` times the largest magnitude of `expected`.

    Each processor adds numbers up in an order of its own. What a sum of float32 loses thereby is a share, 6e-8 a step,
    of the numbers that go in, not of what comes out, which may be near 0. Shape and type have to be the same.
    """
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(
        found,
        expected,
        rtol=0,
        atol=relative * scale,
        msg=lambda text: f"{text}\nAllowed: {relative:g} of the largest expected magnitude, {scale:g}",
    )
