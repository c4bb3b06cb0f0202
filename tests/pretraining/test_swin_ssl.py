# SPDX-License-Identifier: Apache-2.0
"""The network is SwinUNETR's transformer with the published heads, the loss adds up its three tasks."""

from __future__ import annotations

import copy
import itertools
import math
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from comparisons import assert_equal_to_scale
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanAbsoluteError
from monai.losses import ContrastiveLoss
from monai.networks.nets import SwinUNETR
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from tools import weights
from tools.errors import ConfigValueError
from tools.pretraining import ProxyTaskLoss, ProxyTasks, SwinSSL
from tools.weights.layouts import recognize

SHAPE = (64, 32, 32)
TASKS = ("rotation", "contrast", "reconstruction")
SUBSETS = [subset for count in (1, 2, 3) for subset in itertools.combinations(TASKS, count)]


def make_network(**changes) -> SwinSSL:
    # windows of 2: a step takes 0.1 s, with those of 7 on so small a crop 10 s
    return SwinSSL(**({"in_channels": 1, "img_size": SHAPE, "feature_size": 12, "window_size": 2} | changes))


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def read_shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    ("feature_size", "use_v2", "whole", "entries"),
    [
        (48, False, 62_187_296, 126),
        (48, True, 72_762_656, 134),
        (24, False, 15_703_304, 126),
        (12, False, 4_078_220, 126),
    ],
)
def test_the_transformer_is_that_of_a_swinunetr_of_the_same_arguments(feature_size, use_v2, whole, entries):
    unetr = SwinUNETR(1, 14, feature_size=feature_size, use_v2=use_v2)
    assert count_parameters(unetr) == whole
    network = SwinSSL(1, 96, feature_size=feature_size, use_v2=use_v2)
    shapes = {name: shape for name, shape in read_shapes(network).items() if name.startswith("swinViT.")}
    assert len(shapes) == entries
    assert shapes == {name: shape for name, shape in read_shapes(unetr).items() if name.startswith("swinViT.")}


def test_parameters_are_as_many_as_published():
    network = SwinSSL(1, 96)
    assert count_parameters(network.swinViT) == 8_062_002
    assert count_parameters(network.conv) == 10_638_385
    assert count_parameters(network.rotation_head) == 768 * 4 + 4
    assert count_parameters(network.contrastive_head) == 768 * 512 + 512
    assert count_parameters(network) == 19_097_191


@pytest.mark.parametrize(
    ("decoder", "names"),
    [
        ("vae", {f"conv.{layer}.{part}" for layer in (0, 4, 8, 12, 16, 20) for part in ("weight", "bias")}),
        ("deconv", {f"conv.{layer}.{part}" for layer in range(5) for part in ("weight", "bias")}),
        ("large_kernel_deconv", {"conv.weight", "conv.bias"}),
    ],
)
def test_heads_have_the_names_of_the_published_script(decoder, names):
    network = make_network(decoder=decoder, in_channels=2)
    heads = {name for name in network.state_dict() if not name.startswith("swinViT.")}
    linear = {f"{head}_head.{part}" for head in ("rotation", "contrastive") for part in ("weight", "bias")}
    assert heads == names | linear
    deepest = torch.randn(1, 192, 2, 1, 1)
    assert network.conv(deepest).shape == (1, 2, *SHAPE)


@pytest.mark.parametrize("use_v2", [False, True])
def test_a_file_of_it_fills_the_transformer_of_a_swinunetr(tmp_path, use_v2):
    network = make_network(use_v2=use_v2)
    torch.save({"state_dict": {f"module.{n}": t for n, t in network.state_dict().items()}}, tmp_path / "ssl.pt")
    assert recognize(network.state_dict()).name == "swin_ssl_head"
    unetr = SwinUNETR(1, 3, feature_size=12, window_size=2, use_v2=use_v2)
    weights.load(unetr, tmp_path / "ssl.pt", patch_merging="corrected")
    for name, tensor in network.swinViT.state_dict().items():
        assert torch.equal(unetr.swinViT.state_dict()[name], tensor)
    other = make_network(use_v2=use_v2)
    weights.load(other, tmp_path / "ssl.pt", patch_merging="corrected")  # a pre-training that goes on from another
    assert torch.equal(other.swinViT.state_dict()[name], tensor)


