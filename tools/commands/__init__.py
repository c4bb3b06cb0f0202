# SPDX-License-Identifier: Apache-2.0
"""What people type: each command finds its model and its files, and runs the bundle; it computes nothing itself."""
