# SPDX-License-Identifier: Apache-2.0
"""What tells the patch merging of a file, and what is said where nothing does or two things differ."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.networks.nets import SwinUNETR
from safetensors.torch import save_file
from swin_weights import drop_marks, pretend_training

from tools import catalogue as catalogue_module
from tools.bundles import BUNDLES
from tools.catalogue import read_catalogue
from tools.errors import CheckpointError, ConfigValueError
from tools.networks import ScriptableSwinUNETR
from tools.networks.patch_merging import choose_form, read_form
from tools.weights import fill, initialize, load, save_checkpoint
from tools.weights.conversion import convert, inspect
from tools.weights.files import read_weights
from tools.weights.merging_forms import MergingForm, find_form
from tools.weights.merging_numbers import describe_numbers
from tools.weights.origins import find_origin
from tools.weights.swin_transformer import name_like_swinvit

COMMITTED = sorted(
    path for name in ("swin_unetr_ssl", "voco_finetune") for path in BUNDLES.glob(f"{name}/models/*.safe*")
)
SIZE = (64, 32, 32)
OPTIONS = {"feature_size": 12, "window_size": 2}


def make_network(patch_merging: str | None = None, seed: int = 0) -> ScriptableSwinUNETR:
    torch.manual_seed(seed)
    return ScriptableSwinUNETR(SIZE, 1, 2, patch_merging=patch_merging, **OPTIONS)


def make_state(form: str = "original") -> dict[str, torch.Tensor]:
    return drop_marks(make_network(form).state_dict())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pt"


def test_weights_that_tell_nothing_are_refused_with_the_argument_to_give(path):
    torch.save(make_state(), path)
    with pytest.raises(CheckpointError) as caught:
        load(make_network("auto"), path)
    assert re.fullmatch(
        re.escape(f"{path}: found a Swin transformer, and nothing that tells its patch merging (a hint, no proof: ")
        + r"blocks that the original form trains alike lie \d+% as far apart as others, where much less than 100% "
        r"speaks for original and about 100% for neither\), wanted weights of a known form; give --patch_merging "
        r"original \(trained with MONAI 0\.9\.0 to 1\.4\.0, as all public weights\) or --patch_merging corrected "
        r"\(MONAI 1\.5\.0 and later\)\.",
        str(caught.value),
    )


@pytest.mark.parametrize("form", ["original", "corrected", "v2"])
@pytest.mark.parametrize("as_argument", [True, False])
def test_the_argument_or_the_networks_config_tells_it(form, as_argument, path):
    torch.save(make_state(form), path)
    network = make_network(None if as_argument else form, seed=1)
    load(network, path, patch_merging=form if as_argument else "auto", report_dir=path.parent)
    assert read_form(network) == form
    report = json.loads((path.parent / "weights.json").read_text())
    assert (report["patch_merging"], report["patch_merging_evidence"]) == (form, "given as patch_merging")
    assert report["counts"]["matched"] == 159


TRAININGS = {  # of numbers that an earlier version of this project took for a proof, and of those that misled it
    "trained as original": lambda: pretend_training(make_network("original").state_dict(), "original"),
    "trained as corrected": lambda: pretend_training(make_network("original").state_dict(), "corrected"),
    "trained as original, then as corrected": lambda: pretend_training(
        pretend_training(make_network("original").state_dict(), "original"), "corrected", seed=2
    ),
    "Xavier": lambda: initialize_with(torch.nn.init.xavier_normal_),
    "Kaiming": lambda: initialize_with(torch.nn.init.kaiming_normal_),
    "orthogonal": lambda: initialize_with(torch.nn.init.orthogonal_),
}


def initialize_with(initializer: Callable[[torch.Tensor], object]) -> dict[str, torch.Tensor]:
    state = make_state("original")
    for name, tensor in state.items():
        if name.endswith("reduction.weight"):
            initializer(tensor)
    return state


@pytest.mark.parametrize("training", TRAININGS)
def test_the_numbers_decide_nothing(training, path):
    torch.save(TRAININGS[training](), path)
    with pytest.raises(CheckpointError, match=r"nothing that tells its patch merging \(a hint, no proof: .* lie \d+%"):
        load(make_network("auto"), path)
    for form in ("original", "corrected"):
        assert read_form(load(make_network("auto"), path, patch_merging=form)) == form


def test_the_hint_is_how_far_the_twins_lie_apart_compared_with_other_blocks():
    torch.manual_seed(0)
    weight = torch.randn(2, 16)
    blocks = [weight[:, 2 * number : 2 * number + 2] for number in range(8)]
    distances = {(a, b): float(((blocks[a] - blocks[b]) ** 2).sum()) for a in range(8) for b in range(a + 1, 8)}
    twins = (distances.pop((2, 5)) + distances.pop((3, 6))) / 2
    share = twins / (sum(distances.values()) / 26)
    text = describe_numbers({"x.layers2.0.downsample.reduction.weight": weight, "layers1.reduction.weight": weight})
    assert f"lie {share:.0%} as far apart as others" in text
    alike = {"layers1.0.downsample.reduction.weight": torch.ones(2, 16)}
    assert "lie - as far apart" in describe_numbers(alike)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_the_overlay_of_a_committed_model_tells_it(path):
    weights, facts = read_weights(path)
    assert find_form(weights, {}, origin=find_origin(path, weights, facts, "")) == MergingForm(
        "corrected", "told by the file"
    )


def test_an_unknown_argument_is_refused(path):
    torch.save(make_state(), path)
    with pytest.raises(ConfigValueError, match=r"patch_merging: found 'orignal', wanted one of auto, original"):
        load(make_network(), path, patch_merging="orignal")


WRITERS = {
    "state dict": lambda network, path: torch.save(network.state_dict(), path),
    "training run": lambda network, path: save_checkpoint(
        {"model": network.state_dict(), "iteration": 5, "max_epochs": 1, "record": []}, path
    ),
    "safetensors": lambda network, path: save_file(network.state_dict(), path),
    "model_swinvit.pt": lambda network, path: save_checkpoint(name_like_swinvit(network.state_dict()), path),
    "TorchScript": lambda network, path: torch.jit.script(network.eval()).save(path),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("form", ["original", "corrected"])
def test_what_this_project_writes_tells_it(writer, form, path):
    WRITERS[writer](make_network("auto" if form == "corrected" else form), path)
    network = make_network(seed=1)
    choose_form(network, "v2")  # whatever it was
    load(network, path, report_dir=path.parent)
    assert read_form(network) == form
    assert json.loads((path.parent / "weights.json").read_text())["patch_merging_evidence"] == "told by the file"


def test_an_argument_that_contradicts_the_file_is_refused(path):
    torch.save(make_network("original").state_dict(), path)
    for network, asked in ((make_network(), "corrected"), (make_network("corrected"), "auto")):
        with pytest.raises(
            CheckpointError,
            match=r"weights\.pt: found patch merging original \(told by the file\) and corrected \(given as "
            r"patch_merging\), wanted one form; leave out --patch_merging",
        ):
            load(network, path, patch_merging=asked)


def test_a_run_from_before_the_form_was_written_is_one_of_todays_monai(path):
    state = make_state("corrected")
    save_checkpoint({"model": state, "iteration": 5, "max_epochs": 1, "record": []}, path)
    assert read_form(load(make_network("auto"), path)) == "corrected"
    network = make_network("auto")
    assert read_form(fill(network, state, "last.pt")) == "corrected"


def test_a_run_is_resumed_in_the_form_of_its_weights():
    state = make_network("original").state_dict()
    assert read_form(fill(make_network("auto"), state, "last.pt")) == "original"


def test_monais_own_network_gets_the_form_too(path):
    torch.save(make_state("original"), path)
    theirs, ours = SwinUNETR(in_channels=1, out_channels=2, **OPTIONS).eval(), make_network("original").eval()
    load(theirs, path, patch_merging="original")
    image = torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(theirs(image), ours(image))


def make_catalogue(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, **entry: object) -> None:
    """Let the catalogue be one file of a bundle `toy`."""
    fields = {"name": name, "path": f"models/{name}", "url": "https://example.org/x", "licence": "none"}
    network = {"_target_": "monai.networks.nets.SwinUNETR", "feature_size": 12}
    fields |= {"layout": "swin_unetr", "network": network, "patch_merging": "original", **entry}
    (folder / "toy").mkdir()
    (folder / "toy" / "large_files.yml").write_text(json.dumps({"large_files": [fields]}))
    monkeypatch.setattr(catalogue_module, "BUNDLES", folder)


def test_the_name_of_a_public_file_tells_it(tmp_path, monkeypatch):
    make_catalogue(tmp_path, monkeypatch, "public.pt")
    torch.save(make_state("original"), tmp_path / "public.pt")
    network = load(make_network("auto"), tmp_path / "public.pt", report_dir=tmp_path)
    assert read_form(network) == "original"
    told = json.loads((tmp_path / "weights.json").read_text())["patch_merging_evidence"]
    assert told == "assumed from its name, public.pt; --patch_merging corrected says otherwise"
    assert read_form(load(make_network("auto"), tmp_path / "public.pt", patch_merging="corrected")) == "corrected"


def test_the_name_of_a_public_file_of_another_width_tells_nothing(tmp_path, monkeypatch):
    make_catalogue(tmp_path, monkeypatch, "public.pt", network={"_target_": "x.SwinUNETR", "feature_size": 48})
    torch.save(make_state("original"), tmp_path / "public.pt")
    with pytest.raises(CheckpointError, match="nothing that tells its patch merging"):
        load(make_network("auto"), tmp_path / "public.pt")


@pytest.mark.parametrize("hash_type", ["sha256", "md5"])
def test_the_hash_of_a_public_file_tells_it_under_any_name_and_whatever_is_asked(hash_type, tmp_path, monkeypatch):
    path = tmp_path / "renamed.pt"
    torch.save(make_state("original"), path)
    digest = hashlib.new(hash_type, path.read_bytes()).hexdigest()
    size_mb = round(path.stat().st_size / 1e6)
    make_catalogue(tmp_path, monkeypatch, "public.pt", hash_val=digest, hash_type=hash_type, size_mb=size_mb)
    load(network := make_network("auto"), path)
    assert read_form(network) == "original"
    with pytest.raises(CheckpointError, match=r"known by the hash of models/public\.pt"):
        load(make_network(), path, patch_merging="corrected")


def test_all_public_swin_files_were_trained_in_the_original_form():
    files = [file for bundle in ("swin_unetr_ssl", "voco_finetune") for file in read_catalogue(bundle)]
    assert len(files) > 10
    assert {file.patch_merging for file in files} == {"original"}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_converted_file_tells_it(suffix, path):
    torch.save(make_state("original"), path)
    out = path.with_name(f"converted{suffix}")
    text = convert(path, make_network(), out, patch_merging="original")
    assert "merging  original, given as patch_merging" in text
    assert read_form(load(make_network(seed=1), out, complete=True)) == "original"
    assert "merging   original (told by the file)" in inspect(out)


def test_inspection_tells_that_nothing_tells_it(path):
    torch.save(make_state(), path)
    assert "nothing that tells its patch merging" in inspect(path)
    assert "give --patch_merging original" in inspect(path)


def test_training_from_nothing_is_in_the_corrected_form():
    assert read_form(initialize(make_network("auto"), None)) == "corrected"
