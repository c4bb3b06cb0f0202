# SPDX-License-Identifier: Apache-2.0
"""What a person looks at after a run: previews, volumes, learning curves and tables."""

from __future__ import annotations

from tools.reports.curves import plot_learning_curve
from tools.reports.preview import write_preview
from tools.reports.reconstruction import plot_reconstruction
from tools.reports.tables import format_markdown, format_table, write_volume_table
from tools.reports.volumes import measure_volumes_ml

__all__ = [
    "format_markdown",
    "format_table",
    "measure_volumes_ml",
    "plot_learning_curve",
    "plot_reconstruction",
    "write_preview",
    "write_volume_table",
]
