# SPDX-License-Identifier: Apache-2.0
"""Bundles as others get them: a copy of each folder with weights of its default network, and the exported zips."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from committed_models import IDS, MODELS, SAMPLED_BUNDLE, SAMPLED_MODEL
from monai.bundle import ConfigParser
from products import sample

from tools.archives import name_bundle, unpack
from tools.bundles import BUNDLES
from tools.release import export

NAMES = sorted(path.parents[1].name for path in BUNDLES.glob("*/configs/metadata.json"))
NOT_COPIED = shutil.ignore_patterns("models", "eval", "runs", "studies", "__pycache__")


@pytest.fixture(scope="session", params=sample(NAMES, SAMPLED_BUNDLE))
def bundle_copy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bundle of the repository with a models/model.pt of its default network, full size, random weights."""
    folder = tmp_path_factory.mktemp("copies") / request.param
    shutil.copytree(BUNDLES / request.param, folder, ignore=NOT_COPIED)
    parser = ConfigParser(ConfigParser.load_config_file(folder / "configs" / "inference.yaml"))
    (folder / "models").mkdir()
    torch.manual_seed(0)
    torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "models" / "model.pt")
    yield folder
    shutil.rmtree(folder)  # 0.7 GB of UNETR


@pytest.fixture(scope="session", params=sample(MODELS, SAMPLED_MODEL), ids=IDS.values())
def unpacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in the zip of a bundle and a committed model."""
    place = tmp_path_factory.mktemp("unpacked")
    path = export(request.param.parents[1].name, request.param.stem, out=place)
    folder = place / name_bundle(path)
    unpack(path, folder)
    yield folder
    shutil.rmtree(place)
