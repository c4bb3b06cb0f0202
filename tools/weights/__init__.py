# SPDX-License-Identifier: Apache-2.0
"""Network weights: read without running code, load with proof, save whole or not at all."""

from tools.weights.files import read_checkpoint, read_state_dict, save_checkpoint
from tools.weights.loading import fill, initialize, load

__all__ = ["fill", "initialize", "load", "read_checkpoint", "read_state_dict", "save_checkpoint"]
