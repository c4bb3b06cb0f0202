# SPDX-License-Identifier: Apache-2.0
"""Every bundle, as it is here and as it is exported, passes what the model zoo checks before it takes one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from monai.bundle import download_large_files
from zoo_checks import CHECKS

from tools.bundles import BUNDLES, CARDS, REPOSITORY

PROGRAM = Path(__file__).with_name("zoo_checks.py")
(SCHEMA,) = REPOSITORY.glob("t*/**/meta_schema_20240725.json")  # in tools/ or tests/
SCANS = CARDS / "demo" / "msd04_hippocampus"
each_check = pytest.mark.parametrize("check", CHECKS)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three real cases, with no list that keeps them from being trained on."""
    return shutil.copytree(
        SCANS, tmp_path_factory.mktemp("data") / "dataset", ignore=shutil.ignore_patterns("dataset.json")
    )


def run_checks(folder: Path, dataset: Path) -> dict[str, str]:
    """Run the zoo's checks on a bundle; return the error of each that failed."""
    done = subprocess.run(
        [sys.executable, PROGRAM, SCHEMA, dataset],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def errors_of_copy(bundle_copy: Path, dataset: Path) -> dict[str, str]:
    return run_checks(bundle_copy, dataset)


@pytest.fixture(scope="session")
def errors_of_export(unpacked: Path, dataset: Path) -> dict[str, str]:
    return run_checks(unpacked, dataset)


@each_check
def test_bundle_of_the_repository_passes(check, errors_of_copy):
    assert check not in errors_of_copy, errors_of_copy[check]


@each_check
def test_exported_bundle_passes(check, errors_of_export):
    assert check not in errors_of_export, errors_of_export[check]


def test_checks_find_faults(dataset, tmp_path):
    source = min(BUNDLES.glob("*/configs/metadata.json")).parents[1]
    shutil.copytree(source / "configs", tmp_path / "configs")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").touch()
    (tmp_path / "tools").mkdir()
    (tmp_path / "configs" / "logging.conf").write_text("[loggers]\nkeys=nobody\n")
    path = tmp_path / "configs" / "metadata.json"
    metadata = json.loads(path.read_text()) | {"task": 3, "pytorch_version": "2.15.0+cpu"}
    metadata["network_data_format"]["inputs"]["image"]["num_channels"] = 7
    path.write_text(json.dumps(metadata))
    errors = run_checks(tmp_path, dataset)
    assert set(errors) == set(CHECKS)
    assert "no LICENSE" in errors["files"]
    assert "2.15.0+cpu" in errors["version"]


@pytest.mark.filterwarnings("ignore:No hash value")  # not all owners publish one
@pytest.mark.parametrize("source", sorted(BUNDLES.glob("*/large_files.yml")), ids=lambda path: path.parent.name)
def test_large_files_are_fetched_once_by_monai(source, tmp_path):
    """The zoo downloads all of them first, with a function that gives `download_url` each key of an entry."""
    served, folder = tmp_path / "served", tmp_path / "bundle"
    served.mkdir()
    folder.mkdir()
    content = yaml.safe_load(source.read_text())
    for number, entry in enumerate(content["large_files"]):
        file = served / f"{number}.bin"
        file.write_bytes(f"weights {number}".encode())
        entry["url"] = file.as_uri()
        if "hash_val" in entry:
            entry["hash_val"] = hashlib.new(entry["hash_type"], file.read_bytes()).hexdigest()
    (folder / source.name).write_text(yaml.safe_dump(content, sort_keys=False))
    download_large_files(str(folder))
    for number, entry in enumerate(content["large_files"]):
        assert (folder / entry["path"]).read_bytes() == f"weights {number}".encode()
    shutil.rmtree(served)
    download_large_files(str(folder))  # what is there is not asked for again
