# SPDX-License-Identifier: Apache-2.0
"""The patch merging is told from numbers alone: in small networks that were trained both ways, and in larger ones."""

from __future__ import annotations

import json

import pytest
import torch
from monai.networks.nets import SwinUNETR

from tools.bundles import BUNDLES
from tools.errors import ConfigValueError, MissingFileError
from tools.studies.merging_forms import summarize
from tools.weights import read_state_dict
from tools.weights.merging_numbers import PAIRS, TWINS, judge, judge_distances, measure_distances

STUDY = BUNDLES / "swin_unetr_ssl" / "studies" / "merging_forms.json"
COMMITTED = sorted(
    path for name in ("swin_unetr_ssl", "voco_finetune") for path in BUNDLES.glob(f"{name}/models/*.safe*")
)


def make_distances(twins: float, others: float, spread: float = 0.02, inputs: int = 96) -> dict:
    generator = torch.Generator().manual_seed(0)
    noise = (spread * torch.randn(len(PAIRS), generator=generator)).tolist()
    distances = [twins if pair in TWINS else others + off for pair, off in zip(PAIRS, noise, strict=True)]
    return {"4": (8 * inputs, distances), "3": (4 * inputs, distances)}


@pytest.mark.parametrize("form", ["original", "corrected"])
def test_networks_of_the_study_are_told_rightly_or_not_at_all(form):
    networks = [entry for entry in json.loads(STUDY.read_text())["networks"] if entry["form"] == form]
    last = [judge_distances(entry["blocks"][max(entry["blocks"], key=int)]).form for entry in networks]
    assert len(last) >= 20
    assert last.count(form) >= 0.95 * len(last)
    assert set(last) <= {form, None}
    start = [judge_distances(entry["blocks"]["0"]).form for entry in networks]
    assert set(start) == {None}, "a network that was not trained tells nothing"


def test_the_table_in_the_docs_is_that_of_the_committed_numbers():
    document = (STUDY.parents[1] / "docs" / "README.md").read_text()
    assert f"<!-- table:{STUDY.stem} -->\n{summarize(STUDY)}\n<!-- /table:{STUDY.stem} -->" in document


def test_other_files_than_results_are_refused_with_a_sentence(tmp_path):
    with pytest.raises(MissingFileError, match="no such file"):
        summarize(tmp_path / "none.json")
    for content in ("{", "[]", "{}"):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(ConfigValueError, match="found no networks"):
            summarize(tmp_path / "other.json")


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_committed_models_are_told_to_be_of_todays_monai(path):
    assert judge(read_state_dict(path)).form == "corrected"


@pytest.mark.parametrize("seed", range(5))
def test_random_weights_tell_nothing(seed):
    torch.manual_seed(seed)
    verdict = judge(SwinUNETR(in_channels=1, out_channels=2, feature_size=12).state_dict())
    assert verdict.form is None
    assert "it takes 2.7%" in verdict.reason


@pytest.mark.parametrize(
    ("twins", "others", "form"),
    [
        (1.0, 1.3, "original"),
        (1.3, 1.3, "corrected"),
        (1.5, 1.3, "corrected"),
        (1.15, 1.3, None),  # half way
        (1.0, 1.005, None),  # hardly trained
        (0.5, 5.0, "original"),  # long training with weight decay
        (4.0, 30.0, "original"),  # after many steps the twins have parted a little, too
        (0.7, 0.72, None),  # shrunk by weight decay and not trained
        (float("nan"), 1.3, None),
    ],
)
def test_the_verdict_follows_from_how_far_the_twins_have_parted(twins, others, form):
    assert judge_distances(make_distances(twins, others)).form == form


def test_distances_are_those_of_the_blocks_in_units_of_the_start():
    torch.manual_seed(0)
    weight = torch.randn(4, 16)
    distances = measure_distances({"x.layers2.0.downsample.reduction.weight": weight})["2"]
    assert distances[0] == 16
    first, sixth = weight[:, :2], weight[:, 10:12]
    expected = ((first - sixth) ** 2).mean() / (2 / (3 * 16))
    assert distances[1][PAIRS.index((0, 5))] == pytest.approx(float(expected), abs=1e-5)


def test_other_tensors_are_not_looked_at():
    assert measure_distances({"layers1.0.blocks.0.reduction.weight": torch.ones(2, 16)}) == {}
    assert judge({}).form is None
