# SPDX-License-Identifier: Apache-2.0
"""A model is replaced by weights that fit its network wholly; the one before is kept."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.networks.nets import UNet
from safetensors.torch import save as save_safetensors

from tools.errors import CheckpointError, RequestError
from tools.labelling import replacement
from tools.labelling.replacement import take_weights


def make_network(out_channels: int = 2) -> torch.nn.Module:
    return UNet(
        spatial_dims=3, in_channels=1, out_channels=out_channels, channels=(2, 4), strides=(2,), num_res_units=1
    )


def save(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def upload(content: bytes, filename: str = "/home/me/new.pt") -> SimpleNamespace:
    return SimpleNamespace(filename=filename, file=io.BytesIO(content))


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return make_network()


@pytest.fixture
def model(tmp_path: Path, network: torch.nn.Module) -> Path:
    path = tmp_path / "models" / "model.pt"
    path.parent.mkdir()
    torch.save(network.state_dict(), path)
    return path


def make_other() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return make_network().state_dict()


@pytest.mark.parametrize(
    ("wrap", "filename", "precision"),
    [
        (save, "new.pt", torch.float32),
        (lambda weights: save({"model": weights, "epoch": 3}), "new.pth", torch.float32),
        (
            lambda weights: save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}),
            "new.pt",
            torch.float32,
        ),
        (save_safetensors, "new.safetensors", torch.float32),
        (lambda weights: save({name: value.half() for name, value in weights.items()}), "new.pt", torch.float16),
    ],
)
def test_checkpoint_that_fits_replaces_the_model(
    network: torch.nn.Module, model: Path, wrap: Any, filename: str, precision: torch.dtype
):
    before, served = model.read_bytes(), {name: value.clone() for name, value in network.state_dict().items()}
    weights = make_other()
    answer = take_weights(network, upload(wrap(weights), f"/home/me/{filename}"), model)
    stored = torch.load(model, weights_only=True)
    for name, value in weights.items():
        assert torch.equal(stored[name], value.to(precision).float())
    assert model.with_name("model_previous.pt").read_bytes() == before
    assert answer["checksum"] == f"SHA256:{hashlib.sha256(model.read_bytes()).hexdigest()}"
    assert answer["modified_time"] == int(model.stat().st_mtime)
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.pt", "model_previous.pt"]
    assert all(torch.equal(network.state_dict()[name], value) for name, value in served.items())


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def make_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(32 << 20))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (lambda path: b"<html>not found</html>", "text that starts with '<html>"),
        (lambda path: b"", "an empty file of 0 bytes"),
        (lambda path: save(make_other())[:2000], "no whole file of weights"),
        (lambda path: pickle.dumps(Payload(path)), "no whole file of weights"),
        (lambda path: save({"model": Payload(path)}), r"code \(.*\), not just tensors"),
        (lambda path: save(make_network(3).state_dict()), "tensors that fit"),
        (lambda path: save(dict(list(make_other().items())[1:])), "missing"),
        (lambda path: save(make_other() | {"more": torch.ones(1)}), "unknown"),
        (
            lambda path: save({name: value * torch.nan for name, value in make_other().items()}),
            "infinite or none",
        ),
        (lambda path: make_bomb(), "33,554,432 bytes when unpacked, wanted at most 16,777,216"),
    ],
)
def test_anything_else_leaves_the_model_as_it_is(
    network: torch.nn.Module, model: Path, monkeypatch: pytest.MonkeyPatch, content: Any, found: str
):
    monkeypatch.setattr(replacement, "WEIGHTS_BYTES", 16 << 20)
    before, touched = model.read_bytes(), model.parent.parent / "touched"
    with pytest.raises(CheckpointError, match=f"^new.pt: found .*{found}"):
        take_weights(network, upload(content(touched)), model)
    assert model.read_bytes() == before
    assert [path.name for path in model.parent.iterdir()] == ["model.pt"]
    assert not touched.exists()


def test_other_files_are_refused_by_their_names(network: torch.nn.Module, model: Path):
    for filename in ("new.zip", "new", None, "new.pt/.."):
        with pytest.raises(CheckpointError, match=r"found another kind of file, wanted one of .pt, .pth, .safetensors"):
            take_weights(network, upload(save(make_other()), filename), model)  # type: ignore[arg-type]


def test_torchscript_model_is_not_replaced(network: torch.nn.Module, model: Path):
    """Its program would run in the server, and there is no network in the config to compare it with."""
    program = model.with_suffix(".ts")
    program.write_bytes(b"program")
    for given in (None, network):
        with pytest.raises(RequestError, match=r"model: found model\.ts, a program"):
            take_weights(given, upload(save(make_other())), program)
    assert program.read_bytes() == b"program"
