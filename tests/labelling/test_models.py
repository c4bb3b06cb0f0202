# SPDX-License-Identifier: Apache-2.0
"""Bundles get into the app whole, or an error tells what MONAI Label would miss."""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

import tools
from tools.errors import BundleError, ConfigValueError
from tools.labelling import models
from tools.labelling.models import check_model, place_bundles

METADATA: dict[str, Any] = {
    "version": "0.1.0",
    "network_data_format": {
        "inputs": {"image": {"spatial_shape": [8, 8, 8]}},
        "outputs": {"pred": {"channel_def": {"0": "background", "1": "spleen"}}},
    },
}
INFERENCE = {"network_def": {"_target_": "UNet"}, "preprocessing": {"_target_": "Compose"}}


def write_bundle(folder: Path, weights: bytes = b"first") -> Path:
    for name, content in (("inference", INFERENCE), ("metadata", METADATA)):
        (folder / "configs").mkdir(parents=True, exist_ok=True)
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content))
    (folder / "models").mkdir(exist_ok=True)
    (folder / "models" / "model.pt").write_bytes(weights)
    return folder


def write_zip(folder: Path) -> Path:
    path = folder.with_name(f"{folder.name}_v0.1.0.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    return path


def list_names(app: Path) -> list[str]:
    return sorted(path.name for path in (app / "model").iterdir())


def test_folders_and_zips_are_placed_under_their_names(tmp_path: Path):
    first, second = (write_bundle(tmp_path / name) for name in ("first", "second"))
    (first / "eval").mkdir()
    archive = write_zip(second)
    assert place_bundles([str(first), str(archive)], tmp_path / "app") == ["first", "second"]
    assert list_names(tmp_path / "app") == ["first", "second"]
    for name in ("first", "second"):
        check_model(tmp_path / "app" / "model" / name)
    assert not (tmp_path / "app" / "model" / "first" / "eval").exists()


def test_bundle_of_the_repository_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def export(bundle: str, dataset: str | None, out: Path) -> Path:
        calls.append((bundle, dataset))
        return write_zip(write_bundle(out / f"unetr_{dataset}"))

    monkeypatch.setattr(models, "export", export)
    assert place_bundles(["unetr_btcv"], tmp_path, dataset="msd09_spleen") == ["unetr_msd09_spleen"]
    assert calls == [("unetr_btcv", "msd09_spleen")]


def test_model_that_was_trained_in_the_app_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    source, app = write_bundle(tmp_path / "toy"), tmp_path / "app"
    place_bundles([str(source)], app)
    trained = app / "model" / "toy" / "models" / "model.pt"
    trained.write_bytes(b"trained")
    with caplog.at_level(logging.INFO):
        place_bundles([str(source)], app)
    assert trained.read_bytes() == b"trained"
    assert "stays as it is" in caplog.text
    place_bundles([str(source)], app, overwrite=True)
    assert trained.read_bytes() == b"first"
    assert list_names(app) == ["toy"]


def test_bundle_that_cannot_be_used_leaves_the_app_as_it_was(tmp_path: Path):
    source, app = write_bundle(tmp_path / "toy"), tmp_path / "app"
    place_bundles([str(source)], app)
    (source / "models" / "model.pt").unlink()
    with pytest.raises(BundleError, match=rf"{source}: found no models/model.pt and no models/model.ts"):
        place_bundles([str(source)], app, overwrite=True)
    assert list_names(app) == ["toy"]
    assert (app / "model" / "toy" / "models" / "model.pt").is_file()


def test_unknown_name_is_told_with_those_there_are(tmp_path: Path):
    with pytest.raises(
        ConfigValueError, match=r"--bundles: found 'unter_btcv', wanted one of .*unetr_btcv.*, or the zip"
    ):
        place_bundles(["unter_btcv"], tmp_path)


def test_two_bundles_of_one_name_are_refused(tmp_path: Path):
    one, two = (write_bundle(tmp_path / folder / "toy") for folder in "ab")
    with pytest.raises(ConfigValueError, match="found a second bundle toy"):
        place_bundles([str(one), str(two)], tmp_path / "app")


def edit(path: Path, key: str, value: Any) -> None:
    content = json.loads(path.read_text())
    target = content
    *parents, last = key.split("#")
    for parent in parents:
        target = target[parent]
    target[last] = value
    path.write_text(json.dumps(content))


PRED = "network_data_format#outputs"


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("configs/inference.json", None, None, "no configs/inference.json and no configs/inference.yaml"),
        ("configs/metadata.json", None, None, "no configs/metadata.json"),
        ("models/model.pt", None, None, "no models/model.pt and no models/model.ts"),
        ("configs/inference.json", "network_def", None, r"inference.json: found no network_def"),
        ("configs/inference.json", "preprocessing", None, r"inference.json: found no preprocessing"),
        ("configs/metadata.json", "network_data_format", {}, "inputs that begins with None, wanted image"),
        ("configs/metadata.json", PRED, {"mask": {}}, "outputs that begins with mask, wanted pred"),
        ("configs/metadata.json", PRED, {"pred": []}, "outputs that begins with pred"),
        ("configs/metadata.json", f"{PRED}#pred#channel_def", ["spleen"], "wanted labels by their number"),
        ("configs/metadata.json", f"{PRED}#pred#channel_def", {"one": "spleen"}, "wanted labels by their number"),
        ("configs/metadata.json", f"{PRED}#pred#channel_def", {"1": "a", "2": "A"}, "found two labels a"),
    ],
)
def test_what_monai_label_would_miss_is_told(tmp_path: Path, file: str, key: str | None, value: Any, message: str):
    folder = write_bundle(tmp_path / "toy")
    check_model(folder)
    if key is None:
        (folder / file).unlink()
    else:
        edit(folder / file, key, value)
    with pytest.raises(BundleError, match=message):
        check_model(folder)


def test_torchscript_needs_no_network(tmp_path: Path):
    folder = write_bundle(tmp_path / "toy")
    (folder / "models" / "model.pt").rename(folder / "models" / "model.ts")
    edit(folder / "configs" / "inference.json", "network_def", None)
    check_model(folder)


def test_yaml_is_read_where_there_is_no_json(tmp_path: Path):
    folder = write_bundle(tmp_path / "toy")
    path = folder / "configs" / "inference.json"
    path.rename(path.with_suffix(".yml"))
    with pytest.raises(BundleError, match=r"no configs/inference\.yaml"):
        check_model(folder)
    path.with_suffix(".yml").rename(path.with_suffix(".yaml"))
    check_model(folder)


def test_config_that_cannot_be_read_is_told(tmp_path: Path):
    folder = write_bundle(tmp_path / "toy")
    (folder / "configs" / "inference.json").write_text("{,}")
    with pytest.raises(BundleError, match=r"inference\.json: found text that cannot be read"):
        check_model(folder)


def test_copies_of_tools_must_be_of_the_installed_version(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = write_bundle(tmp_path / "toy")
    installed = Path(tools.__file__)
    (folder / "tools").mkdir()
    copy = folder / "tools" / "__init__.py"
    shutil.copyfile(installed, copy)
    check_model(folder)
    assert not caplog.text
    copy.write_text(f"{installed.read_text()}\nCHANGED = True\n")
    check_model(folder)
    assert "1 files of tools differ" in caplog.text
    copy.write_text('__version__ = "9.9.9"\n')
    with pytest.raises(BundleError, match=rf"found version 9.9.9 of tools, wanted version {tools.__version__}"):
        check_model(folder)
    copy.unlink()
    with pytest.raises(BundleError, match="found a package tools without a version"):
        check_model(folder)
