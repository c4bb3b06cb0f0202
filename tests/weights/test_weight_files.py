# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import argparse
import os
import random
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tools.errors import CheckpointError, MissingFileError
from tools.files import compute_sha256
from tools.weights import read_checkpoint, read_state_dict, save_checkpoint
from tools.weights.files import read_metadata


@pytest.fixture
def state_dict():
    generator = torch.Generator().manual_seed(0)
    return {"conv.weight": torch.rand(4, 2, 3, generator=generator), "norm.steps": torch.tensor(7)}


class Malice:
    """What a pickle runs when it is loaded: it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("key", [None, "model", "state_dict", "network"])
def test_a_state_dict_is_found_bare_or_wrapped(tmp_path, state_dict, key):
    path = tmp_path / "weights.pt"
    torch.save({key: state_dict, "epoch": 3, "optimizer": {"state": {}}} if key else state_dict, path)
    assert_same(read_state_dict(path), state_dict)


def test_safetensors_are_read(tmp_path, state_dict):
    save_file(state_dict, tmp_path / "weights.safetensors")
    assert_same(read_state_dict(tmp_path / "weights.safetensors"), state_dict)


def test_a_path_may_start_at_the_home_folder(tmp_path, state_dict, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(state_dict, tmp_path / "weights.pt")
    assert_same(read_state_dict("~/weights.pt"), state_dict)


def test_a_checkpoint_keeps_what_lies_beside_the_weights(tmp_path, state_dict):
    content = {"model": state_dict, "epoch": 3, "record": [{"loss": 0.5}]}
    save_checkpoint(content, tmp_path / "last.pt")
    read = read_checkpoint(tmp_path / "last.pt")
    assert (read["epoch"], read["record"]) == (3, [{"loss": 0.5}])
    assert_same(read["model"], state_dict)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_missing_file_is_named_with_a_remedy(tmp_path, suffix):
    with pytest.raises(MissingFileError, match=rf"none\{suffix}: found no such file, .*--checkpoint"):
        read_checkpoint(tmp_path / f"none{suffix}")
    with pytest.raises(MissingFileError):
        read_checkpoint(tmp_path)  # a folder


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file of 0 bytes"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "text that starts with '<!DOCTYPE html>'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "text that starts with 'version https://git-lfs"),
        (bytes(range(256)) * 4, "1024 bytes that are no whole file of weights"),
    ],
    ids=["empty", "web page", "Git LFS pointer", "noise"],
)
def test_what_is_no_checkpoint_is_refused_with_what_it_is(tmp_path, suffix, content, found):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: found {found}")
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value), "torch's advice to load it all the same"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file_is_refused(tmp_path, state_dict, suffix, share):
    path = tmp_path / f"weights{suffix}"
    torch.save(state_dict, path) if suffix == ".pt" else save_file(state_dict, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match="bytes that are no whole file"):
        read_state_dict(path)


def test_wrong_bytes_never_raise_anything_else(tmp_path, state_dict):
    generator = random.Random(0)
    torch.save(state_dict, tmp_path / "zip.pt")
    torch.save(state_dict, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(state_dict, tmp_path / "plain.safetensors")
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about odd protocols
        for source in sorted(tmp_path.iterdir()):
            for _ in range(150):
                content = bytearray(source.read_bytes())
                content[generator.randrange(min(600, len(content)))] = generator.randrange(256)
                path = tmp_path / f"damaged{source.suffix}"
                path.write_bytes(content)
                try:
                    read_checkpoint(path)
                except CheckpointError:
                    refused += 1
    assert refused > 100


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_refused_and_never_run(tmp_path, state_dict, legacy):
    marker, path = tmp_path / "was_run", tmp_path / "weights.pt"
    torch.save({"model": state_dict, "extra": Malice(marker)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"found code \(posix\.mkdir\), not just tensors.*refused for safety"):
        read_state_dict(path)
    assert not marker.exists()


def test_a_whole_network_is_refused_as_code(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"code \(torch\.nn\.modules\.linear\.Linear\)"):
        read_state_dict(tmp_path / "weights.pt")


def test_a_file_without_read_permission_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"x")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(torch, "load", refuse)  # root, who may run the tests, reads any file
    with pytest.raises(CheckpointError, match=r"cannot be opened \(Permission denied\)"):
        read_checkpoint(path)


def test_another_object_than_a_mapping_is_refused(tmp_path, state_dict):
    torch.save(list(state_dict.values()), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="found a list, wanted a state dict"):
        read_state_dict(tmp_path / "weights.pt")


@pytest.mark.parametrize("content", [{}, {"epoch": 3, "lr": 0.1}, {"model": {}, "epoch": 1}])
def test_a_mapping_without_tensors_is_refused_with_its_keys(tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=", ".join(content) or "none"):
        read_state_dict(tmp_path / "weights.pt")


def test_saving_the_same_content_twice_gives_the_same_bytes(tmp_path, state_dict):
    for name in ("first.pt", "second.pt"):
        save_checkpoint({"model": state_dict}, tmp_path / name)
    assert compute_sha256(tmp_path / "first.pt") == compute_sha256(tmp_path / "second.pt")


def test_a_failed_save_keeps_the_previous_checkpoint(tmp_path, state_dict):
    path = tmp_path / "last.pt"
    save_checkpoint({"model": state_dict}, path)
    with pytest.raises((AttributeError, TypeError)):
        save_checkpoint({"model": state_dict, "extra": (value for value in range(3))}, path)  # cannot be pickled
    assert_same(read_state_dict(path), state_dict)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("number", [np.float64(0.5), np.int64(-3), np.float32(0.25), np.bool_(True)])
def test_numpy_numbers_of_training_scripts_become_plain_ones(tmp_path, state_dict, number, legacy):
    path = tmp_path / "weights.pt"
    torch.save({"model": state_dict, "best": number}, path, _use_new_zipfile_serialization=not legacy)
    if legacy:  # as NumPy 1 wrote its name
        path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    best = read_checkpoint(path)["best"]
    assert best == number
    assert type(best) in (float, int, bool)
    assert_same(read_state_dict(path), state_dict)


def test_numpy_objects_are_refused(tmp_path, state_dict):
    torch.save({"model": state_dict, "best": np.array(["text", None], dtype=object)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="code"):
        read_state_dict(tmp_path / "weights.pt")


class FakeScalar:
    """Pickles as a NumPy scalar of type object: in NumPy, the value could be anything."""

    def __reduce__(self):
        return np.float64(0).__reduce__()[0], (np.dtype("O"), b"12345678")


def test_a_numpy_scalar_of_type_object_is_refused(tmp_path, state_dict):
    torch.save({"model": state_dict, "best": FakeScalar()}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="wanted tensors saved"):
        read_state_dict(tmp_path / "weights.pt")


def test_the_arguments_of_a_training_script_do_no_harm(tmp_path, state_dict):
    arguments = argparse.Namespace(arch="vit_small", patch_size=16)
    torch.save({"teacher": state_dict, "student": {}, "args": arguments}, tmp_path / "weights.pt")
    assert_same(read_state_dict(tmp_path / "weights.pt"), state_dict)


@pytest.mark.parametrize("key", ["network_weights", "net", "teacher", "student"])
def test_other_wrappers_are_opened(tmp_path, state_dict, key):
    torch.save({key: state_dict, "epoch": 3}, tmp_path / "weights.pt")
    assert_same(read_state_dict(tmp_path / "weights.pt"), state_dict)


def test_wrappers_in_wrappers_are_opened(tmp_path, state_dict):
    torch.save({"state_dict": {"model": state_dict}}, tmp_path / "weights.pt")
    assert_same(read_state_dict(tmp_path / "weights.pt"), state_dict)


def test_of_two_networks_the_averaged_one_counts(tmp_path, state_dict):
    student = {name: torch.zeros_like(tensor) for name, tensor in state_dict.items()}
    torch.save({"student": student, "teacher": state_dict}, tmp_path / "weights.pt")
    assert_same(read_state_dict(tmp_path / "weights.pt"), state_dict)


def test_safetensors_under_another_name_are_read(tmp_path, state_dict):
    save_file(state_dict, tmp_path / "weights.pt")
    assert_same(read_state_dict(tmp_path / "weights.pt"), state_dict)


def test_the_header_of_safetensors_is_read(tmp_path, state_dict):
    save_file(state_dict, tmp_path / "weights.safetensors", metadata={"licence": "CC0"})
    assert read_metadata(tmp_path / "weights.safetensors") == {"licence": "CC0"}
    torch.save(state_dict, tmp_path / "weights.pt")
    assert read_metadata(tmp_path / "weights.pt") == {}


class Marked(torch.nn.Module):
    """A scripted network with attributes that are no tensors, and an empty tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 3)
        self.norm = torch.nn.BatchNorm2d(2)
        self.sizes = [1, 2]
        self.names = {"a": 1.0}
        self.cache = torch.Tensor()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) * self.sizes[0] * self.names["a"] + self.cache.numel()


@pytest.mark.parametrize("kind", ["scripted", "traced"])
def test_a_torchscript_program_gives_its_tensors(tmp_path, kind):
    network = Marked().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript, which users still have
        program = torch.jit.script(network) if kind == "scripted" else torch.jit.trace(network, torch.rand(1, 1, 8, 8))
        program.save(tmp_path / "weights.pt")
    assert_same(read_state_dict(tmp_path / "weights.pt"), network.state_dict())


def test_code_in_a_torchscript_archive_is_refused_and_never_run(tmp_path, state_dict):
    marker, path = tmp_path / "was_run", tmp_path / "weights.pt"
    torch.save({"model": state_dict, "extra": Malice(marker)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("weights/constants.pkl", b"")
    with pytest.raises(CheckpointError, match=r"code \(posix\.mkdir\)"):
        read_state_dict(path)
    assert not marker.exists()
