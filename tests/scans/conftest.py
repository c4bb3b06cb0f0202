# SPDX-License-Identifier: Apache-2.0
"""Small NIfTI files with any header."""

from scan_files import assert_readable, patch_header, write_scan

__all__ = ["assert_readable", "patch_header", "write_scan"]
