# SPDX-License-Identifier: Apache-2.0
"""The network is ViTAutoEnc with a head, the loss is L1 plus InfoNCE over the views of all processes."""

from __future__ import annotations

import math
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from comparisons import assert_equal_to_scale
from monai.networks.nets import UNETR, ViTAutoEnc
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tools.errors import ConfigValueError
from tools.pretraining import ContrastiveViTAutoEnc, ReconstructionContrastLoss

SMALL = {"hidden_size": 24, "mlp_dim": 48, "num_heads": 3}
DECODER_AND_HEAD = ("conv3d_transpose", "projection.")


def make_network(**changes) -> ContrastiveViTAutoEnc:
    arguments = {"in_channels": 1, "img_size": (32, 16, 16), "projection_dim": 8, "num_layers": 2, **SMALL}
    return ContrastiveViTAutoEnc(**(arguments | changes))


def read_shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("proj_type", ["conv", "perceptron"])
def test_names_are_those_of_vitautoenc_and_of_the_projection(proj_type):
    with torch.device("meta"):
        network = ContrastiveViTAutoEnc(1, 96, proj_type=proj_type)
        plain = ViTAutoEnc(1, (96, 96, 96), 16, proj_type=proj_type)
    shapes = read_shapes(network)
    head = {name for name in shapes if name.startswith("projection.")}
    assert len(head) == 4
    assert {name: shape for name, shape in shapes.items() if name not in head} == read_shapes(plain)
    assert len(shapes) - len(head) == 165


@pytest.mark.parametrize("proj_type", ["conv", "perceptron"])
def test_the_transformer_is_that_of_a_unetr_of_the_same_sizes(proj_type):
    network = make_network(num_layers=12, proj_type=proj_type)
    unetr = UNETR(1, 3, (32, 16, 16), proj_type=proj_type, **SMALL)
    encoder = {n: shape for n, shape in read_shapes(network).items() if not n.startswith(DECODER_AND_HEAD)}
    assert len(encoder) == 161
    assert encoder == read_shapes(unetr.vit)


@pytest.mark.numeric
def test_the_reconstruction_is_that_of_vitautoenc_and_the_embedding_that_of_the_mean_token():
    network = make_network(in_channels=2).eval()
    plain = ViTAutoEnc(2, (32, 16, 16), 16, out_channels=2, num_layers=2, **SMALL).eval()
    plain.load_state_dict({n: t for n, t in network.state_dict().items() if not n.startswith("projection.")})
    image = torch.randn(3, 2, 32, 16, 16)
    output = network(image)
    reconstruction, hidden_states = plain(image)
    assert_equal_to_scale(output["reconstruction"], reconstruction)
    assert reconstruction.shape == image.shape
    embedding = network.projection(plain.norm(hidden_states[-1]).mean(1))
    assert output["embedding"].shape == (3, 8)
    assert_equal_to_scale(output["embedding"], embedding)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"img_size": (32, 24, 16)}, "32×24×16, wanted multiples of 16"),
        ({"img_size": 0}, "multiples of 16"),
        ({"num_heads": 5}, "hidden_size: found 24"),
    ],
)
def test_sizes_that_do_not_fit_are_told(changes, words):
    with pytest.raises(ConfigValueError, match=words):
        make_network(**changes)


