# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml
from comparisons import assert_equal_to_scale
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.networks.nets import SwinUNETR
from monai.transforms import Compose, Invertd, SaveImaged

from tools.bundles import BUNDLES, CARDS, REPOSITORY, locate_bundle
from tools.errors import BundleError, CheckpointError, ConfigValueError, MissingFileError
from tools.networks.patch_merging import choose_form
from tools.release import export

SCHEMA = REPOSITORY / "tools" / "linting" / "meta_schema_20240725.json"
MODELS = sorted((path.parents[1].name, path.stem) for path in BUNDLES.glob("*/models/*.yaml"))
SMALL = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 3}


# a model of each bundle; exported bundles are run in tests/contract
@pytest.fixture(
    scope="module",
    params=[
        model if model != ("swin_unetr_ssl", "openkbp_hn") else pytest.param(model, marks=pytest.mark.exhaustive)
        for model in MODELS
    ],
    ids=["-".join(model) for model in MODELS],
)
def archive(request, tmp_path_factory) -> tuple[str, str, Path]:
    bundle, card = request.param
    return bundle, card, export(bundle, card, out=tmp_path_factory.mktemp("exports"))


def cover_again() -> list[Any]:
    """Return the models, of which one is exported twice in each commit."""
    again = ("swin_unetr_ssl", "msd04_hippocampus")
    return [model if model == again else pytest.param(model, marks=pytest.mark.exhaustive) for model in MODELS]


def read(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def test_one_folder_of_its_name_holds_all(archive):
    bundle, card, path = archive
    name, version = re.fullmatch(r"(.+)_v(\d+\.\d+\.\d+)\.zip", path.name).groups()
    assert name == f"{bundle.removesuffix('_btcv')}_{card}"
    with zipfile.ZipFile(path) as file:
        assert {entry.split("/")[0] for entry in file.namelist()} == {name}
    files = read(path)
    assert json.loads(files["configs/metadata.json"])["version"] == version
    for needed in ("LICENSE", "docs/README.md", "docs/data_license.txt", "models/model.pt", "requirements.txt"):
        assert files[needed], needed
    assert not [name for name in files if "__pycache__" in name or name.startswith("eval")]


@pytest.mark.costs(exports=1, large_files=1)
@pytest.mark.parametrize("archive", cover_again(), indirect=True, ids="-".join)
def test_the_same_input_gives_the_same_bytes(archive, tmp_path):
    bundle, card, path = archive
    # of several models of a bundle that of the demo is exported by default
    chosen = None if card == "msd04_hippocampus" else card
    again = export(bundle, chosen, out=tmp_path)
    assert (again.name, again.read_bytes()) == (path.name, path.read_bytes())


def test_metadata_speak_of_the_card(archive):
    bundle, card, path = archive
    files = read(path)
    metadata, config = json.loads(files["configs/metadata.json"]), yaml.safe_load(files["configs/inference.yaml"])
    jsonschema.validate(metadata, json.loads(SCHEMA.read_text()))
    known = yaml.safe_load((CARDS / f"{card}.yaml").read_text())
    outputs = metadata["network_data_format"]["outputs"]["pred"]
    assert list(outputs["channel_def"].values()) == known["labels"] == config["labels"]
    assert outputs["num_channels"] == len(known["labels"])
    assert known["card"]["title"] in metadata["name"]
    page = (BUNDLES / bundle / "models" / f"{card}.md").read_text()
    assert f"{metadata['eval_metrics']['mean_dice']:.4f}" in page
    assert "BTCV" not in json.dumps(metadata)


def test_json_and_yaml_are_equal_and_the_card_is_in_both(archive):
    files = read(archive[2])
    for name in ("inference", "train"):
        config = json.loads(files[f"configs/{name}.json"])
        config.pop("_desc_")
        assert config == yaml.safe_load(files[f"configs/{name}.yaml"])
    assert "tools/datasets" not in files["configs/train.yaml"].decode()


def test_segmentations_have_the_values_of_the_label_files(archive):
    *_, card, path = archive
    files, known = read(path), yaml.safe_load((CARDS / f"{card}.yaml").read_text())
    maps = [ConfigParser(yaml.safe_load(files[f"configs/{name}.yaml"])) for name in ("train", "inference")]
    assert [parser.get_parsed_content("label_map") for parser in maps] == [known["label_map"]] * 2
    values = [next(v for v, c in known["label_map"].items() if c == number) for number in range(len(known["labels"]))]
    channels = json.loads(files["configs/metadata.json"])["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert channels == dict(zip(map(str, values), known["labels"], strict=True))
    # MONAI Label leaves out what writes files, and saves what comes out before
    parser = ConfigParser(json.loads(files["configs/inference.json"]))
    steps = parser.get_parsed_content("postprocessing").transforms
    chain = Compose([step for step in steps if not isinstance(step, (SaveImaged, Invertd))])
    logits = torch.eye(len(values)).reshape(len(values), len(values), 1, 1)
    assert chain({"pred": MetaTensor(logits)})["pred"].flatten().tolist() == values


def test_the_model_fits_its_network_by_names_alone(archive, tmp_path):
    files = read(archive[2])
    (tmp_path / "model.pt").write_bytes(files["models/model.pt"])
    network = ConfigParser(json.loads(files["configs/inference.json"])).get_parsed_content("network_def")
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))