@pytest.mark.numeric
def test_heads_read_token_0_and_token_1_of_the_deepest_map():
    network = make_network().eval()
    image = torch.rand(2, 1, *SHAPE)
    output = network(image)
    deepest = network.swinViT(image)[-1]
    assert deepest.shape == (2, 192, 2, 1, 1)
    assert_equal_to_scale(output["rotation"], network.rotation_head(deepest[:, :, 0, 0, 0]))
    assert_equal_to_scale(output["embedding"], network.contrastive_head(deepest[:, :, 1, 0, 0]))
    assert_equal_to_scale(output["reconstruction"], network.conv(deepest))
    assert {name: tuple(tensor.shape) for name, tensor in output.items()} == {
        "rotation": (2, 4),
        "embedding": (2, 512),
        "reconstruction": (2, 1, *SHAPE),
    }


@pytest.mark.numeric
def test_token_1_is_the_neighbour_along_z():
    network = make_network(img_size=(32, 32, 64), tasks=["contrast"]).eval()
    image = torch.rand(1, 1, 32, 32, 64)
    assert_equal_to_scale(
        network(image)["embedding"], network.contrastive_head(network.swinViT(image)[-1][..., 0, 0, 1])
    )


@pytest.mark.numeric
def test_pooled_heads_read_the_mean_of_all_tokens():
    network = make_network(heads="pooled", embedding_dim=7).eval()
    image = torch.rand(2, 1, *SHAPE)
    output = network(image)
    mean = network.swinViT(image)[-1].mean((2, 3, 4))
    assert_equal_to_scale(output["rotation"], network.rotation_head(mean))
    assert_equal_to_scale(output["embedding"], network.contrastive_head(mean))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"img_size": (96, 96, 48)}, "roi_size: found 96×96×48, wanted multiples of 32"),
        ({"img_size": 32}, "found 32×32×32, wanted multiples of 32, not all of them 32"),
        ({"img_size": 0}, "multiples of 32"),
        ({"feature_size": 40}, "feature_size: found 40, wanted a multiple of 12"),
        ({"tasks": ()}, "tasks: found none"),
        ({"tasks": ["rotation", "jigsaw"]}, "tasks: found rotation, jigsaw"),
        ({"heads": "mean"}, "heads: found 'mean', wanted one of tokens, pooled"),
        ({"decoder": "unet"}, "decoder: found 'unet', wanted one of vae, deconv"),
    ],
)
def test_arguments_that_do_not_fit_are_told(changes, words):
    with pytest.raises(ConfigValueError, match=words):
        make_network(**changes)