def compute_info_nce(first: Tensor, second: Tensor, temperature: float) -> float:
    """The contrast by its definition: each view looks for its partner among all other views."""
    views = F.normalize(torch.cat([first, second]).double())
    count, total = len(views), 0.0
    for anchor in range(count):
        partner = (anchor + count // 2) % count
        scores = [float(views[anchor] @ views[other]) / temperature for other in range(count)]
        others = sum(math.exp(score) for other, score in enumerate(scores) if other != anchor)
        total -= math.log(math.exp(scores[partner]) / others)
    return total / count


@pytest.mark.numeric
@pytest.mark.parametrize("count", [1, 4])
def test_the_loss_is_l1_over_both_views_plus_the_weighted_contrast(count):
    torch.manual_seed(0)
    reconstruction, target = torch.randn(2 * count, 1, 4, 4, 4), torch.randn(2 * count, 1, 4, 4, 4)
    embedding = torch.randn(2 * count, 6)
    loss = ReconstructionContrastLoss(temperature=0.2, contrast_weight=0.3)
    value = loss({"reconstruction": reconstruction, "embedding": embedding}, target)
    l1 = float((reconstruction - target).abs().mean())
    contrast = compute_info_nce(embedding[:count], embedding[count:], 0.2)
    assert float(value) == pytest.approx(l1 + 0.3 * contrast, rel=1e-5)
    assert float(loss.reconstruction) == pytest.approx(l1)
    assert float(loss.contrast) == pytest.approx(contrast, rel=1e-5)
    assert not loss.reconstruction.requires_grad
    assert not loss.contrast.requires_grad


@pytest.mark.numeric
def test_views_that_find_their_partner_have_less_contrast_than_views_that_do_not():
    first = torch.eye(4)
    loss = ReconstructionContrastLoss()
    crops = torch.zeros(8, 1, 2, 2, 2)
    contrasts = []
    for second in (first, first.roll(1, 0)):
        loss({"reconstruction": crops, "embedding": torch.cat([first, second])}, crops)
        contrasts.append(float(loss.contrast))
    assert contrasts[0] < 1e-6
    assert contrasts[1] > 10  # 1 / temperature, as the wrong partner is a perfect match


def test_each_view_and_every_used_parameter_get_a_gradient_from_its_own_term():
    torch.manual_seed(0)
    network = make_network()
    target = torch.rand(2, 1, 32, 16, 16).repeat(2, 1, 1, 1, 1)

    def list_trained(weight: float, scale: float) -> tuple[list[bool], set[str]]:
        network.zero_grad(set_to_none=True)
        views = torch.rand(4, 1, 32, 16, 16, requires_grad=True)
        output = network(views)
        output["reconstruction"] = output["reconstruction"] * scale
        ReconstructionContrastLoss(contrast_weight=weight)(output, target).backward()
        trained = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        return [bool(view.abs().sum() > 0) for view in views.grad], trained

    for weight, scale in ((0.0, 1.0), (0.1, 0.0)):
        views, trained = list_trained(weight, scale)
        assert all(views)
        assert "patch_embedding.patch_embeddings.weight" in trained
        assert any(name.startswith("conv3d_transpose.") for name in trained) == bool(scale)
        assert any(name.startswith("projection.") for name in trained) == bool(weight)
    _, trained = list_trained(0.1, 1.0)
    assert {n for n, _ in network.named_parameters() if ".norm_cross_attn." not in n} == trained


def test_half_precision_does_not_overflow():
    embedding = torch.ones(4, 8, dtype=torch.float16, requires_grad=True)  # similarity 1, exp(20) > 65504
    crops = torch.zeros(4, 1, 2, 2, 2, dtype=torch.float16)
    loss = ReconstructionContrastLoss()({"reconstruction": crops, "embedding": embedding}, crops)
    loss.backward()
    assert math.isfinite(loss.item())
    assert bool(torch.isfinite(embedding.grad).all())


def test_a_temperature_that_overflows_is_refused():
    with pytest.raises(ConfigValueError, match=r"temperature: found 0\.005, wanted at least 0\.0125"):
        ReconstructionContrastLoss(temperature=0.005)
    embedding = torch.ones(200, 4)
    crops = torch.zeros(200, 1, 1, 1, 1)
    loss = ReconstructionContrastLoss(temperature=0.0125)({"reconstruction": crops, "embedding": embedding}, crops)
    assert math.isfinite(float(loss))


class Stub(nn.Module):
    """Has the outputs of the network, and few weights."""

    def __init__(self) -> None:
        super().__init__()
        self.restore = nn.Linear(5, 5)
        self.project = nn.Linear(5, 3)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"reconstruction": self.restore(image), "embedding": self.project(image)}


def compute_gradient(views: Tensor, target: Tensor, distributed: bool = False) -> tuple[float, list[Tensor]]:
    """Return the contrast and the gradient of one step on `(crops, view, 5)`."""
    torch.manual_seed(0)
    network = Stub()
    wrapped = DistributedDataParallel(network) if distributed else network
    loss = ReconstructionContrastLoss()
    loss(wrapped(torch.cat([views[:, 0], views[:, 1]])), torch.cat([target, target])).backward()
    return float(loss.contrast), [parameter.grad for parameter in network.parameters()]


def make_crops() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 2, 5, generator=generator), torch.randn(4, 5, generator=generator)


def train_half(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    views, target = make_crops()
    part = slice(2 * rank, 2 * rank + 2)
    torch.save(compute_gradient(views[part], target[part], distributed=True), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.costs(processes=2)
@pytest.mark.numeric
def test_two_processes_compute_the_gradient_of_one_with_the_whole_batch(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=train_half, args=(rank, tmp_path), daemon=True) for rank in (0, 1)]
    for process in processes:
        process.start()
    contrast, gradient = compute_gradient(*make_crops())
    alone = [
        compute_gradient(views, target)[0] for views, target in zip(*(x.split(2) for x in make_crops()), strict=True)
    ]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for rank in (0, 1):
        found_contrast, found_gradient = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found_contrast == pytest.approx(contrast)
        assert found_contrast != pytest.approx(alone[rank], abs=1e-3)  # the other process's views count too
        for found, expected in zip(found_gradient, gradient, strict=True):
            assert_equal_to_scale(found, expected)
