# SPDX-License-Identifier: Apache-2.0
"""MONAI Label: its packages, its server with bundles of this repository and of others."""

from tools.labelling.environment import install
from tools.labelling.server import start

__all__ = ["install", "start"]
