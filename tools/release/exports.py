# SPDX-License-Identifier: Apache-2.0
"""From a bundle, a data set's card and weights to one zip that runs where this repository is not."""

from __future__ import annotations

import io
import json
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigParser

from tools.bundles import BUNDLES, CARDS, REPOSITORY, choose_model, locate_bundle, locate_card
from tools.configs import RUN_OVERLAY, list_keys, read_config
from tools.errors import BundleError, ConfigValueError, MissingFileError
from tools.linting import lint_bundle
from tools.models import CARD_KEYS, Model
from tools.networks.patch_merging import AUTO, read_form
from tools.release.archive import write_archive
from tools.release.configs import merge_files, render_json
from tools.release.documents import describe_metadata, describe_use
from tools.release.sources import PACKAGE, list_sources
from tools.weights import load, read_state_dict

logger = logging.getLogger(__name__)

PINS = REPOSITORY / "requirements.txt"
DEFAULT_CARD = "btcv"  # written out in the configs of every bundle
# configs that stand alone, and with which recipe the weights of a card were made
ALONE = {"inference": "", "train": "{card}", "pretrain": "{card}_pretrain"}


def export(
    bundle: str,
    dataset: str | None = None,
    weights: str | Path | None = None,
    out: str | Path = "exports",
    patch_merging: str = AUTO,
) -> Path:
    """Write `<out>/<name>_v<version>.zip` and its `.sha256`, and return the zip's path.

    The name is that of the bundle, without its default data set, and of the card: `unetr_msd04_hippocampus`. One folder
    of that name holds configs with card and recipe written into them, `models/model.pt`, the part of `tools` that
    bundles need, documents and licences. The same input gives the same bytes.

    Args:
        bundle: name of the bundle.
        dataset: name of the card, or a file like one, `mine.yaml`, that may shape the network too (`network_def#...`),
            or the `model.yaml` of a training, whose folder then gives the name;
            default: that of the bundle's committed model (of several the demo's), or BTCV if `weights` are given.
        weights: a checkpoint of any layout; default: the committed model of the card.
        out: folder of the zip.
        patch_merging: the form that the weights were trained with, where nothing else tells it.

    Raises:
        ConfigValueError: if there is no such bundle or card, or the version is not in the changelogs.
        MissingFileError: if there are no weights, or no such file.
        CheckpointError: if the weights do not fit the network, tensor by tensor.
        BundleError: if what would be in the zip has a fault that `lint` finds, in a card of your own for instance.
    """
    root = locate_bundle(bundle)
    dataset = dataset or (choose_model(bundle, "--dataset") if weights is None else DEFAULT_CARD)
    card_path = Path(dataset).expanduser() if dataset.endswith(".yaml") else locate_card(dataset)
    card = _read_card(card_path)
    overlay = root / "models" / f"{card_path.stem}.yaml"
    weights = overlay.with_suffix(".safetensors") if weights is None else Path(weights).expanduser()
    if not weights.is_file():
        remedy = "give --weights FILE, or --dataset with the name of a committed model"
        raise MissingFileError(weights, "no such file", f"weights for {dataset}", remedy)
    metadata = _state_versions(json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8")))
    _check_version(root, metadata)

    stem = card_path.parent.resolve().name if card_path.name == RUN_OVERLAY else card_path.stem
    name = f"{bundle.removesuffix(f'_{DEFAULT_CARD}')}_{re.sub(r'[^A-Za-z0-9_]+', '_', stem)}"
    files = _merge_configs(root, card_path, overlay)
    config = _resolve(files["configs/inference.yaml"].decode())
    loaded = load(config["network_def"], weights, complete=True, patch_merging=patch_merging)
    if form := read_form(loaded):  # known once the weights are loaded
        files = _merge_configs(root, card_path, overlay, {"patch_merging": form})
        config = _resolve(files["configs/inference.yaml"].decode())
    # a network that is told its form needs no tensors that tell it
    names = config["network_def"].state_dict().keys()
    model = _pack({name: tensor for name, tensor in loaded.state_dict().items() if name in names}, weights)
    page = overlay.with_suffix(".md")
    model_card = page.read_text(encoding="utf-8") if weights == overlay.with_suffix(".safetensors") else None
    metadata = describe_metadata(metadata, card, config, model_card)
    files |= {
        "configs/metadata.json": _encode(json.dumps(metadata, indent=2, ensure_ascii=False) + "\n"),
        "docs/README.md": _encode(describe_use(name, metadata, card, model_card)),
        "docs/data_license.txt": (root / "docs" / "data_license.txt").read_bytes(),
        "LICENSE": (root / "LICENSE").read_bytes(),
        "requirements.txt": _encode(_list_requirements()),
        "models/model.pt": model,
    }
    # of all bundles: programs that use several in one process, as MONAI Label, import `tools` from one of them for all
    configs = [path.read_text(encoding="utf-8") for path in sorted(BUNDLES.glob("*/configs/**/*.yaml"))]
    sources = list_sources(configs)
    files |= {path.relative_to(PACKAGE.parent).as_posix(): path.read_bytes() for path in sources}
    _check(name, files)
    path = Path(out) / f"{name}_v{metadata['version']}.zip"
    write_archive(path, {f"{name}/{file}": content for file, content in files.items()})
    logger.info("%s: %.1f MB, %d files", path, path.stat().st_size / 1e6, len(files))
    return path


def export_model(model: Model, out: str | Path = "exports", patch_merging: str = AUTO) -> Path:
    """Write the zip of a committed model, or of a training by its folder, as `export` does.

    Raises:
        BundleError: if it is an exported bundle already.
    """
    if model.overlay is None:
        raise BundleError(
            model.bundle,
            "a bundle that stands alone already",
            "a training, or a model of this repository",
            "zip its folder",
        )
    if model.overlay.name == RUN_OVERLAY:
        return export(model.bundle.name, str(model.overlay), model.checkpoint, out, patch_merging)
    return export(model.bundle.name, model.overlay.stem, None, out, patch_merging)


def _read_card(path: Path) -> dict[str, str]:
    """Return what a data set's card says about the data."""
    if not path.is_file():
        raise MissingFileError(path, "no such file", "the card of a data set", "correct --dataset")
    card = dict(read_config(path).get("card") or {})
    if absent := [key for key in CARD_KEYS if key not in card]:
        remedy = "add `card: {...}` to it, as the files in tools/datasets have it"
        raise ConfigValueError(str(path), f"no {', '.join(absent)}", f"card with {', '.join(CARD_KEYS)}", remedy)
    return card


def _check_version(root: Path, metadata: Mapping[str, Any]) -> None:
    version, changes = metadata["version"], REPOSITORY / "CHANGELOG.md"
    places = [(f"{root.name}/configs/metadata.json", metadata["changelog"])]
    if changes.is_file():  # a wheel has none
        places.append((changes.name, re.findall(r"^## (\S+)", changes.read_text(encoding="utf-8"), re.MULTILINE)))
    for where, known in places:
        if version not in known:
            wanted = "an entry for it in the changelog"
            raise ConfigValueError(where, f"version {version} without an entry", wanted, "write what has changed")


def _merge_configs(root: Path, card: Path, overlay: Path, facts: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """Return the files in `configs/`, as text that a person can read, and as JSON.

    Args:
        root: of the bundle.
        card: file of the data set.
        overlay: of the committed model.
        facts: keys and values of the weights that inference and training must keep to.
    """
    configs = root / "configs"
    files = {}
    for path in sorted(configs.rglob("*")):
        file = path.relative_to(root).as_posix()
        if path.is_dir() or path.parent.name == "recipes" or path.name == "metadata.json":
            continue
        if path.parent != configs or path.stem not in ALONE:
            files[file] = path.read_bytes()
            continue
        overlays, omit = [card], ["card", "checkpoint", "bundle_root"]
        changes = dict(facts or {}) if path.stem in ("inference", "train") else {}
        if path.stem == "inference":
            overlays += [overlay] if overlay.is_file() and card.parent == CARDS else []
        elif card.parent == CARDS:
            recipe = configs / "recipes" / f"{ALONE[path.stem].format(card=card.stem)}.yaml"
            overlays += [recipe] if recipe.is_file() else []
        elif path.stem == "pretrain":
            omit.append("network_def")  # pre-training has another network than the card speaks of
        if path.stem == "train":
            changes |= {"pretrained": "$@bundle_root + '/models/model.pt'", "replace_model": True}
        changes |= _fit_crop([path, *overlays])
        text = merge_files(path, overlays, changes, omit)
        files[file] = _encode(text)
        files[file.replace(".yaml", ".json")] = _encode(render_json(text, path.name))
    return files


def _fit_crop(files: Sequence[Path]) -> dict[str, Any]:
    """Return the crop that a network takes if it is not the one that a card asks for; the metadata tell it."""
    contents = [read_config(file) for file in files]
    keys = ("imports", "roi_size", "fitted_roi_size")
    parser = ConfigParser({key: value for content in contents for key, value in content.items() if key in keys})
    fitted = parser.get_parsed_content("fitted_roi_size") if "fitted_roi_size" in parser else None
    return {"roi_size": fitted} if fitted not in (None, parser.get("roi_size")) else {}


def _check(name: str, files: Mapping[str, bytes]) -> None:
    """Raise `BundleError` if `lint` finds an error in a bundle of these files."""
    with tempfile.TemporaryDirectory() as folder:
        for file, content in files.items():
            path = Path(folder) / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        faults = [fault for fault in lint_bundle(Path(folder) / name) if fault.severity == "error"]
    if faults:
        told = "; ".join(f"{fault.path}, {fault.where}: {fault.found} instead of {fault.wanted}" for fault in faults)
        raise BundleError(name, f"{len(faults)} faults ({told})", "none", "correct the card or the bundle")


def _resolve(text: str) -> dict[str, Any]:
    """Return what the metadata need to know of a config, and its network."""
    parser = ConfigParser(yaml.safe_load(text))
    config = {name: parser.get(name) for name in list_keys("data", "geometry") if name in parser}
    size = "roi_size" if "roi_size" in parser else "image_size"
    window = list(parser.get_parsed_content(size))
    if len(window) == 2:
        window.append(parser.get_parsed_content("window_slices"))
    parsed = {name: parser.get_parsed_content(name) for name in ("network_def", "label_values")}
    return config | {"window": window} | parsed


def _pack(state: Mapping[str, torch.Tensor], weights: Path) -> bytes:
    """Return the bytes of `model.pt`: plain names and tensors, in half precision if the file of weights has that."""
    halves = {tensor.dtype for tensor in read_state_dict(weights).values() if tensor.is_floating_point()}
    dtype = torch.float16 if halves == {torch.float16} else None
    packed = {
        name: tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor for name, tensor in state.items()
    }
    buffer = io.BytesIO()
    torch.save(packed, buffer)
    return buffer.getvalue()


def _state_versions(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata with the versions that are installed, where no requirements.txt pins them: in a wheel."""
    if PINS.is_file():
        return metadata
    packages = {name: version(name) for name in metadata["required_packages_version"]}
    core = {"monai_version": version("monai"), "numpy_version": version("numpy")}
    core["pytorch_version"] = version("torch").partition("+")[0]
    return metadata | core | {"required_packages_version": packages}


def _list_requirements() -> str:
    """Return the pins of requirements.txt; from a wheel, which has none, the versions that are installed."""
    if not PINS.is_file():
        names = sorted(re.split(r"[^A-Za-z0-9_-]", requirement)[0] for requirement in requires("voxseg") or ())
        return "".join(f"{name}=={version(name).partition('+')[0]}\n" for name in names)
    lines = PINS.read_text(encoding="utf-8").splitlines()
    return "".join(f"{line}\n" for line in lines if not line.startswith("-e"))


def _encode(text: str) -> bytes:
    return text.encode()
