# SPDX-License-Identifier: Apache-2.0
"""A bundle and one of its models as a zip that needs nothing else of this repository."""

from tools.release.exports import export

__all__ = ["export"]