def make_crops(count: int = 2, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Return smooth phantoms from 0 to 1, which are dark in front and bright behind."""
    torch.manual_seed(0)
    grid = torch.stack(torch.meshgrid(*(torch.linspace(0, 1, size) for size in shape), indexing="ij"))
    centre, radius = torch.rand(count, 6, 3, 1, 1, 1), 0.1 + 0.3 * torch.rand(count, 6, 1, 1, 1)
    height = torch.rand(count, 6, 1, 1, 1) - 0.3
    crops = (height * torch.exp(-((grid - centre) ** 2).sum(2) / radius**2)).sum(1) + 0.7 * grid[1]
    crops = crops - crops.amin((1, 2, 3), keepdim=True)
    return (crops / crops.amax((1, 2, 3), keepdim=True))[:, None]


@pytest.mark.parametrize("tasks", SUBSETS)
def test_a_task_that_is_off_leaves_no_head_and_each_parameter_gets_a_gradient(tasks):
    network = make_network(tasks=tasks)
    names = {name.split(".")[0] for name in network.state_dict()}
    heads = {"rotation": "rotation_head", "contrast": "contrastive_head", "reconstruction": "conv"}
    assert names == {"swinViT"} | {heads[task] for task in tasks}
    views, target = ProxyTasks(SHAPE)({"image": make_crops()})
    loss = ProxyTaskLoss()
    value = loss(network(views), target)
    value.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())  # DistributedDataParallel needs it
    assert network.swinViT.patch_embed.proj.weight.grad.abs().sum() > 0
    for task in TASKS:
        assert (float(getattr(loss, task)) > 0) == (task in tasks)
    assert value.item() == pytest.approx(sum(float(getattr(loss, task)) for task in tasks), rel=1e-5)


def make_output(count: int, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(1)
    output = {"rotation": torch.randn(2 * count, 4), "embedding": torch.randn(2 * count, 512)}
    output["reconstruction"] = torch.randn(2 * count, 2, 4, 4, 4)
    output = {name: tensor.to(dtype).requires_grad_() for name, tensor in output.items()}
    target = {"rotation": torch.arange(2 * count) % 4, "reconstruction": torch.randn(2 * count, 2, 4, 4, 4)}
    return output, target | {"mask": torch.rand(2 * count, 1, 4, 4, 4) < 0.3}


@pytest.mark.numeric
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_loss_is_the_weighted_sum_of_its_three_terms(count):
    output, target = make_output(count)
    loss = ProxyTaskLoss(rotation_weight=0.5, contrast_weight=2, reconstruction_weight=3, temperature=0.3)
    value = loss(output, target)
    rotation = F.cross_entropy(output["rotation"], target["rotation"])
    contrast = compute_nt_xent(output["embedding"][:count], output["embedding"][count:], 0.3)
    reconstruction = (output["reconstruction"] - target["reconstruction"]).abs().mean()
    assert float(loss.rotation) == pytest.approx(rotation.item())
    assert float(loss.contrast) == pytest.approx(contrast, rel=1e-5)
    assert float(loss.reconstruction) == pytest.approx(reconstruction.item())
    assert value.item() == pytest.approx((0.5 * rotation + 2 * contrast + 3 * reconstruction).item(), rel=1e-5)
    assert not any(getattr(loss, task).requires_grad for task in TASKS)


def compute_nt_xent(first: Tensor, second: Tensor, temperature: float) -> float:
    """The contrast as the published code computes it, in double precision."""
    views = F.normalize(torch.cat([first, second]).detach().double(), dim=1)
    scores = (views @ views.T / temperature).exp()
    partner = scores.diag(len(first)).repeat(2)
    return float(-(partner / (scores.sum(1) - scores.diag())).log().mean())


@pytest.mark.numeric
@pytest.mark.parametrize("count", [2, 6])
def test_the_contrast_is_that_of_monai_with_a_temperature_of_a_half(count):
    output, target = make_output(count)
    loss = ProxyTaskLoss()
    loss({"embedding": output["embedding"]}, target)
    expected = ContrastiveLoss(temperature=0.5)(output["embedding"][:count], output["embedding"][count:])
    assert float(loss.contrast) == pytest.approx(expected.item())
    assert expected.item() == pytest.approx(compute_nt_xent(*output["embedding"].chunk(2), 0.5))


@pytest.mark.numeric
def test_l1_can_be_that_of_the_holes_alone():
    output, target = make_output(2)
    loss = ProxyTaskLoss(masked_only=True)
    loss(output, target)
    mask = target["mask"].expand_as(target["reconstruction"])
    expected = (output["reconstruction"] - target["reconstruction"]).abs()[mask].mean()
    assert float(loss.reconstruction) == pytest.approx(expected.item())
    value = loss(output, target | {"mask": torch.zeros_like(target["mask"])})
    assert float(loss.reconstruction) == 0
    assert math.isfinite(value.item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype):
    output, target = make_output(3, dtype)
    target["reconstruction"] = 60_000 * torch.ones_like(target["reconstruction"]).to(dtype)
    value = ProxyTaskLoss(temperature=0.05)({**output, "embedding": 1e3 * output["embedding"]}, target)
    value.backward()
    assert value.dtype == torch.float32
    assert math.isfinite(value.item())
    assert all(bool(torch.isfinite(tensor.grad).all()) for tensor in output.values())


def test_faults_of_a_config_are_told():
    with pytest.raises(ConfigValueError, match=r"temperature: found 0\.001"):
        ProxyTaskLoss(temperature=0.001)
    output, target = make_output(2)
    del target["rotation"]
    with pytest.raises(ConfigValueError, match="rotation of crops that are not turned"):
        ProxyTaskLoss()(output, target)


def select_part(tensors: dict[str, Tensor], part: slice) -> dict[str, Tensor]:
    """Return crops `part` of a batch: their first views, then their second ones."""
    return {name: torch.cat([half[part] for half in tensor.detach().chunk(2)]) for name, tensor in tensors.items()}


def compute_terms(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    part = slice(2 * rank, 2 * rank + 2)
    output, target = (select_part(tensors, part) for tensors in make_output(4))
    output = {name: tensor.requires_grad_() for name, tensor in output.items()}
    loss = ProxyTaskLoss()
    loss(output, target).backward()
    gradients = {name: tensor.grad for name, tensor in output.items()}
    torch.save(({task: getattr(loss, task) for task in TASKS}, gradients), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.costs(processes=2)
@pytest.mark.numeric
def test_the_contrast_sees_the_crops_of_all_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=compute_terms, args=(rank, tmp_path), daemon=True) for rank in (0, 1)]
    for process in processes:
        process.start()
    output, target = make_output(4)
    whole = ProxyTaskLoss()
    whole(output, target).backward()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for rank in (0, 1):
        terms, gradients = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert float(terms["contrast"]) == pytest.approx(float(whole.contrast))
        part = slice(2 * rank, 2 * rank + 2)
        for name, gradient in gradients.items():  # the mean over processes is up to DistributedDataParallel
            expected = torch.cat([half[part] for half in output[name].grad.chunk(2)])
            assert_equal_to_scale(gradient / 2, expected)


@pytest.mark.numeric
def test_a_step_of_an_engine_is_that_computed_by_hand_and_another_engine_measures_the_error():
    torch.manual_seed(0)
    network, rate = make_network(), 0.1
    by_hand = copy.deepcopy(network)
    batch = {"image": make_crops()}
    tasks = ProxyTasks(SHAPE, seed=0)  # the same views in each step
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=rate),
        loss_function=ProxyTaskLoss(),
        prepare_batch=tasks,
    )
    trainer.run()

    views, target = tasks(batch)
    output = by_hand(views)
    contrast = ContrastiveLoss(temperature=0.5)(*output["embedding"].chunk(2))
    reconstruction = F.l1_loss(output["reconstruction"], target["reconstruction"])
    (F.cross_entropy(output["rotation"], target["rotation"]) + contrast + reconstruction).backward()
    with torch.no_grad():
        gradients = parameters_to_vector(x.grad for x in by_hand.parameters())
        start = parameters_to_vector(by_hand.parameters())
    assert_equal_to_scale(parameters_to_vector(network.parameters()).detach(), start - rate * gradients)
    assert float(rate * gradients.abs().max()) > 1e-2 * float(start.abs().max()), "the step is too small to be seen"

    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[batch],
        network=network,
        prepare_batch=tasks,
        key_val_metric={
            "error": MeanAbsoluteError(
                output_transform=lambda o: (o["pred"]["reconstruction"], o["label"]["reconstruction"])
            )
        },
        decollate=False,
    )
    evaluator.run()
    views, target = tasks(batch)
    with torch.no_grad():
        expected = (network(views)["reconstruction"] - target["reconstruction"]).abs().mean()
    assert evaluator.state.metrics["error"] == pytest.approx(expected.item(), rel=1e-4)
