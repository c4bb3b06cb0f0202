# SPDX-License-Identifier: Apache-2.0
"""One bundle, served, downloaded by MONAI's own command and used where this repository is not installed."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import site
import subprocess
import threading
import venv
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from committed_models import IDS, MODELS, SAMPLED_MODEL
from products import sample

from tools.bundles import BUNDLES, REPOSITORY, run_bundle
from tools.demonstration import EMBEDDED
from tools.release import export

STEPS = re.search(r"```bash\n(NAME=.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL).group(1)


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """An environment with the packages of this one, but without this repository."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # .pth files in a folder that a .pth file names are not read: that of the editable installation is one
    (packages / "shared.pth").write_text("\n".join(site.getsitepackages()))
    executable = folder / "bin" / "python"
    absent = subprocess.run(
        [executable, "-c", "import tools"], cwd=folder, env=clean(), capture_output=True, check=False
    )
    assert b"No module named 'tools'" in absent.stderr
    return executable


def clean() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return kept | {"PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def export_once(tmp_path_factory) -> Callable[[str, str], Path]:
    """Give a function that returns the archive of a model."""
    folder = tmp_path_factory.mktemp("exports")
    return functools.cache(lambda bundle, card: export(bundle, card, out=folder))


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve(tmp_path: Path) -> Iterator:
    servers = []

    def start(folder: Path) -> str:
        handler = partial(QuietHandler, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def run(python: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([python, *arguments], cwd=cwd, env=clean(), capture_output=True, text=True, check=False)


def follow_steps(python: Path, folder: Path, name: str, card: str, url: str) -> subprocess.CompletedProcess:
    """Take the steps of README.md in an empty folder beside `scans`: download, compare the checksum, segment."""
    (folder / "scans").symlink_to(EMBEDDED / card / "imagesTr")
    script = re.sub(r"NAME=\S+\nURL=\S+", f"NAME={name}\nURL={url}", STEPS)
    script = "".join(line for line in script.splitlines(keepends=True) if not line.startswith("pip "))
    assert script.count("\n") == STEPS.count("\n") - 1, "one step installs the packages, which are there"
    path = {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-ec", script], cwd=folder, env=clean() | path, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module", params=sample(MODELS, SAMPLED_MODEL), ids=IDS.values())
def downloaded(request, export_once, python, tmp_path_factory) -> tuple[str, str, Path]:
    bundle, card = request.param.parents[1].name, request.param.stem
    path = export_once(bundle, card)
    name = path.name.partition("_v0")[0]
    folder = tmp_path_factory.mktemp("downloads")
    handler = partial(QuietHandler, directory=str(path.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = follow_steps(python, folder, name, card, f"http://127.0.0.1:{server.server_address[1]}/{path.name}")
        server.shutdown()
    assert done.returncode == 0, done.stderr
    return bundle, card, folder / name


@pytest.mark.numeric
def test_the_documented_steps_give_the_labels_of_the_repository(downloaded, tmp_path):
    bundle, card, folder = downloaded
    root = BUNDLES / bundle
    scans = EMBEDDED / card / "imagesTr"
    overrides = {"bundle_root": root, "dataset_dir": scans, "output_dir": tmp_path}
    assert run_bundle([root / "configs" / "inference.yaml", root / "models" / f"{card}.yaml"], overrides) == 0
    paths = sorted((folder.parent / "segmentations").glob("*_seg.nii.gz"))
    assert len(paths) == len(list(scans.glob("*.nii.gz")))
    for path in paths:
        ours, theirs = nib.load(tmp_path / path.name), nib.load(path)
        assert np.array_equal(np.asanyarray(ours.dataobj), np.asanyarray(theirs.dataobj))
        assert np.array_equal(ours.affine, theirs.affine)


@pytest.fixture
def dataset(downloaded, tmp_path) -> Path:
    """The embedded scans of the model's data set as training cases `case_0`, `case_1`, ...; the last one validates.

    Their labels become two structures at the most, so that each model has classes for them.
    """
    _, card, _ = downloaded
    folder = tmp_path / "dataset"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
        for number, path in enumerate(sorted((EMBEDDED / card / part).glob("*.nii.gz"))):
            image = nib.load(path)
            voxels = np.asanyarray(image.dataobj)
            kept = np.where(voxels > 2, 0, voxels) if part == "labelsTr" else voxels
            nib.save(nib.Nifti1Image(kept, image.affine), folder / part / f"case_{number}.nii.gz")
    return folder


def find_last_case(dataset: Path) -> str:
    return max(path.name for path in (dataset / "imagesTr").iterdir()).removesuffix(".nii.gz")


LOAD = """
import sys, torch
import monai.bundle
from monai.bundle import ConfigWorkflow
sys.path.insert(0, {folder!r})
network = monai.bundle.load({name!r}, bundle_dir={parent!r})
weights = torch.load({folder!r} + "/models/model.pt", weights_only=True)
assert all(torch.equal(network.state_dict()[key].to(value.dtype), value) for key, value in weights.items())
for kind in ("train", "inference"):
    workflow = ConfigWorkflow(
        f"{folder}/configs/{{kind}}.yaml",
        meta_file={folder!r} + "/configs/metadata.json",
        logging_file={folder!r} + "/configs/logging.conf",
        workflow_type=kind,
        bundle_root={folder!r},
        dataset_dir={data!r} if kind == "train" else {data!r} + "/imagesTr",
        output_dir={output!r},
        **({{"validation_cases": [{last!r}]}} if kind == "train" else {{}}),
    )
    workflow.initialize()
    assert workflow.check_properties() == [], workflow.check_properties()
import tools
assert tools.__file__.startswith({folder!r}), tools.__file__
"""


def test_python_loads_it_from_another_folder(downloaded, dataset, python, tmp_path):
    _, _, folder = downloaded
    code = LOAD.format(
        folder=str(folder),
        name=folder.name,
        parent=str(folder.parent),
        data=str(dataset),
        output=str(tmp_path / "output"),
        last=find_last_case(dataset),
    )
    done = run(python, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr


def test_training_goes_on_from_its_model_and_replaces_it(downloaded, dataset, python, tmp_path):
    _, _, source = downloaded
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    words = ["-m", "monai.bundle", "run", "--config_file", "configs/train.yaml", "--dataset_dir", str(dataset)]
    words += ["--output_dir", str(tmp_path / "run"), "--epochs", "1", "--train#trainer#epoch_length", "1"]
    words += ["--validation_cases", f"['{find_last_case(dataset)}']"]
    done = run(python, folder, *words)
    assert done.returncode == 0, done.stderr
    model, previous = folder / "models" / "model.pt", folder / "models" / "model_previous.pt"
    assert previous.read_bytes() == (source / "models" / "model.pt").read_bytes()
    assert model.read_bytes() != previous.read_bytes()


@pytest.mark.parametrize("fault", sample(["altered", "no checksum", "truncated"], "altered"))
def test_a_faulty_download_is_refused(fault, export_once, python, serve, tmp_path):
    card = SAMPLED_MODEL.stem
    source = export_once(SAMPLED_MODEL.parents[1].name, card)
    name = source.name.partition("_v0")[0]
    served, folder = tmp_path / "served", tmp_path / "folder"
    served.mkdir()
    folder.mkdir()
    content = bytearray(source.read_bytes())
    if fault == "altered":
        content[content.rindex(b"Apache License")] ^= (
            1  # in the LICENSE or a docstring: nothing that MONAI would notice
        )
    if fault == "truncated":
        content = content[: len(content) // 2]
    (served / source.name).write_bytes(content)
    if fault != "no checksum":
        shutil.copy(f"{source}.sha256", served)
    done = follow_steps(python, folder, name, card, f"{serve(served)}/{source.name}")
    assert done.returncode != 0
    assert not (folder / "segmentations").exists()
