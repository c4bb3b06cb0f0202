# SPDX-License-Identifier: Apache-2.0
"""Shared components of the bundles in `bundles/`; their configs refer to them as `tools.<module>.<name>`."""

__version__ = "0.1.0"
