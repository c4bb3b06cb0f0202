# SPDX-License-Identifier: Apache-2.0
"""Learning curves of a training."""

from __future__ import annotations


def plot_learning_curve(history, path): ...
