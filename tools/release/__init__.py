# SPDX-License-Identifier: Apache-2.0
"""A bundle and one of its models as a zip that needs nothing else of this repository."""

from tools.release.exports import export, export_model

__all__ = ["export", "export_model"]