def test_every_module_that_a_config_names_is_there(archive):
    files = read(archive[2])
    for name, content in files.items():
        if name.endswith(".yaml"):
            for module in re.findall(r"tools\.(\w+)", content.decode()):
                assert f"tools/{module}.py" in files or f"tools/{module}/__init__.py" in files, (name, module)


def test_weights_of_another_network_are_refused(tmp_path):
    config = ConfigParser.load_config_file(locate_bundle("unetr_btcv") / "configs" / "train.yaml")
    parser = ConfigParser(config | {"roi_size": [32, 32, 32]} | {"network_def": config["network_def"] | SMALL})
    torch.save(parser.get_parsed_content("network_def").state_dict(), tmp_path / "small.pt")
    with pytest.raises(CheckpointError, match="feature_size"):
        export("unetr_btcv", weights=tmp_path / "small.pt", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.costs(exports=1)
def test_a_card_of_ones_own_shapes_configs_and_network(tmp_path):
    own = {
        "card": {"title": "Own CT", "modality": "CT", "licence": "none", "source": "here", "citation": "none"},
        "labels": ["background", "tumour"],
        "label_map": {0: 0, 7: 1},
        "roi_size": [32, 32, 32],
        **{f"network_def#{key}": value for key, value in SMALL.items()},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    files = [str(locate_bundle("unetr_btcv") / "configs" / "train.yaml"), str(tmp_path / "own.yaml")]
    network = ConfigParser(ConfigParser.load_config_files(files)).get_parsed_content("network_def")
    torch.save(network.state_dict(), tmp_path / "own.pt")
    path = export("unetr_btcv", str(tmp_path / "own.yaml"), tmp_path / "own.pt", tmp_path)
    assert path.name == "unetr_own_v0.1.0.zip"
    packed = torch.load(io.BytesIO(read(path)["models/model.pt"]), weights_only=True)
    assert all(torch.equal(packed[name], tensor) for name, tensor in network.state_dict().items())
    train = yaml.safe_load(read(path)["configs/train.yaml"])
    assert ConfigParser(train).get_parsed_content("label_map") == {0: 0, 7: 1}


@pytest.mark.costs(exports=1)
def test_an_exported_swin_unetr_tells_the_crop_that_it_takes_and_not_the_one_that_was_asked_for(tmp_path):
    own = yaml.safe_load((CARDS / "msd04_hippocampus.yaml").read_text())
    assert own["roi_size"] == [32, 48, 32]
    small = {"feature_size": 12, "window_size": [4, 4, 4]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own | small))
    files = [str(locate_bundle("swin_unetr_ssl") / "configs" / "train.yaml"), str(tmp_path / "own.yaml")]
    network = ConfigParser(ConfigParser.load_config_files(files)).get_parsed_content("network_def")
    torch.save(network.state_dict(), tmp_path / "own.pt")
    packed = read(
        export("swin_unetr_ssl", str(tmp_path / "own.yaml"), tmp_path / "own.pt", tmp_path, patch_merging="corrected")
    )
    metadata = json.loads(packed["configs/metadata.json"])["network_data_format"]
    for tensor in (metadata["inputs"]["image"], metadata["outputs"]["pred"]):
        assert tensor["spatial_shape"] == [32, 64, 32]
    for name in ("inference", "train", "pretrain"):
        assert json.loads(packed[f"configs/{name}.json"])["roi_size"] == [32, 64, 32]


@pytest.mark.costs(exports=1)
@pytest.mark.numeric
@pytest.mark.parametrize("form", ["corrected", "original"])
def test_an_exported_swin_unetr_computes_what_its_weights_did_in_either_patch_merging(tmp_path, form):
    torch.manual_seed(0)
    source = SwinUNETR(1, 3, feature_size=12, window_size=4).eval()
    torch.save(source.state_dict(), tmp_path / "own.pt")  # MONAI's own names, which tell nothing
    choose_form(source, form)
    own = yaml.safe_load((CARDS / "msd04_hippocampus.yaml").read_text())
    small = {"feature_size": 12, "window_size": [4, 4, 4]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own | small))
    packed = read(export("swin_unetr_ssl", str(tmp_path / "own.yaml"), tmp_path / "own.pt", tmp_path, form))
    (tmp_path / "inference.json").write_bytes(packed["configs/inference.json"])
    parser = ConfigParser(ConfigParser.load_config_file(tmp_path / "inference.json"))
    assert parser["patch_merging"] == form
    network = parser.get_parsed_content("network_def").eval()
    model = torch.load(io.BytesIO(packed["models/model.pt"]), weights_only=True)
    network.load_state_dict(model)
    if form == "corrected":  # today's MONAI loads it, too
        SwinUNETR(1, 3, feature_size=12, window_size=4).load_state_dict(model)
    image = torch.rand(1, 1, 32, 64, 32)
    with torch.no_grad():
        assert_equal_to_scale(network(image), source(image))


