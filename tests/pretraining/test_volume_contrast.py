# SPDX-License-Identifier: Apache-2.0
"""The loss of VoCo is what the formulas say."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from overlaps import TERMS, VARIANTS, make_overlap
from torch import Tensor

from tools.pretraining import VolumeContrastLoss


def make_embeddings(dtype: torch.dtype, volumes: int = 3, crops: int = 2, bases: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    counts = {"base": bases, "random": crops, "teacher_base": bases, "teacher_random": crops}
    common = torch.randn(4, generator=generator)  # so that most cosines are positive, but not all
    return {
        name: (torch.randn(volumes, count, 4, generator=generator) + common).to(dtype) for name, count in counts.items()
    }


def cosine(first: list[float], second: list[float]) -> float:
    norms = math.sqrt(sum(x * x for x in first)) * math.sqrt(sum(x * x for x in second))
    return sum(x * y for x, y in zip(first, second, strict=True)) / norms


def predict_by_hand(shares: list[list[float]], similarity: list[list[float]], form: str) -> tuple[float, float]:
    """The two terms of one volume, number by number, as section 5 of the paper's code and its extension have them."""
    pairs = [pair for rows in zip(shares, similarity, strict=True) for pair in zip(*rows, strict=True)]
    logs = [math.log(1 - abs(y - s) + 1e-6) for y, s in pairs]
    if form == "paper":
        return -sum(logs) / len(logs), 0.0
    positive = -sum(y * log for (y, _), log in zip(pairs, logs, strict=True)) / (sum(y for y, _ in pairs) + 1e-6)
    apart = [s for y, s in pairs if y == 0]
    costs = [s**2 if form == "cvpr" else -math.log(1 - s + 1e-6) for s in apart]
    return positive, sum(costs) / (len(apart) + 1e-6)


def compute_by_hand(embeddings: dict[str, Tensor], overlap: Tensor, form: str) -> dict[str, float]:
    """All terms in double precision with loops over volumes, crops and base crops."""
    vectors = {name: tensor.double().tolist() for name, tensor in embeddings.items()}
    shares = overlap.double().tolist()
    volumes = len(shares)
    terms = dict.fromkeys(TERMS, 0.0)

    def compare(crops: str, bases: str, volume: int, other: int) -> list[list[float]]:
        return [[max(0.0, cosine(a, b)) for b in vectors[bases][other]] for a in vectors[crops][volume]]

    for volume in range(volumes):
        if form == "paper":
            similarity = compare("random", "base", volume, volume)
        else:
            similarity = compare("random", "teacher_base", volume, volume)
        if form == "cvpr":
            second = compare("teacher_random", "base", volume, volume)
            similarity = [
                [(a + b) / 2 for a, b in zip(*rows, strict=True)] for rows in zip(similarity, second, strict=True)
            ]
        positive, negative = predict_by_hand(shares[volume], similarity, form)
        terms["positive"] += positive / volumes
        terms["negative"] += negative / volumes
        terms["prediction"] += (positive + negative) / volumes
        if form == "extension":
            other = (volume + 1) % volumes
            target = compare("teacher_random", "teacher_base", volume, other)
            terms["inter_volume"] += (
                sum(predict_by_hand(target, compare("random", "base", volume, other), form)) / volumes
            )
        bases = vectors["base"][volume]
        cosines = [cosine(bases[i], bases[j]) for i in range(len(bases)) for j in range(i + 1, len(bases))]
        costs = [abs(x) if form == "paper" else max(0.0, x) ** 2 for x in cosines]
        terms["regularization"] += sum(costs) / len(costs) / volumes
    return terms


