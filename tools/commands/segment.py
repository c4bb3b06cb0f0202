# SPDX-License-Identifier: Apache-2.0
"""`segment`: scans in, segmentations out, by the `inference.yaml` of a model."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tools.bundles import run_bundle
from tools.commands.choice import choose_model, describe_need, fits
from tools.datasets import list_scans
from tools.datasets.scans import make_absolute
from tools.errors import ConfigValueError, ToolsError, spell_option
from tools.files import write_json
from tools.models import Model, find_model, list_models

if TYPE_CHECKING:
    from tools.scans import ScanFacts

logger = logging.getLogger(__name__)


def prepare(
    inputs: Sequence[str],
    output_dir: str | Path,
    model: str | None = None,
    device: str = "auto",
    roi_subset: Sequence[str] = (),
    save_probabilities: bool = False,
    statistics: bool = False,
    preview: bool = True,
    report: str | None = None,
    overwrite: bool = False,
    force: bool = False,
    quiet: bool = False,
) -> Callable[[], int]:
    """Return what segments scans, a function that returns the exit status of the run: 0, or 1 if some failed.

    Args:
        inputs: scans and folders of scans.
        output_dir: folder of the results.
        model: its name or place; None: the one that was made for such scans.
        device: auto, cpu, cuda, cuda:N.
        roi_subset: names of the structures to keep; none: all.
        save_probabilities: write those, too.
        statistics: write volume, mean intensity and whether the border cuts a structure off.
        preview: draw a picture of each result.
        report: a JSON file about the run.
        overwrite: segment again what is done already.
        force: segment with a model for another modality all the same.
        quiet: print what went wrong only.

    Raises:
        ToolsError: if the call cannot be understood; nothing is written then.
    """
    start, scans = time.monotonic(), list_inputs(inputs)
    chosen = find_model(model) if model is not None else choose_for(scans)
    if (num_channels := chosen.config.get("in_channels", 1)) != 1:
        scans = list_inputs(inputs, num_channels)
    if model is not None and not force:
        require_fit(chosen, scans)
    output = make_absolute(output_dir)
    if output.is_file():
        raise ConfigValueError("--output", f"the file {output}", "a folder for the results", "give another name")
    overrides: dict[str, Any] = {"datalist": scans, "output_dir": output, **chosen.overrides}
    if len(inputs) == 1:
        overrides = {"dataset_dir": make_absolute(inputs[0])} | overrides
        del overrides["datalist"]
    if device != "auto":
        overrides["device"] = device
    if roi_subset:
        overrides["structures"] = match_names(roi_subset, chosen)
    asked = {"save_probabilities": save_probabilities, "statistics": statistics, "overwrite": overwrite}
    overrides |= {key: True for key, value in asked.items() if value}
    if not preview:
        overrides["preview"] = False

    def run() -> int:
        with _show(quiet) as stream:
            status = run_bundle(chosen.list_configs("inference"), overrides, stream, chosen.bundle)
        if report is not None:
            write_report(make_absolute(report), output, chosen, scans, time.monotonic() - start)
        return status

    return run


def list_inputs(inputs: Sequence[str], num_channels: int = 1) -> list[str]:
    """Return the scans of files and folders, each once; of several channels the first file."""
    if not inputs:
        raise ConfigValueError("--input", "nothing", "a scan or a folder of scans", "give -i SCAN_OR_FOLDER")
    with spell_option("--dataset_dir", "--input"):
        found = [entry["image"] for place in inputs for entry in list_scans(place, num_channels=num_channels)]
    return list(dict.fromkeys(found))


def choose_for(scans: Sequence[str]) -> Model:
    """Return the model that was made for such a scan as the first one is.

    Raises:
        ConfigValueError: if there is none, or some for different structures; it lists what each needs.
    """
    models, facts = list_models(), read_first(scans)
    for known in models:
        logger.debug("%s %s", known.name, fits(known, facts) or "fits")
    model, why = choose_model(models, facts)
    if model is None:
        raise ConfigValueError("--model", f"none for {facts.path.name} that fits alone ({why})", "one", "give --model")
    logger.info("model %s", why)
    return model


def read_first(scans: Sequence[str]) -> ScanFacts:
    """Return the facts of the first scan that can be read; the run tells of the others.

    Raises:
        ToolsError: what is wrong with the first one, if none can be read.
    """
    from tools.scans import read_facts

    first: ToolsError | None = None
    for scan in scans:
        try:
            return read_facts(scan)
        except ToolsError as error:
            first = first or error
    assert first is not None  # there is at least one scan
    raise first


def require_fit(model: Model, scans: Sequence[str]) -> None:
    """Refuse a model for another modality, or another number of volumes; another extent is told in the run.

    Raises:
        ConfigValueError: with what the model is for.
    """
    facts = read_first(scans)
    reason, scan = fits(model, facts), facts.path
    if reason is None or not reason.startswith(("is for", "takes")):  # the extent is a matter of degree
        return
    wanted = f"a scan as it knows them ({describe_need(model)})"
    remedy = "take another model (`models` lists them), or give --force to segment it all the same"
    raise ConfigValueError("--model", f"{model.name}, which {reason}: {scan.name}", wanted, remedy)


def match_names(names: Sequence[str], model: Model) -> list[str]:
    """Return structures as the model spells them; letter case and `_` for a blank do not count.

    Raises:
        ConfigValueError: if it has none of that name.
    """
    known = {_fold(name): name for name in model.structures}
    for name in names:
        if _fold(name) not in known:
            near = difflib.get_close_matches(_fold(name), known, n=1)
            remedy = f"write {known[near[0]]}" if near else "choose among those"
            wanted = f"one or more of {', '.join(model.structures)}, which {model.name} segments"
            raise ConfigValueError("--roi_subset", repr(name), wanted, remedy)
    return [known[_fold(name)] for name in names]


def write_report(path: Path, output: Path, model: Model, scans: Sequence[str], seconds: float) -> None:
    """Write what was done as JSON, for programs."""
    run = json.loads((output / "run.json").read_text(encoding="utf-8")) if (output / "run.json").is_file() else {}
    done: Mapping[str, Any] = {name: scan for name, scan in run.get("scans", {}).items() if scan["state"] == "done"}
    content = {
        "model": model.name,
        "device": run.get("device"),
        "input": list(scans),
        "output": str(output),
        "classes": run.get("labels"),
        "runtime_seconds": round(seconds, 1),
        "output_files": [str(output / scan["segmentation"]) for scan in done.values()],
        "failed": {name: scan["reason"] for name, scan in run.get("scans", {}).items() if scan["state"] == "failed"},
    }
    write_json(path, content)


def _fold(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


@contextlib.contextmanager
def _show(quiet: bool) -> Iterator[BinaryIO | None]:
    """Give the place of what the run prints: None, the screen, or a file of which the errors are shown at the end."""
    if not quiet:
        yield None
        return
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        text = file.read().decode(errors="replace")
        sys.stderr.write("".join(f"{line}\n" for line in text.splitlines() if line.startswith("Error: ")))
