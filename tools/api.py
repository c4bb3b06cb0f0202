# SPDX-License-Identifier: Apache-2.0
"""Models in a Python program: three lines from a scan to its segmentation.

from tools.api import load_model

model = load_model("unetr_btcv/msd04_hippocampus")
segmentation = model.segment("scan.nii.gz")  # a nibabel image
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from monai.bundle import ConfigParser
from monai.inferers import Inferer
from monai.transforms import Compose
from torch import nn

from tools.checks import check_device
from tools.commands.choice import choose_model
from tools.datasets.scans import make_absolute
from tools.errors import ConfigValueError
from tools.inference import ScanSegmenter
from tools.models import Model, find_model, list_models
from tools.scans import NiftiImage, find_names, load_image, read_facts, save_image

Scan: TypeAlias = str | Path | NiftiImage
Result = TypeVar("Result")


class LoadedModel:
    """A model with its network in memory; it may segment any number of scans.

    Attributes:
        name: as it was asked for.
        labels: names of the values of a segmentation, background first.
        network: maps `(B, C, H, W, D)` to logits `(B, K, H, W, D)`.
        preprocessing: from `{"image": path}` to the image that the inferer takes.
        inferer: applies the network to a whole volume, `inferer(image[None], network)`.
        postprocessing: from `{"pred": logits, "image": image}` to labels in the grid of the scan, and a file of them.
        device: where the network is.
    """

    def __init__(self, model: Model, device: str | torch.device = "auto") -> None:
        self.name = model.name
        self._folder = tempfile.TemporaryDirectory(prefix="segmentation-")  # lives as long as the model
        parser = ConfigParser(ConfigParser.load_config_files([str(path) for path in model.list_configs("inference")]))
        changes: dict[str, Any] = {"bundle_root": str(model.bundle), "dataset_dir": self._folder.name}
        changes |= {"output_dir": self._folder.name, "preview": False}
        changes |= {key: str(value) for key, value in model.overrides.items()}
        if "window_inferer" in parser:
            changes["window_inferer#progress"] = False
        if device != "auto":
            check_device(device)
            changes["device"] = str(device)
        parser.update(changes)
        parser["dataset"] = {"_target_": "Dataset", "data": [], "transform": "@preprocessing"}
        self._segmenter: ScanSegmenter = parser.get_parsed_content("evaluator")
        self.labels: list[str] = self._segmenter.labels
        self.network: nn.Module = self._segmenter.network.eval()
        self.preprocessing: Compose = self._segmenter.preprocessing
        self.inferer: Inferer = self._segmenter.inferer
        self.postprocessing: Compose = self._segmenter.postprocessing
        self.device: torch.device = self._segmenter.device

    def segment(self, scan: Scan) -> NiftiImage:
        """Return the segmentation of a scan, uint8 in the scan's grid, with the names of its values in the header.

        Args:
            scan: a NIfTI file, or an image of nibabel.

        Raises:
            ToolsError: the reason why it cannot be segmented.
        """
        return _with_path(scan, self._folder.name, self._segment)

    def _segment(self, path: Path) -> NiftiImage:
        name = secrets.token_hex(8)
        self._segmenter.segment(name, path)
        written = self._segmenter.writer.locate(name)
        try:
            return load_image(written)
        finally:
            written.unlink()


def load_model(name: str, device: str | torch.device = "auto") -> LoadedModel:
    """Return a model by its name, the folder of its training, or an exported zip or its folder.

    Args:
        name: see `tools.models.find_model`.
        device: auto, cpu, cuda, cuda:N.

    Raises:
        ToolsError: if there is no such model, or its weights do not fit.
    """
    return LoadedModel(find_model(name, "model"), device)


def segment(scan: Scan, model: str | LoadedModel | None = None, device: str | torch.device = "auto") -> NiftiImage:
    """Return the segmentation of a scan, uint8 in the scan's grid, with the names of its values in the header.

    Args:
        scan: a NIfTI file, or an image of nibabel.
        model: a name, or what `load_model` gave, which several scans can share; None: the one for such scans.
        device: auto, cpu, cuda, cuda:N; that of a loaded model stays.

    Raises:
        ToolsError: the reason why it cannot be segmented.
    """
    if isinstance(model, LoadedModel):
        return model.segment(scan)
    if model is not None:
        return load_model(model, device).segment(scan)
    with tempfile.TemporaryDirectory() as folder:
        chosen, why = _with_path(scan, folder, lambda path: choose_model(list_models(), read_facts(path)))
    if chosen is None:
        raise ConfigValueError("model", f"none that fits alone ({why})", "one", "give its name")
    return LoadedModel(chosen, device).segment(scan)


def read_names(segmentation: NiftiImage) -> dict[int, str]:
    """Return the names of the values of a segmentation that this package made.

    Raises:
        ConfigValueError: if its header has none.
    """
    names = find_names(segmentation)
    if names is None:
        raise ConfigValueError("segmentation", "no names in its header", "one that this package made", "segment again")
    return names


def _with_path(scan: Scan, folder: str, action: Callable[[Path], Result]) -> Result:
    """Call with the file of a scan; an image in memory is written to a folder for that long."""
    if isinstance(scan, (str, Path)):
        return action(make_absolute(scan))
    path = Path(folder) / f"{secrets.token_hex(8)}.nii.gz"
    save_image(scan, path)
    try:
        return action(path)
    finally:
        path.unlink()
