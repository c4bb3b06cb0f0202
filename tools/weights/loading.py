# SPDX-License-Identifier: Apache-2.0
"""Loading of weights into a network: with a report of what matched, or refused with what did not."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from tools.errors import CheckpointError
from tools.files import compute_sha256
from tools.hardware import is_main_process
from tools.networks.patch_merging import AUTO, choose_form
from tools.weights.classes import compare_classes
from tools.weights.files import read_weights
from tools.weights.layouts import OWN, TIMM
from tools.weights.matching import APPROXIMATELY, match
from tools.weights.options import check_names, read_inflation, read_path
from tools.weights.origins import RUN, find_origin
from tools.weights.parts import choose_layout, complete_report
from tools.weights.report import MatchReport

logger = logging.getLogger(__name__)

Network = TypeVar("Network", bound=nn.Module)


def load(
    network: Network,
    path: str | Path,
    layout: str = "auto",
    *,
    complete: bool = False,
    allow_missing: str | None = None,
    allow_unused: str | None = None,
    source_grid: Sequence[int] | None = None,
    source_heads: int | None = None,
    inflation: Mapping[str, str] | None = None,
    patch_merging: str = AUTO,
    report_dir: str | Path | None = None,
) -> Network:
    """Load the weights in `path` into `network` and tell what became of every tensor, or refuse them.

    The layout of the file (see `tools.weights.layouts`) says which part of the network it must fill; all of that part
    must be there and fit. Half-precision files are converted to the network's own precision. A Swin transformer gets
    the patch merging that its weights were trained with, MONAI's own networks too.

    Args:
        network: the network to fill, changed in place.
        path: a checkpoint, see `read_state_dict`.
        layout: name of the file's layout; `auto`: found by the names in it.
        complete: whether every tensor of the network must come from the file, exactly, as inference needs it.
        allow_missing: pattern of names in the network that may keep their first values all the same, such as
            `stem.*|fusion.*` to finetune a variant from the plain network.
        allow_unused: pattern of names in the file that may be left out all the same, such as a head that no layout
            knows.
        source_grid: patches along X, Y, Z that the file's position table is for, where they form no cube.
        source_heads: attention heads of the file's network, where it is known to have others than such networks do.
        inflation: arguments of `Inflation`, for 2D weights.
        patch_merging: the form that the weights were trained with, for files of which nothing tells it; a network that
            names one itself counts as much.
        report_dir: folder for `weights.json`, the report in full.

    Returns:
        `network`, so that a config can write `network: {_target_: tools.weights.load, ...}`.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is unreadable or does not fit; its text says what was found and what to do.
        ConfigValueError: if an argument is wrong.
    """
    path = read_path("path", path)
    settings = read_inflation(inflation)
    state_dict, facts = read_weights(path)
    sha256 = compute_sha256(path)
    layout = choose_layout(layout, facts, len(state_dict), path)
    classes = compare_classes(path, facts, complete)
    values, report = match(
        network,
        state_dict,
        layout,
        complete=complete,
        allow_missing=allow_missing,
        allow_unused=allow_unused,
        source_grid=source_grid,
        source_heads=source_heads,
        inflation=settings,
        patch_merging=patch_merging,
        origin=find_origin(path, state_dict, facts, sha256),
        source=str(path),
        classes=classes,
    )
    if classes is not None:
        report.remarks.append(f"output layer {classes.describe()}")
        logger.info("%s: output layer %s", path, classes.describe())
    complete_report(report, facts, path, sha256)
    object.__setattr__(network, "weights_source", (str(path), sha256))  # which inference tells in its report
    if report_dir is not None and is_main_process():
        report.write(report_dir)
    return _fill(network, values, report, complete)


def fill(network: Network, offered: Mapping[str, Tensor], source: str | Path) -> Network:
    """Load the state dict of a run of this project, all of it; `source` is named in messages.

    Raises:
        CheckpointError: if it belongs to another network.
    """
    values, report = match(network, offered, OWN.name, complete=True, origin=RUN, source=str(source))
    return _fill(network, values, report, complete=True)


def initialize(network: Network, path: str | Path | None, resume: bool = False, **options: object) -> Network:
    """Start training from the weights in `path`, or from the random initialisation when `path` is None.

    Args:
        network: the network to fill, changed in place.
        path: a checkpoint in any layout, or None; `timm`: what timm has for the encoder, downloaded if need be.
        resume: whether training goes on from its own state, so that nothing need be said of random weights.
        options: those of `load`.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is unreadable or does not fit.
        ConfigValueError: if an option does not exist or makes no sense.
        DownloadError: if timm's weights cannot be had.
    """
    known = [name for name in inspect.signature(load).parameters if name not in ("network", "path")]
    check_names(options.keys(), known, "network, the weights to start from")
    read_inflation(options.get("inflation"))
    if path is None:
        if not resume:
            logger.info("training starts from random weights")
        return network
    path = read_path("pretrained", path)
    if str(path) == TIMM.name:
        from tools.weights.timm_models import fetch_timm  # locks files, which Windows does in another way

        path = fetch_timm(network)
    return load(network, path, **options)  # type: ignore[arg-type]


def _fill(network: Network, values: Mapping[str, Tensor], report: MatchReport, complete: bool) -> Network:
    if not report.accepted:
        logger.error("%s", report)
        raise refuse(report, complete)
    if report.patch_merging is not None:
        choose_form(network, report.patch_merging)
    network.load_state_dict({**network.state_dict(), **values})
    if report.norm_epsilon is not None:
        # with MONAI's 1e-5 the blocks of DINOv2 drift from the 2D network's by 2e-4, with this by 1e-5
        for module in getattr(network, "vit", nn.Module()).modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = report.norm_epsilon
    if is_main_process():
        logger.info("%s", report.summarize() if complete else report)
    return network


def refuse(report: MatchReport, complete: bool) -> CheckpointError:
    """Return the error for weights that do not fit: what was found, what was wanted, what to do."""
    found = [f"{report.num_loaded} of {report.num_tensors} tensors that fit"]
    if report.misshapen:
        name, shapes = next(iter(report.misshapen.items()))
        found.append(f"{len(report.misshapen)} of another shape ({name} {shapes})")
    if report.missing:
        found.append(f"{len(report.missing)} missing ({report.missing[0]})")
    if report.unexpected and not report.misshapen:
        found.append(f"{len(report.unexpected)} unknown ({report.unexpected[0]})")
    if complete and report.fresh:
        name, classes = next(iter(report.fresh.items()))
        found.append(f"another output layer ({classes})")
    if complete and report.untouched:
        found.append(f"nothing for {len(report.untouched)} others ({report.untouched[0]})")
    approximate = [f"{name}: {note}" for name, note in report.reshaped.items() if note.endswith(APPROXIMATELY)]
    if complete and approximate:
        found.append(f"{len(approximate)} that would have to be approximated ({approximate[0]})")
    return CheckpointError(
        report.source,
        ", ".join(found),
        f"the {report.num_tensors} tensors of {report.network} as configured",
        _find_remedy(report, complete),
    )


def _find_remedy(report: MatchReport, complete: bool) -> str:
    """Say which arguments differ between the file's network and this one, if that is the fault."""
    holds = f"the file holds {report.title}"
    if not report.num_loaded:
        return f"{holds}, for {report.family}: give another file, or use that network"
    adapted = () if complete else ("in_channels", "out_channels", "patches", "proj_type")
    differing = [
        f"{name}={value} (here {report.network_description[name]})"
        for name, value in report.description.items()
        if name not in adapted and report.network_description.get(name, value) != value
    ]
    if differing:
        return f"{holds}, with {', '.join(differing)}: set the arguments of network_def so, or give another file"
    if report.unexpected and not (report.missing or report.misshapen):
        return (
            f"{holds}: use the network that has them, or, if they are a head or the like, leave them out with "
            f"allow_unused: {re.escape(report.unexpected[0])}"
        )
    return (
        f"{holds}: use the overlay that belongs to it (models/<name>.yaml), set the arguments of network_def as they "
        "were in training, or give another file"
    )
