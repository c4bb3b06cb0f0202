# SPDX-License-Identifier: Apache-2.0
"""Twenty correct files, each spoilt in eleven ways: refused in one sentence, or loaded as the function they still hold.

What is compared are outputs, see `zoo.compare`. Two things no reader can see, as names, shapes and types are right: a
square matrix that was transposed, and two tensors of one shape that changed places. The transposed tensor is therefore
one that is not square. `python -m pytest -n 0 -s tests/weights/test_mutations.py` prints the table.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from products import cover
from torch import Tensor
from zoo import SOURCES, borrow_target, build_source, compare

from tools.errors import CheckpointError, ConfigValueError
from tools.weights import load

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.numeric]

State = dict[str, Tensor]

# file and the network that takes it
FILES = {
    "UNETR": "UNETR",
    "UNETR of MONAI 0.7": "UNETR with biases, perceptron",
    "UNETR of MONAI 1.5": "UNETR",
    "UNETR with stem": "UNETR with stem",
    "ViTAutoEnc": "UNETR",
    "ViTAutoEnc of MONAI 1.3": "UNETR, f 6",
    "contrastive ViTAutoEnc": "contrastive ViTAutoEnc",
    "ViT with class token": "UNETR",
    "ViT of timm": "UNETR with biases, perceptron",
    "DINOv2": "UNETR with biases, perceptron",
    "BEiT": "UNETR with biases, perceptron",
    "model_swinvit.pt, original merging": "SwinUNETR",
    "SSL head, original merging": "SwinUNETR",
    "VoCo_10k, original merging": "SwinUNETR v2",
    "VoCo_SSL_head": "VoCo's encoder",
    "SwinUNETR v2, original merging": "SwinUNETR v2",
    "disruptive autoencoder": "SwinUNETR",
    "SwinSSL": "SwinSSL",
    "DINOv3": "inflated DINOv3",
    "Swin of Microsoft": "inflated Swin",
}
TOLERANCES = {"cast to half": 2e-2}  # of the largest number of an output; half precision has 11 bits


def choose(state: State, ndim: int) -> str:
    """Return the name of a tensor of the transformer's blocks, which every layout has and every network takes."""
    floats = {name: value for name, value in state.items() if value.is_floating_point() and value.ndim == ndim}
    blocks = [name for name in floats if "blocks.1." in name and "relative_position" not in name]
    return next(name for name in blocks if ndim < 2 or state[name].shape[0] != state[name].shape[1])


def rename(state: State) -> State:
    name = choose(state, 1)
    return {(f"{n}_renamed" if n == name else n): value for n, value in state.items()}


def drop(state: State) -> State:
    return {name: value for name, value in state.items() if name != choose(state, 2)}


def duplicate(state: State) -> State:
    """Give a tensor twice, under another prefix and with other values."""
    name = choose(state, 2)
    return {**state, f"module.{name.removeprefix('module.')}": state[name] + 1, f"net.{name}": state[name]}


def transpose(state: State) -> State:
    name = choose(state, 2)
    return {**state, name: state[name].T.contiguous()}


def cast_to_whole(state: State) -> State:
    name = choose(state, 2)
    return {**state, name: (100 * state[name]).to(torch.int64)}


def cast_to_half(state: State) -> State:
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


def prefix_wrongly(state: State) -> State:
    return {f"decoder_of_something.{name}": value for name, value in state.items()}


def mix_versions(state: State) -> State:
    """Add a tensor that other versions of the network have and that computes."""
    name = choose(state, 1)
    stem = name.rsplit(".", 1)[0]
    return {**state, f"{stem}.q_norm.weight": torch.full_like(state[name], 2.0)}


def widen(state: State) -> State:
    return {n: torch.cat([v, v]) if v.ndim and v.is_floating_point() else v for n, v in state.items()}


def halve(state: State) -> State:
    return dict(list(state.items())[: len(state) // 2])


MUTATIONS: dict[str, Callable[[State], State] | None] = {
    "renamed": rename,
    "dropped": drop,
    "duplicated": duplicate,
    "transposed": transpose,
    "cast to int64": cast_to_whole,
    "cast to half": cast_to_half,
    "wrong prefix": prefix_wrongly,
    "other version": mix_versions,
    "wrong width": widen,
    "half of it": halve,
    "web page": None,
}


def write(name: str, mutation: str, path: Path) -> None:
    source, mutate = SOURCES[name], MUTATIONS[mutation]
    if mutate is None:
        path.write_text("<!DOCTYPE html><html><body>404: not found</body></html>")
        return
    state = mutate(dict(source.write(build_source(name))))
    torch.save({source.wrapper: state} if source.wrapper else state, path)


# what becomes of a spoilt file; all else may be refused or be the same function
EXPECTED = {
    "cast to half": "same function",
    **dict.fromkeys(("dropped", "transposed", "cast to int64", "wrong width", "half of it", "web page"), "refused"),
}


@pytest.mark.parametrize(("name", "mutation"), cover(list(FILES), list(MUTATIONS)))
def test_a_spoilt_file_is_refused_or_is_still_the_same_function(name, mutation, tmp_path):
    path = tmp_path / "weights.pt"
    write(name, mutation, path)
    with borrow_target(FILES[name]) as network:
        before = {key: value.clone() for key, value in network.state_dict().items()}
        message, pairs = None, []
        try:
            load(network, path, report_dir=tmp_path, **SOURCES[name].options)
        except (CheckpointError, ConfigValueError) as error:
            message = str(error)
            unchanged = all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
        else:
            pairs = list(compare(name, network, json.loads((tmp_path / "weights.json").read_text())))
    result = "refused" if message else "same function"
    assert result == EXPECTED.get(mutation, result), message
    if message:
        assert str(path) in message
        assert "\n" not in message
        assert unchanged, "half loaded"
        return
    assert pairs
    for expected, computed in pairs:
        difference = (expected - computed).abs().max().item()
        assert difference <= TOLERANCES.get(mutation, 1e-5) * expected.abs().max().item()
