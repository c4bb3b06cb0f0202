# SPDX-License-Identifier: Apache-2.0
"""Network weights: read without running code, loaded with a report of every tensor, saved whole or not at all."""

from tools.weights.files import read_checkpoint, read_state_dict, save_checkpoint
from tools.weights.inflation import Inflation
from tools.weights.layouts import LAYOUTS, Layout
from tools.weights.loading import fill, initialize, load
from tools.weights.matching import describe_network, match
from tools.weights.report import MatchReport

__all__ = [
    "LAYOUTS",
    "Inflation",
    "Layout",
    "MatchReport",
    "describe_network",
    "fill",
    "initialize",
    "load",
    "match",
    "read_checkpoint",
    "read_state_dict",
    "save_checkpoint",
]
