# SPDX-License-Identifier: Apache-2.0
"""What a person looks at after a run: previews, volumes and learning curves."""

from __future__ import annotations

from tools.reports.crops import plot_crops
from tools.reports.curves import plot_learning_curve
from tools.reports.preview import write_preview
from tools.reports.reconstruction import plot_reconstruction
from tools.reports.statistics import measure_statistics
from tools.reports.volumes import measure_volumes_ml

__all__ = [
    "measure_statistics",
    "measure_volumes_ml",
    "plot_crops",
    "plot_learning_curve",
    "plot_reconstruction",
    "write_preview",
]
