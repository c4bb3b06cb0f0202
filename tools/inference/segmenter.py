# SPDX-License-Identifier: Apache-2.0
"""Segmentation of a list of scans, one after the other, that survives a bad one and can be run again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import platform
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.data import Dataset, MetaTensor
from monai.inferers import Inferer
from monai.transforms import Compose, LoadImage, LoadImaged, SaveImage, SaveImaged, ScaleIntensityRanged, Spacingd
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from tools import __version__
from tools.channels import list_channel_files
from tools.checks import check_model_settings, find_oddities
from tools.configs import list_keys, read_running
from tools.configs.keys import Role
from tools.datasets import name_results
from tools.errors import (
    CheckpointError,
    ConfigValueError,
    FailedScansError,
    MemoryLimitError,
    UnreadableScanError,
    find_cause,
)
from tools.files import compute_sha256, write_json
from tools.hardware import describe_hardware, find_free_memory_gb, measure_peak_memory_gb
from tools.inference.fingerprints import compute_fingerprint
from tools.inference.progress import WindowProgress, count_passes, spell
from tools.inference.writers import SaveProbabilitiesd, SaveSegmentationd
from tools.models import find_owner
from tools.networks.patch_merging import read_form
from tools.reports import measure_statistics, measure_volumes_ml, write_preview
from tools.scans import Scan
from tools.tables import format_table, write_volume_table

logger = logging.getLogger(__name__)

_FARTHEST_SPACING = 10.0  # times that of the model


class ScanSegmenter:
    """Run preprocessing, network and postprocessing over the scans of a data set and report on each.

    Beside each `<scan>_seg.nii.gz` it writes `<scan>_seg.png`, and for all of them `volumes.csv` (mL) and `run.json`
    (versions, weights, settings; per scan its state, volumes and seconds per stage), rewritten after each scan. A scan
    that is already done with the same weights and settings is skipped; one that fails does not stop the others.

    Args:
        dataset: `data` lists the scans as `{"image": path}`, `transform` is the preprocessing, LoadScand first.
        network: maps `(B, C, H, W, D)` to logits `(B, K, H, W, D)`.
        inferer: applies the network to a whole volume.
        postprocessing: maps `pred`, the logits, to labels in the source grid and writes them (SaveSegmentationd).
        labels: names of the classes, background first.
        output_dir: folder of all results.
        checkpoint: where the weights came from; its hash is noted.
        device: where the network runs.
        amp: mixed precision.
        preview: draw a picture of each result.
        overwrite: segment again what is done already.
        num_channels: how many volumes a scan holds.
        statistics: write `statistics.json`.
    """

    def __init__(
        self,
        dataset: Dataset,
        network: torch.nn.Module,
        inferer: Inferer,
        postprocessing: Compose,
        labels: Sequence[str],
        output_dir: str | Path,
        checkpoint: str | Path,
        device: str | torch.device = "cpu",
        amp: bool = False,
        preview: bool = True,
        overwrite: bool = False,
        num_channels: int = 1,
        statistics: bool = False,
    ) -> None:
        self.scans = list(dataset.data)
        self.preprocessing: Compose = dataset.transform
        self.network = network
        self.inferer = inferer
        self.postprocessing = postprocessing
        self.labels = list(labels)
        self.output_dir = Path(output_dir)
        self.checkpoint = Path(checkpoint).expanduser()  # as the loading of weights does
        self.device = torch.device(device)
        self.amp = amp
        self.preview = preview
        self.overwrite = overwrite
        self.num_channels = num_channels
        self.statistics = statistics
        self.pixdim = _find_pixdim(self.preprocessing)
        scalings = [step for step in self.preprocessing.transforms if isinstance(step, ScaleIntensityRanged)]
        self.model = find_owner(self.checkpoint)
        self._expects_hu = any(step.scaler.a_min < 0 for step in scalings)
        self._num_readers = _count_leading(self.preprocessing, (LoadImage, LoadImaged))
        self._last_writer = _find_last(self.postprocessing, (SaveImage, SaveImaged))
        writer = self.postprocessing.transforms[self._last_writer]
        if not isinstance(writer, SaveSegmentationd):
            raise ConfigValueError(
                "postprocessing", type(writer).__name__, "SaveSegmentationd to write", "use the one of tools.inference"
            )
        self.writer = writer
        self.fingerprint = compute_fingerprint(self.preprocessing, inferer, postprocessing, num_channels)
        self.probability_writers = [step for step in postprocessing.transforms if isinstance(step, SaveProbabilitiesd)]

    def run(self) -> None:
        """Segment all scans.

        Raises:
            ConfigValueError: if a result would replace one of the scans.
            ToolsError: the reason, if there was one scan and it failed.
            FailedScansError: if some of several scans failed; the others are done.
        """
        self.network.eval()
        names = name_results(self.scans)
        self._protect_scans(names)
        self._protect_results(names)
        report = self._begin_report() | {"changes": check_model_settings(self.checkpoint)}
        failures: dict[str, str] = {}
        bar = tqdm(total=len(self.scans), unit="scan", dynamic_ncols=True, disable=not sys.stderr.isatty())
        start_s, num_segmented = time.monotonic(), 0
        with logging_redirect_tqdm(), bar:
            for number, (name, scan) in enumerate(zip(names, self.scans, strict=True), start=1):
                bar.set_description(name)
                source = _identify(scan["image"], self.num_channels)
                done = report["scans"].get(name, {})
                if not self.overwrite and self._is_done(name, done, scan["image"]):
                    logger.info("%s: done already, skipped (--overwrite True would segment it again)", name)
                    self._complete(report, name, done, scan["image"])
                    bar.update()
                    continue
                try:
                    entry = self._segment(name, scan["image"])
                    num_segmented += 1
                    logger.info("%s: %.1f s, in %s", name, sum(entry["seconds"].values()), self.writer.locate(name))
                    to_come_s = (time.monotonic() - start_s) / num_segmented * (len(self.scans) - number)
                    if to_come_s and not sys.stderr.isatty():
                        told = "scan %d of %d, about %s to come at the most"
                        logger.info(told, number, len(self.scans), spell(to_come_s))
                except Exception as error:
                    # one bad scan must not cost the others theirs; it is counted, told and ends the run with status 1.
                    # Only the reason is kept: the error would hold the volumes of the scan in its traceback
                    failures[name] = _explain(error)
                    entry = {"state": "failed", "reason": failures[name]}
                    if len(self.scans) == 1:
                        self._note(report, name, entry | {"source": source})
                        if cause := find_cause(error):
                            raise cause from None
                        raise
                    logger.error("%s: %s", name, failures[name], exc_info=None if find_cause(error) else error)
                if entry["state"] == "done":
                    source["sha256"] = _hash(scan["image"], self.num_channels)
                self._note(report, name, entry | {"source": source})
                bar.update()
        self._log_summary(report, names)
        if failures:
            first, reason = next(iter(failures.items()))
            raise FailedScansError(
                self.output_dir / "run.json",
                f"{len(failures)} of {len(self.scans)} scans that failed, first {first} ({reason})",
                "none",
                "mend or leave out those scans and run the same command again; the others are done",
            )

    def _protect_scans(self, names: Sequence[str]) -> None:
        sources = {Path(scan["image"]).resolve() for scan in self.scans}
        for path in map(self.writer.locate, names):
            if path.resolve() in sources:
                raise ConfigValueError(
                    "--output_dir",
                    f"{path}, both a scan to segment and the result of another one",
                    "results that replace no scan",
                    "give another folder, or list the scans with --datalist",
                )

    def _protect_results(self, names: Sequence[str]) -> None:
        """Refuse to replace the results of another scan that has the same name."""
        previous = {} if self.overwrite else _read_report(self.output_dir / "run.json").get("scans", {})
        for name, scan in zip(names, self.scans, strict=True):
            source = previous.get(name, {}).get("source", {})
            path = Path(scan["image"])
            if not source or not self.writer.locate(name).is_file() or source.get("file") == str(path.resolve()):
                continue
            if path.is_file() and source.get("sha256") == compute_sha256(path):
                continue  # the same scan in another place
            raise ConfigValueError(
                "--output_dir",
                f"{self.writer.locate(name)}, the result of {source.get('file')}",
                f"a folder without the result of another {path.name}",
                "give another folder, or --overwrite True to replace it",
            )

    def _is_done(self, name: str, done: Mapping[str, Any], path: str) -> bool:
        """Tell whether a scan was segmented with the same settings, as it is now, and its files are there."""
        written = [self.writer.locate(name), *(writer.locate(name) for writer in self.probability_writers)]
        if done.get("state") != "done" or not all(file.is_file() for file in written):
            return False
        source, now = done.get("source", {}), _identify(path, self.num_channels)
        same = all(source.get(key) == now[key] for key in ("bytes", "modified_ns"))
        return same or (source.get("bytes") == now["bytes"] and source.get("sha256") == _hash(path, self.num_channels))

    def _complete(self, report: dict[str, Any], name: str, done: Mapping[str, Any], path: str) -> None:
        """Make what is asked for beside a segmentation that is there: numbers and picture need no network."""
        segmentation_path, entry = self.writer.locate(name), dict(done)
        if self.statistics and "statistics" not in done:
            entry["statistics"] = measure_statistics(path, segmentation_path, self.writer.names)
        if self.preview and not _name_preview(segmentation_path).is_file():
            picture = _name_preview(segmentation_path)
            write_preview(path, segmentation_path, self.writer.table, picture, name, done.get("warnings", ()))
        if entry != done:
            self._note(report, name, entry)

    def segment(self, name: str, path: str | Path) -> tuple[dict[str, float], list[str]]:
        """Segment one scan, write the result as that of `name`; return the seconds of each stage, and what was odd.

        Raises:
            ToolsError: the reason why it cannot be segmented.
        """
        path = str(path)
        seconds: dict[str, float] = {}
        data: dict[str, Any] = {"image": path, "name": name}
        with _time(seconds, "read"):
            try:
                data, oddities = self._read(data)
            except Exception as error:  # MONAI wraps what a transform raises
                if cause := find_cause(error):
                    raise cause from None
                raise
        with _time(seconds, "prepare"):
            data = self.preprocessing(data, start=self._num_readers)
        with _time(seconds, "network"):
            data["pred"] = self._predict(data["image"], path, name)
        with _time(seconds, "labels"):
            data = self.postprocessing(data, end=self._last_writer)
        with _time(seconds, "write"):
            self.postprocessing(data, start=self._last_writer)
        return seconds, oddities

    def _segment(self, name: str, path: str) -> dict[str, Any]:
        seconds, oddities = self.segment(name, path)
        segmentation_path = self.writer.locate(name)
        preview_path = _name_preview(segmentation_path)
        try:
            with _time(seconds, "report"):
                volumes_ml = measure_volumes_ml(segmentation_path, self.writer.names)
                numbers = measure_statistics(path, segmentation_path, self.writer.names) if self.statistics else None
                if self.preview:
                    write_preview(path, segmentation_path, self.writer.table, preview_path, name, oddities)
        except BaseException:
            segmentation_path.unlink(missing_ok=True)  # a scan that failed leaves no result that looks like one
            raise
        return {
            "state": "done",
            "segmentation": segmentation_path.name,
            "volumes_ml": volumes_ml,
            "warnings": oddities,
            **({"statistics": numbers} if numbers is not None else {}),
            "seconds": {stage: round(time_s, 3) for stage, time_s in seconds.items()},
            "peak_memory_gb": measure_peak_memory_gb(self.device),  # of the process until now
        }

    def _read(self, data: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        path = data["image"]
        # refuses what LoadImaged would read: time series, slices, colours; then what no network can segment
        scan = Scan(path, self.num_channels)
        self._check_size(scan)
        data = self.preprocessing(data, end=self._num_readers)
        lowest, highest = float(data["image"].min()), float(data["image"].max())
        if lowest == highest:
            raise UnreadableScanError(path, f"the value {lowest:g} in every voxel", "grey values", "leave it out")
        voxels, pixdim = data["image"].numpy(), self.pixdim
        oddities = find_oddities(scan, voxels, self.model, pixdim, self._expects_hu)
        for oddity in oddities:
            logger.warning("%s: %s; do not trust the result before you have looked at it", path, oddity)
        return data, oddities

    def _check_size(self, scan: Scan) -> None:
        """Refuse voxels ten times as fine or coarse as those that the model knows, and what memory does not hold."""
        wanted = self.pixdim
        if wanted is None:
            return
        spacing = np.sort(scan.spacing_mm)
        ratio = spacing / np.sort(np.asarray(wanted, float))
        if ratio.max() < 1 / _FARTHEST_SPACING or ratio.min() > _FARTHEST_SPACING:
            raise UnreadableScanError(
                scan.path,
                f"voxels of {' x '.join(f'{length:.4g}' for length in spacing)} mm",
                f"about the {' x '.join(f'{length:g}' for length in wanted)} mm of the model",
                "correct the units or the spacing in the header, or take another model",
            )
        num_prepared = np.prod(scan.spacing_mm * scan.shape) / np.prod(np.asarray(wanted, float))
        num_source = math.prod(scan.shape)
        # in float32: the volume as it is read and as it is prepared, the logits of all classes in both grids
        needed_gb = 4e-9 * (num_source + num_prepared) * (self.num_channels + len(self.labels))
        free_gb = find_free_memory_gb("cpu")
        if free_gb is not None and needed_gb > free_gb:
            found = f"{num_prepared / 1e6:,.0f} million voxels at the spacing of the model, about {needed_gb:,.1f} GB"
            remedy = "cut the scan to the part of the body, or correct the spacing in its header"
            raise MemoryLimitError(scan.path, found, f"what {free_gb:,.1f} GB of free memory hold", remedy)

    def _predict(self, image: MetaTensor, path: str, name: str) -> torch.Tensor:
        progress = WindowProgress(self.network, name, count_passes(self.inferer, image.shape[1:]))
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=self.amp), progress as network:
            logits = self.inferer(image.as_tensor()[None].to(self.device), network)[0].float()
        if not bool(torch.isfinite(logits).all()):
            raise CheckpointError(
                self.checkpoint,
                f"logits that are not finite for {Path(path).name}",
                "finite ones",
                "run without mixed precision (--amp False), or use other weights",
            )
        return MetaTensor(logits)  # Invertd leaves a plain tensor in the network's grid, with a warning only

    def _begin_report(self) -> dict[str, Any]:
        report: dict[str, Any] = {
            "versions": {
                "tools": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "monai": monai.__version__,
                "nibabel": version("nibabel"),
            },
            "device": str(self.device),
            "hardware": describe_hardware(),
            "amp": self.amp,
            "weights": self._describe_weights(),
            "labels": self.writer.table,
            "fingerprint": self.fingerprint,
            "settings": _read_settings(),
            "scans": {},
        }
        return report | {"scans": _read_previous_scans(self.output_dir / "run.json", report)}

    def _describe_weights(self) -> dict[str, str]:
        merging = read_form(self.network)
        path, sha256 = getattr(self.network, "weights_source", ("", ""))
        if path != str(self.checkpoint):  # not loaded by this project
            sha256 = compute_sha256(self.checkpoint)
        facts = {"file": str(self.checkpoint), "sha256": sha256}
        return facts | ({"patch_merging": merging} if merging else {})

    def _note(self, report: dict[str, Any], name: str, entry: Mapping[str, Any]) -> None:
        report["scans"][name] = entry
        write_json(self.output_dir / "run.json", report)
        volumes = {name: scan["volumes_ml"] for name, scan in report["scans"].items() if scan["state"] == "done"}
        write_volume_table(volumes, self.output_dir / "volumes.csv")
        if self.statistics:
            numbers = {name: scan["statistics"] for name, scan in report["scans"].items() if "statistics" in scan}
            write_json(self.output_dir / "statistics.json", numbers)

    def _log_summary(self, report: Mapping[str, Any], names: Sequence[str]) -> None:
        done = [name for name in names if report["scans"][name]["state"] == "done"]
        if done:
            rows = [[name, *report["scans"][name]["volumes_ml"].values()] for name in done]
            structures = [name for value, name in self.writer.names.items() if value]
            logger.info("volumes in mL\n%s", format_table(["scan", *structures], rows))
        logger.info("%d of %d scans segmented, in %s", len(done), len(names), self.output_dir)
        if memory_gb := measure_peak_memory_gb(self.device):
            logger.info("peak memory %.1f GB", memory_gb)


def _identify(path: str, num_channels: int) -> dict[str, Any]:
    stats = [file.stat() for file in list_channel_files(path, num_channels) if file.is_file()]
    return {
        "file": str(Path(path).resolve()),
        "bytes": sum(stat.st_size for stat in stats) if stats else None,
        "modified_ns": max(stat.st_mtime_ns for stat in stats) if stats else None,
    }


def _hash(path: str, num_channels: int) -> str:
    """Return the SHA-256 of a scan, of several files that of theirs."""
    hashes = [compute_sha256(file) for file in list_channel_files(path, num_channels)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _name_preview(segmentation_path: Path) -> Path:
    return segmentation_path.with_name(segmentation_path.name.removesuffix(".nii.gz") + ".png")


def _find_pixdim(preprocessing: Compose) -> list[float] | None:
    """Return the spacing in mm that a preprocessing makes, None if it makes none."""
    steps = [step for step in preprocessing.transforms if isinstance(step, Spacingd)]
    return [float(length) for length in steps[-1].spacing_transform.pixdim] if steps else None


def _read_settings() -> dict[str, Any]:
    """Return the keys of the config that runs which make a model, for people; references as they are typed."""
    running = read_running()
    roles: tuple[Role, ...] = ("data", "geometry", "network", "inference")
    return {key: running.values[key] for key in list_keys(*roles) if key in running.values} if running else {}


def _explain(error: BaseException) -> str:
    """Return the reason for people if there is one, else the exception that the others were wrapped around."""
    if cause := find_cause(error):
        return str(cause)
    while error.__cause__ is not None:
        error = error.__cause__
    return "".join(traceback.format_exception_only(error)).strip()


def _read_report(path: Path) -> dict[str, Any]:
    """Return an earlier `run.json`, nothing if there is none that can be read."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("scans"), dict):
        logger.warning("%s is not a report of an earlier run; every scan is segmented", path)
        return {}
    return content


def _read_previous_scans(path: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scans of an earlier `run.json` that were done with the same weights, settings and labels."""
    previous = _read_report(path)
    wanted = json.loads(json.dumps(report))  # keys become strings, tuples lists
    for weights in (previous.get("weights", {}), wanted["weights"]):
        weights.pop("file", None)  # the same weights in another place are the same
    if any(previous.get(key) != wanted[key] for key in ("weights", "labels", "fingerprint", "amp")):
        return {}
    return {name: scan for name, scan in previous["scans"].items() if scan.get("state") == "done"}


def _count_leading(transform: Compose, kinds: tuple[type, ...]) -> int:
    count = 0
    while count < len(transform.transforms) and isinstance(transform.transforms[count], kinds):
        count += 1
    return count


def _find_last(transform: Compose, kinds: tuple[type, ...]) -> int:
    for index, step in reversed(list(enumerate(transform.transforms))):
        if isinstance(step, kinds):
            return index
    raise ConfigValueError(
        "postprocessing", "no transform that writes the result", "a SaveSegmentationd at its end", "add one"
    )


@contextlib.contextmanager
def _time(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - start