@pytest.mark.numeric
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_terms_are_those_of_the_formulas(variant, dtype, tolerance):
    embeddings = make_embeddings(dtype)
    overlap = make_overlap(3, 2, 5)
    overlap[0, 0] = torch.eye(5)[2]  # a crop on a base crop
    assert any((embeddings["random"] @ embeddings["base"].transpose(1, 2)).flatten() < 0)
    weighted = VolumeContrastLoss(variant, prediction_weight=2, inter_volume_weight=3, regularization_weight=5)
    value = weighted(embeddings, overlap)
    expected = compute_by_hand(embeddings, overlap, variant)
    for name in TERMS:
        assert float(getattr(weighted, name)) == pytest.approx(expected[name], rel=tolerance), name
    total = 2 * expected["prediction"] + 3 * expected["inter_volume"] + 5 * expected["regularization"]
    assert value.item() == pytest.approx(total, rel=tolerance)
    assert float(weighted.compute_prediction(embeddings, overlap)) == pytest.approx(
        expected["prediction"], rel=tolerance
    )
    assert (expected["inter_volume"] > 0) == (variant == "extension")


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_go_where_the_published_code_lets_them(variant):
    embeddings = {name: tensor.requires_grad_() for name, tensor in make_embeddings(torch.float64).items()}

    def list_moved(**weights_of_terms: float) -> set[str]:
        for tensor in embeddings.values():
            tensor.grad = None
        all_weights = {"prediction_weight": 0.0, "inter_volume_weight": 0.0, "regularization_weight": 0.0}
        VolumeContrastLoss(variant, **(all_weights | weights_of_terms))(embeddings, make_overlap(3, 2, 5)).backward()
        return {name for name, x in embeddings.items() if x.grad is not None and x.grad.abs().sum() > 0}

    # the network gives the teacher's embeddings without gradient; here they show what takes part
    taking_part = {
        "cvpr": {"random", "base", "teacher_random", "teacher_base"},
        "extension": {"random", "teacher_base"},
        "paper": {"random"},  # base crops without gradient
    }
    assert list_moved(prediction_weight=1.0) == taking_part[variant]
    assert list_moved(inter_volume_weight=1.0) == ({"random", "base"} if variant == "extension" else set())
    assert list_moved(regularization_weight=1.0) == {"base"}
    if variant != "paper":  # the second of each pair stands still, hence the last base crop
        assert not embeddings["base"].grad[:, -1].any()


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_is_computed_in_single_precision(dtype):
    embeddings = {name: tensor.detach().requires_grad_() for name, tensor in make_embeddings(dtype).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = VolumeContrastLoss()(embeddings, make_overlap(3, 2, 5))
    value.backward()
    expected = compute_by_hand(embeddings, make_overlap(3, 2, 5), "extension")
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(
        sum(expected[n] for n in ("prediction", "inter_volume", "regularization")), rel=1e-5
    )
    assert bool(torch.isfinite(embeddings["random"].grad).all())


@pytest.mark.numeric
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_perfect_and_a_hopeless_prediction_have_a_finite_loss(variant):
    axes = torch.eye(4)[None]
    overlap = torch.eye(4)[None]
    for crops in (axes, axes.roll(1, 1), -axes, torch.zeros_like(axes)):
        crops = crops.clone().requires_grad_()
        output = {"base": axes, "random": crops, "teacher_base": axes, "teacher_random": crops.detach()}
        loss = VolumeContrastLoss(variant)
        value = loss(output, overlap)
        value.backward()
        assert math.isfinite(value.item())
        assert bool(torch.isfinite(crops.grad).all())
        if torch.equal(crops, axes):
            assert float(loss.prediction) == pytest.approx(0, abs=1e-5)
            assert float(loss.regularization) == 0
            assert float(loss.retrieval) == 1
    assert float(loss.prediction) > 3


def test_retrieval_counts_the_crops_that_are_most_like_the_right_base_crop():
    bases = torch.eye(3)[None]
    crops = torch.tensor([[[0.9, 0.1, 0], [0.9, 0.1, 0], [0, 0.3, 0.2], [0, 0.2, 0.3], [-0.1, -0.2, -0.3]]])
    overlap = torch.tensor([[[0.8, 0.2, 0], [0.2, 0.8, 0], [0, 0.5, 0.5], [0, 0.5, 0.5], [0.7, 0.3, 0]]])
    output = {"base": bases, "random": crops, "teacher_base": bases, "teacher_random": crops}
    for variant in VARIANTS:  # the last one: below 0 there still is a nearest
        assert VolumeContrastLoss(variant).find_hits(output, overlap).tolist() == [1, 0, 1, 1, 1]


def test_a_single_volume_has_no_inter_volume_term_and_that_is_said_once(caplog):
    loss = VolumeContrastLoss("extension")
    embeddings = make_embeddings(torch.float32, volumes=1)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            loss(embeddings, make_overlap(1, 2, 5))
    assert float(loss.inter_volume) == 0
    assert [record.message for record in caplog.records] == [
        "the inter-volume term is off: it needs two volumes in a batch, and there is one"
    ]
