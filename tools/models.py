# SPDX-License-Identifier: Apache-2.0
"""Models by name: those of this repository, the folder of a training, an exported zip or its folder, the Hub's."""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tools.archives import name_bundle, unpack
from tools.bundles import BUNDLES, CARDS, DEMO_CARD, list_bundles
from tools.configs.files import RUN_OVERLAY, find_overlay, read_config
from tools.errors import ConfigValueError, MissingFileError
from tools.files import compute_sha256

logger = logging.getLogger(__name__)

CARD_KEYS = ("title", "modality", "licence", "source", "citation")  # of the data that a model was trained on
HUB = "hf://"
_SMALLEST, _LARGEST = 0.6, 1.5  # of the extent of what a model has seen
_WEIGHTS = ("best.pt", "last.pt")


@dataclass(frozen=True)
class Model:
    """One network with its weights and all that is needed to apply it.

    Attributes:
        name: as people give it.
        bundle: the folder of its bundle.
        overlay: the config file that makes the bundle this model, None if the bundle is one already.
        checkpoint: the weights.
    """

    name: str
    bundle: Path
    overlay: Path | None
    checkpoint: Path

    def list_configs(self, *names: str) -> list[Path]:
        """Return config files of its bundle by their names without suffix, and the overlay behind them."""
        files = [path for name in names if (path := find_config(self.bundle, name)) is not None]
        return files + ([self.overlay] if self.overlay else [])

    @cached_property
    def config(self) -> dict[str, Any]:
        """What its `inference.yaml` says with the overlay, not resolved; keys of the overlay as it spells them."""
        values: dict[str, Any] = {}
        for path in self.list_configs("inference"):
            values |= read_config(path)
        return values

    @property
    def overrides(self) -> dict[str, Any]:
        """What must be told beside its configs where it is not where its overlay says: `checkpoint`, `bundle_root`."""
        found: dict[str, Any] = {}
        said = str(self.config.get("checkpoint", ""))
        if not said.startswith("$") and Path(said) != self.checkpoint:
            found["checkpoint"] = self.checkpoint
        if self.config.get("bundle_root") not in (".", str(self.bundle)):
            found["bundle_root"] = self.bundle
        return found

    @cached_property
    def card(self) -> dict[str, Any]:
        """What is known of the data that it was trained on: `title`, `modality`, `licence`, `extent_mm`, ..."""
        if "card" in self.config:
            return dict(self.config["card"])
        if self.overlay is not None and self.overlay.name == RUN_OVERLAY:
            return {}  # not that of the bundle, which its data need not be
        card = CARDS / f"{self.overlay.stem}.yaml" if self.overlay else None
        if card and card.is_file():
            return dict(read_config(card)["card"])
        metadata = json.loads((self.bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
        image = metadata["network_data_format"]["inputs"]["image"]
        return {"title": metadata["name"], "modality": image.get("modality", "not stated"), **metadata.get("card", {})}

    @property
    def structures(self) -> list[str]:
        """The names of what it segments."""
        return list(self.config["labels"])[1:]

    @cached_property
    def dice(self) -> float | None:
        """The mean Dice that was measured with it on the validation cases, None if nobody did."""
        if self.overlay is None:
            page = self.bundle / "docs" / "README.md"
        elif self.overlay.name == RUN_OVERLAY:
            record = self.overlay.with_name("training.json")
            best = json.loads(record.read_text(encoding="utf-8")).get("best") if record.is_file() else None
            return best["dice"] if best else None
        else:
            page = self.overlay.with_suffix(".md")
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
        found = re.search(r"^ +mean +([0-9.]+)", text, re.MULTILINE)
        return float(found[1]) if found else None

    def compare_extent(self, size_mm: Sequence[float]) -> str | None:
        """Return how a scan's extent to the right, front and head differs from those it has seen, None if it does not.

        Args:
            size_mm: of the scan.
        """
        extent = self.card.get("extent_mm")
        if extent is None:
            return None
        low, high = extent
        if all(a * _SMALLEST <= size <= b * _LARGEST for size, a, b in zip(size_mm, low, high, strict=True)):
            return None
        return (
            f"has seen scans of {spell_extent(extent)} mm, and this one has {' x '.join(f'{x:.0f}' for x in size_mm)}"
        )


def spell_extent(extent_mm: Sequence[Sequence[float]]) -> str:
    """Spell an extent to the right, front and head, such as 31-43 x 40-59 x 24-47."""
    return " x ".join(f"{low:.0f}-{high:.0f}" for low, high in zip(*extent_mm, strict=True))


def list_models() -> list[Model]:
    """Return the models of this repository, by bundle and name."""
    return [
        Model(f"{name}/{path.stem}", BUNDLES / name, path, path.with_suffix(".safetensors"))
        for name in list_bundles()
        for path in sorted((BUNDLES / name / "models").glob("*.yaml"))
    ]


def find_model(name: str, option: str = "--model") -> Model:
    """Return a model by its name or its place.

    Args:
        name: `unetr_btcv/msd04_hippocampus`; shorter, `unetr_btcv` or `openkbp_hn`, where that tells one; the folder of
            a training; an exported zip, or the folder in it; `hf://USER/NAME`.
        option: which gave it, for messages.

    Raises:
        ConfigValueError: if there is no such model, or several.
        MissingFileError: if its weights are not there.
        BundleError: if a zip is no bundle.
    """
    if name.startswith(HUB):
        return _read_folder(_download(name.removeprefix(HUB)), name)
    path = Path(name).expanduser()
    known = list_models()
    chosen = [model for model in known if model.name == name or name in model.name.split("/")]
    if len(chosen) > 1:  # a bundle has a first choice, as in the demonstration
        chosen = [model for model in chosen if model.name == f"{name}/{DEMO_CARD}"] or chosen
    if len(chosen) == 1:
        return _require_weights(chosen[0])
    if len(chosen) > 1:
        names = ", ".join(model.name for model in chosen)
        raise ConfigValueError(option, repr(name), "the name of one model", f"give one of {names}")
    if path.is_dir() and name.strip():
        return _read_folder(path.absolute(), name)
    if path.is_file() and path.suffix.lower() == ".zip":
        return _read_folder(_unpack_once(path), name)
    full_names = [model.name for model in known]
    parts = (part for full in full_names for part in full.split("/"))
    near = difflib.get_close_matches(name, [*full_names, *parts], n=1)
    wanted = "the name of a model, the folder of a training, or an exported zip or its folder"
    remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(full_names)}"
    raise ConfigValueError(option, repr(name), wanted, remedy.removesuffix("?"))


def find_owner(checkpoint: Path) -> Model | None:
    """Return the model that a file of weights is part of, by what lies beside it; None if nothing tells."""
    folder, overlay = checkpoint.absolute().parent, find_overlay(checkpoint.absolute())
    if overlay is not None and overlay.name == RUN_OVERLAY:
        root = Path(str(read_config(overlay).get("bundle_root", "")))
        return Model(str(folder), root if (root / "configs").is_dir() else BUNDLES / root.name, overlay, checkpoint)
    root = folder.parent
    if folder.name != "models" or find_config(root, "inference") is None:
        return None
    if overlay is not None:
        return Model(f"{root.name}/{overlay.stem}", root, overlay, checkpoint)
    return Model(root.name, root, None, checkpoint) if checkpoint.name == "model.pt" else None


def find_config(bundle: Path, name: str) -> Path | None:
    """Return the config file of a bundle with a name without suffix, YAML first; None if it has none."""
    files = [bundle / "configs" / f"{name}{suffix}" for suffix in (".yaml", ".json")]
    return next((path for path in files if path.is_file()), None)


def _read_folder(folder: Path, name: str) -> Model:
    """Return the model of a training's folder, or of a bundle's."""
    overlay = folder / RUN_OVERLAY
    if overlay.is_file():
        values = read_config(overlay)
        root = Path(str(values.get("bundle_root", "")))
        if not (root / "configs").is_dir():  # the repository has moved, or this is another machine
            root = BUNDLES / root.name
        if not (root / "configs").is_dir():
            remedy = "correct bundle_root in that file"
            raise MissingFileError(
                overlay, f"the bundle {values.get('bundle_root')}, which is not there", "a bundle", remedy
            )
        weights = next((path for path in (folder / file for file in _WEIGHTS) if path.is_file()), folder / _WEIGHTS[0])
        return _require_weights(Model(name, root, overlay, weights))
    if find_config(folder, "inference") is not None:
        return _require_weights(Model(name, folder, None, folder / "models" / "model.pt"))
    inside = sorted(path.parent.name for path in folder.glob(f"*/{RUN_OVERLAY}"))
    remedy = (
        f"give one of its folders: {', '.join(inside)}" if inside else "give the folder of a training or of a bundle"
    )
    raise MissingFileError(folder, f"no {RUN_OVERLAY} and no configs/inference.json in it", "a model", remedy)


def _require_weights(model: Model) -> Model:
    if not model.checkpoint.is_file():
        remedy = "train first, or give another model"
        if model.overlay is None and model.bundle.parent == BUNDLES:
            remedy = f"fetch them with `voxseg weights fetch {model.bundle.name}`, or name one of its models"
        raise MissingFileError(model.checkpoint, f"no such file, the weights of {model.name}", "weights", remedy)
    return model


def _unpack_once(path: Path) -> Path:
    """Return the folder of an exported zip among the unpacked ones of this user; its content names it."""
    name = name_bundle(path)
    folder = _find_cache() / compute_sha256(path)[:16] / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            unpack(path, Path(place) / name)
            (Path(place) / name).rename(folder)
    return folder


def _find_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "voxseg"


def _download(name: str) -> Path:
    """Return the folder of a bundle on the Hugging Face Hub, fetched once."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    from tools.errors import DownloadError

    try:
        # the package reads the variable only when it is imported
        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
        folder = Path(snapshot_download(name, endpoint=endpoint, cache_dir=_find_cache() / "hub"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DownloadError(
            f"{HUB}{name}", reason, "a repository with a bundle", "correct the name, or try later"
        ) from error
    logger.warning("%s%s: a bundle holds code, which is run; take only those that you trust", HUB, name)
    inner = sorted(path.parents[1] for path in folder.glob("*/configs/inference.json"))
    return inner[0] if inner and not (folder / "configs").is_dir() else folder
