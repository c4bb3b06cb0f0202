# SPDX-License-Identifier: Apache-2.0
"""Which models were made for a scan, and the best of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tools.channels import list_channel_files
from tools.models import Model, spell_extent

if TYPE_CHECKING:
    from tools.scans import ScanFacts  # which imports nibabel; a list of models needs none


def fits(model: Model, scan: ScanFacts) -> str | None:
    """Return why a model is not made for a scan, None if it is, as far as header and intensities tell."""
    modality = model.card.get("modality", "not stated")
    if modality in ("CT", "MR") and modality != scan.modality:
        if modality == "CT":
            span = " to ".join(f"{scan.percentiles[end]:g}" for end in (0, -1))
            return f"is for CT in Hounsfield units, and the intensities, {span}, are none"
        return f"is for {modality}, and the intensities look like {scan.modality}"
    wanted, found = model.config.get("in_channels", 1), math.prod(scan.shape[3:])
    if found == 1 and wanted != 1:
        found = len(list_channel_files(scan.path, wanted))
    if wanted != found:
        return f"takes {wanted} volumes in a file, and there are {found}"
    return model.compare_extent(scan.extent_mm)


def choose_model(models: Sequence[Model], scan: ScanFacts) -> tuple[Model | None, str]:
    """Return the model for a scan and why it is that one, or None and what each model needs.

    Of several for the same structures that fit, the one with the highest Dice is taken.

    Args:
        models: to choose from.
        scan: the scan.
    """
    reasons = {model.name: fits(model, scan) for model in models}
    fitting = [model for model in models if reasons[model.name] is None]
    if fitting and len({tuple(model.structures) for model in fitting}) == 1:
        best = max(fitting, key=lambda model: model.dice or 0)
        others = [model.name for model in fitting if model is not best]
        measured = f", Dice {best.dice:.3f}" if best.dice else ""
        beside = f"; --model takes another: {', '.join(others)}" if others else ""
        return best, f"{best.name}: {describe_need(best)}{measured}{beside}"
    told = [f"{model.name} {reasons[model.name] or f'fits: {describe_need(model)}'}" for model in models]
    return None, "; ".join(told)


def describe_need(model: Model) -> str:
    """Return in a few words what a model segments in which scans."""
    structures = model.structures
    named = ", ".join(structures[:5]) + (f" and {len(structures) - 5} more" if len(structures) > 5 else "")
    extent = model.card.get("extent_mm")
    return f"{named} in {model.card.get('modality', '?')}" + (f" of {spell_extent(extent)} mm" if extent else "")