def test_a_card_that_makes_a_faulty_bundle_is_refused(tmp_path):
    model = BUNDLES / "unetr_btcv" / "models" / "msd04_hippocampus.yaml"
    card = yaml.safe_load((CARDS / "msd04_hippocampus.yaml").read_text()) | yaml.safe_load(model.read_text())
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(card | {"labels": ["background", "tail", "tail"]}))
    with pytest.raises(BundleError, match="tail"):
        export("unetr_btcv", str(tmp_path / "own.yaml"), model.with_suffix(".safetensors"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"bundle": "unet"}, ConfigValueError, "--bundle: found 'unet', wanted one of"),
        ({"bundle": "unetr_btcv", "dataset": "msd4"}, ConfigValueError, "found 'msd4'"),
        ({"bundle": "unetr_btcv", "dataset": "acdc"}, MissingFileError, "weights for acdc"),
        ({"bundle": "unetr_btcv", "dataset": "none.yaml"}, MissingFileError, r"none\.yaml: found no such file"),
        ({"bundle": "unetr_btcv", "weights": "none.pt"}, MissingFileError, r"none\.pt: found no such file"),
    ],
)
def test_what_is_not_there_is_said(arguments, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        export(**arguments, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_version_without_an_entry_in_the_changelog_is_refused(tmp_path, monkeypatch):
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 0.0.9\n")
    monkeypatch.setattr("tools.release.exports.REPOSITORY", tmp_path)
    with pytest.raises(ConfigValueError, match=r"CHANGELOG\.md: found version 0\.1\.0 without an entry"):
        export("unetr_btcv", "msd04_hippocampus", out=tmp_path / "out")
