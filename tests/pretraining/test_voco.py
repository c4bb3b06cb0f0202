# SPDX-License-Identifier: Apache-2.0
"""The encoder is Swin UNETR's, the teacher only follows, and several processes train as one."""

from __future__ import annotations

import copy
import logging
import math
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from comparisons import assert_equal_to_scale
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.networks.nets import SwinUNETR
from overlaps import TERMS, VARIANTS, make_overlap
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector

from tools import weights
from tools.errors import ConfigValueError
from tools.pretraining import SwinUNETREncoder, VoCo, VolumeContrastLoss, VolumeCrops
from tools.pretraining.voco import ProjectionHead

CROP = (64, 32, 32)


def make_encoder(**changes) -> SwinUNETREncoder:
    # windows of 2: those of 7 take 100 times as long on so small a crop
    return SwinUNETREncoder(**({"in_channels": 1, "img_size": CROP, "feature_size": 12, "window_size": 2} | changes))


class Pooling(nn.Module):
    """Stands for the encoder where its size does not matter: one linear layer on the first voxels."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, self.num_features)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image.flatten(1))


def make_stub(variant: str, seed: int = 0, **changes) -> VoCo:
    torch.manual_seed(seed)
    return VoCo(Pooling(), variant, **({"embedding_dim": 16} | changes))


def make_views(
    volumes: int = 2, bases: int = 4, crops: int = 2, shape: tuple[int, ...] = (2, 2, 2)
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    counts = {"base": bases, "random": crops}
    return {name: torch.randn(volumes, count, 1, *shape, generator=generator) for name, count in counts.items()}


# ---- the network


@pytest.mark.parametrize(("feature_size", "values"), [(48, 53_164_146), (12, None)])
def test_the_encoder_has_the_names_and_values_of_a_swinunetr_v2(feature_size, values):
    unetr = SwinUNETR(1, 14, feature_size=feature_size, use_v2=True)
    encoder = SwinUNETREncoder(1, 64, feature_size)
    shapes = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    wanted = ("swinViT.", "encoder")
    assert shapes == {name: tensor.shape for name, tensor in unetr.state_dict().items() if name.startswith(wanted)}
    assert len(shapes) == 145
    assert encoder.num_features == 24 * feature_size
    if values:  # as published: 53 M, features of 1152
        assert sum(parameter.numel() for parameter in encoder.parameters()) == values


@pytest.mark.numeric
def test_features_are_the_means_of_what_the_decoder_reads():
    torch.manual_seed(0)
    unetr = SwinUNETR(1, 2, feature_size=12, window_size=2, use_v2=True)
    encoder = make_encoder()
    encoder.load_state_dict({name: value for name, value in unetr.state_dict().items() if name in encoder.state_dict()})
    seen = {}
    for name in ("encoder1", "encoder2", "encoder3", "encoder4", "encoder10"):
        unetr.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    crops = torch.rand(2, 1, *CROP)
    with torch.no_grad():
        unetr(crops)
        features = encoder(crops)
    assert features.shape == (2, 24 * 12)
    expected = torch.cat([seen[f"encoder{number}"].mean((2, 3, 4)) for number in (1, 2, 3, 4, 10)], dim=1)
    assert_equal_to_scale(features, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_fills_a_swinunetr_with_the_student(variant, tmp_path, caplog):
    torch.manual_seed(0)
    network = VoCo(make_encoder(), variant, embedding_dim=8)
    with torch.no_grad():
        for parameter in network.backbone.parameters():
            parameter.add_(0.1)  # so that the student is not its teacher
    weights.save_checkpoint({"model": network.state_dict(), "epoch": 1}, tmp_path / "last.pt")
    unetr = SwinUNETR(1, 5, feature_size=12, window_size=2, use_v2=True)
    with caplog.at_level(logging.INFO):
        weights.load(unetr, tmp_path / "last.pt", report_dir=tmp_path, patch_merging="corrected")
    assert "145" in caplog.text
    for name, tensor in network.backbone.state_dict().items():
        assert torch.equal(unetr.state_dict()[name], tensor)
    _, report = weights.match(unetr, network.state_dict(), patch_merging="corrected")
    assert (report.layout, report.num_loaded, len(report.untouched), report.unexpected) == ("voco", 145, 22, [])
    teachers = [name for name in network.state_dict() if name.startswith("teacher_backbone.")]
    assert len(teachers) == (145 if variant == "cvpr" else 0)
    assert {report.dropped[name] for name in teachers} <= {"the teacher, a moving average of the student"}
    # and the encoder of a pre-training to come
    encoder = make_encoder()
    weights.initialize(encoder, tmp_path / "last.pt", patch_merging="corrected")
    assert all(torch.equal(encoder.state_dict()[name], x) for name, x in network.backbone.state_dict().items())
    # and the same network, to resume
    again = VoCo(make_encoder(), variant, embedding_dim=8)
    weights.fill(again, network.state_dict(), "last.pt")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_of_the_student_gets_a_gradient_and_none_of_the_teacher(variant):
    torch.manual_seed(0)
    network = VoCo(make_encoder(use_checkpoint=True), variant, embedding_dim=8, crops_at_once=4)
    output = network(make_views(2, 4, 1, CROP))
    assert output["base"].shape == (2, 4, 8)
    assert output["random"].shape == (2, 1, 8)
    assert (variant == "paper") == ("teacher_base" not in output)
    VolumeContrastLoss(variant)(output, make_overlap(2, 1)).backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    student = {name for name, _ in network.named_parameters() if not name.startswith("teacher")}
    assert trained == student  # so that DistributedDataParallel needs no find_unused_parameters
    assert {id(parameter) for parameter in network.trainable_parameters()} == {
        id(parameter) for name, parameter in network.named_parameters() if name in student
    }


@pytest.mark.numeric
@pytest.mark.parametrize("variant", ["cvpr", "extension"])
def test_the_teacher_starts_as_the_student_and_moves_by_the_average_alone(variant):
    network = make_stub(variant, momentum=0.7)
    pairs = [(network.teacher, network.student)]
    if variant == "cvpr":
        pairs.append((network.teacher_backbone, network.backbone))
    else:
        assert network.teacher_backbone is None
    optimizer = torch.optim.AdamW(network.trainable_parameters(), lr=0.1)
    loss = VolumeContrastLoss(variant)
    expected = [[parameter.detach().clone() for parameter in student.parameters()] for _, student in pairs]
    for _ in range(3):
        students = [[parameter.detach().clone() for parameter in student.parameters()] for _, student in pairs]
        expected = [
            [0.7 * old + 0.3 * new for old, new in zip(*both, strict=True)]
            for both in zip(expected, students, strict=True)
        ]
        optimizer.zero_grad()
        loss(network(make_views()), make_overlap()).backward()
        optimizer.step()
        for (teacher, _), values in zip(pairs, expected, strict=True):
            for parameter, value in zip(teacher.parameters(), values, strict=True):
                assert_equal_to_scale(parameter.detach(), value)
                assert parameter.grad is None
    assert any(not torch.equal(*both) for both in zip(pairs[0][0].parameters(), pairs[0][1].parameters(), strict=True))
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert not held & {id(parameter) for teacher, _ in pairs for parameter in teacher.parameters()}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.eval()(make_views())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_the_teacher_starts_from_the_weights_that_the_encoder_has():
    backbone = Pooling()
    nn.init.constant_(backbone.layer.weight, 3.0)
    network = VoCo(backbone, "cvpr", embedding_dim=16)
    assert torch.equal(network.teacher_backbone.layer.weight, backbone.layer.weight)
    assert network.teacher_backbone.layer.weight is not backbone.layer.weight


@pytest.mark.numeric
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_computes_what_the_unbroken_one_does(variant):
    def train(network: VoCo, optimizer: torch.optim.Optimizer, steps: range) -> float:
        for step in steps:
            torch.manual_seed(step)
            value = VolumeContrastLoss(variant)(network(make_views()), make_overlap())
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        return value.item()

    def start(seed: int) -> tuple[VoCo, torch.optim.Optimizer]:
        network = make_stub(variant, seed)
        return network, torch.optim.AdamW(network.trainable_parameters(), lr=0.01)

    whole = train(*start(0), range(6))
    network, optimizer = start(0)
    train(network, optimizer, range(3))
    second, its_optimizer = start(1)
    weights.fill(second, network.state_dict(), "last.pt")
    its_optimizer.load_state_dict(optimizer.state_dict())
    assert train(second, its_optimizer, range(3, 6)) == whole


@pytest.mark.numeric
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("crops_at_once", [1, 5, 100])
def test_crops_in_parts_give_the_gradient_of_all_at_once(variant, crops_at_once):
    gradients = []
    for option in (None, crops_at_once):
        network = make_stub(variant, crops_at_once=option)
        torch.manual_seed(0)
        VolumeContrastLoss(variant)(network(make_views()), make_overlap()).backward()
        # as one vector: of biases in front of a normalization the gradient is rounding alone
        gradients.append(parameters_to_vector(parameter.grad for parameter in network.trainable_parameters()))
        if variant != "paper":  # the teacher moved once, not in the recomputation again
            copied = make_stub(variant, momentum=0.9)
            torch.testing.assert_close(network.teacher.state_dict(), copied.teacher.state_dict())
    assert_equal_to_scale(*reversed(gradients))


@pytest.mark.parametrize("device", ["GPU", "CPU"])
def test_too_many_crops_for_the_memory_are_told(device, monkeypatch):
    network = make_stub("extension")

    def fail(image: Tensor) -> Tensor:
        if device == "GPU":
            raise torch.OutOfMemoryError
        return torch.empty(1 << 60)  # more than any machine has

    monkeypatch.setattr(network.backbone, "forward", fail)
    with pytest.raises(ConfigValueError, match=r"grid: found 12 crops of 2×2×2, all at once, .* set --crops_at_once"):
        network(make_views())


def test_other_errors_of_the_encoder_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        make_stub("extension")(make_views(shape=(2, 2, 3)))


def test_the_estimated_memory_is_a_bound_of_what_a_step_keeps():
    network = VoCo(make_encoder(), "paper", embedding_dim=16)
    crops = VolumeCrops(CROP, (2, 1, 1), num_crops=1, turn_prob=0)
    image = torch.rand(2, 1, *crops.volume_size)
    views, _ = crops({"image": image})
    own = {parameter.data_ptr() for parameter in network.parameters()}
    kept = {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in (image, *views.values())}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(views)
    estimated = network.estimate_bytes(crops, batch_size=2)
    assert 0.3 * sum(kept.values()) < estimated < sum(kept.values())

    inputs = 4 * (2 * 2 + 2 * 3) * math.prod(CROP)
    network.crops_at_once = 2  # of six
    assert network.estimate_bytes(crops, batch_size=2) - inputs == (estimated - inputs) / 3
    network.crops_at_once = None
    assert network.estimate_bytes(crops, batch_size=2, amp=True) - inputs == (estimated - inputs) / 2


def test_dropout_takes_single_features_from_the_student_alone():
    network = make_stub("extension", dropout=0.5)
    seen = {}
    for name in ("student", "teacher"):
        head = network.get_submodule(name)
        head.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    network(make_views(20))
    zeros = (seen["student"] == 0).float()
    assert float(zeros.mean()) == pytest.approx(0.5, abs=0.05)
    assert 0 < zeros.mean(1).min() <= zeros.mean(1).max() < 1 or zeros.mean(1).unique().numel() > 2  # not whole crops
    assert not (seen["teacher"] == 0).any()
    assert make_stub("extension").dropout.p == 0.2
    assert make_stub("cvpr").dropout.p == make_stub("paper").dropout.p == 0


def test_heads_are_as_wide_as_published():
    shapes = {variant: VoCo(Pooling(), variant).student.layer3[0].weight.shape for variant in VARIANTS}
    assert shapes == {"cvpr": (2048, 2048), "extension": (1024, 1024), "paper": (2048, 2048)}


@pytest.mark.numeric
def test_the_head_is_normalized_over_all_crops_and_refuses_a_single_one():
    torch.manual_seed(0)
    head = ProjectionHead(6, 16).eval()
    features = torch.randn(8, 6)
    hidden = head.layer1[1](head.layer1[0](features))
    torch.testing.assert_close(hidden.mean(0), torch.zeros(16), atol=1e-5, rtol=0)
    assert set(head.state_dict()) == {f"layer{layer}.0.{part}" for layer in (1, 2, 3) for part in ("weight", "bias")}
    with pytest.raises(ConfigValueError, match="projection head: found one crop, wanted two at least"):
        head(features[:1])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: make_encoder(img_size=32),
            "crop_size: found 32×32×32, wanted multiples of 32, not all of them 32",
        ),
        (lambda: make_encoder(img_size=(64, 64, 48)), "crop_size: found 64×64×48"),
        (lambda: make_encoder(feature_size=20), "feature_size: found 20"),
        (lambda: make_stub("v2"), "variant: found 'v2', wanted one of cvpr, extension, paper"),
        (lambda: make_stub("cvpr", momentum=1.5), r"momentum: found 1\.5"),
        (lambda: make_stub("cvpr", embedding_dim=0), "embedding_dim: found 0, wanted at least 1"),
        (lambda: make_stub("cvpr", crops_at_once=0), "crops_at_once: found 0"),
        (lambda: VolumeContrastLoss("v2"), "variant: found 'v2'"),
        (
            lambda: VolumeContrastLoss("cvpr")(make_stub("paper")(make_views()), make_overlap()),
            "variant: found a network of the variant paper, wanted cvpr; give both",
        ),
    ],
)
def test_faults_of_a_config_are_told(make, words):
    with pytest.raises(ConfigValueError, match=words):
        make()


def test_nan_in_a_volume_is_nan_in_the_loss_so_that_training_stops():
    views = make_views()
    views["random"][0, 0] = math.nan
    assert math.isnan(VolumeContrastLoss()(make_stub("extension")(views), make_overlap()).item())


# ---- several processes


def compute_step(variant: str, views: dict[str, Tensor], overlap: Tensor, distributed: bool = False) -> tuple:
    """Return the terms and the gradient of one step."""
    network, loss = make_stub(variant, dropout=0.0), VolumeContrastLoss(variant)
    if network.teacher is not None:
        network.teacher.load_state_dict(make_stub(variant, 1).teacher.state_dict())  # not what the student says itself
    wrapped = DistributedDataParallel(network) if distributed else network
    loss(wrapped(views), overlap).backward()
    terms = {name: getattr(loss, name) for name in TERMS}
    return terms, {name: x.grad for name, x in network.named_parameters() if x.grad is not None}


def compute_half(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    for variant in VARIANTS:
        views, overlap = make_views(2), make_overlap(2)
        part = {name: crops[rank : rank + 1] for name, crops in views.items()}  # one volume each
        torch.save(
            compute_step(variant, part, overlap[rank : rank + 1], distributed=True), folder / f"{variant}_{rank}.pt"
        )
    dist.destroy_process_group()


@pytest.mark.costs(processes=2)
@pytest.mark.numeric
def test_two_processes_compute_the_gradient_of_one_with_the_whole_batch(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=compute_half, args=(rank, 2, tmp_path), daemon=True) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for variant in VARIANTS:
        terms, gradient = compute_step(variant, make_views(2), make_overlap(2))
        found = [torch.load(tmp_path / f"{variant}_{rank}.pt", weights_only=True) for rank in (0, 1)]
        for name in TERMS:
            mean = sum(float(part[0][name]) for part in found) / 2
            assert mean == pytest.approx(float(terms[name]), rel=1e-5)
        assert (variant == "extension") == (float(found[0][0]["inter_volume"]) > 0)  # with one volume in each process
        for _, its_gradient in found:
            assert its_gradient.keys() == gradient.keys()
            vectors = (parameters_to_vector(part[name] for name in gradient) for part in (its_gradient, gradient))
            assert_equal_to_scale(*vectors)


# ---- engines


@pytest.mark.numeric
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_of_an_engine_is_that_computed_by_hand_and_another_engine_measures_retrieval(variant):
    network, loss, rate = make_stub(variant, dropout=0.0), VolumeContrastLoss(variant), 0.5
    by_hand = copy.deepcopy(network)
    batch = {"image": torch.randn(4, 1, 6, 6, 2)}
    options = {"flip_prob": 0, "turn_prob": 0}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch],
        network=network,
        optimizer=torch.optim.SGD(network.trainable_parameters(), lr=rate),
        loss_function=loss,
        prepare_batch=VolumeCrops(2, (3, 3, 1), seed=0, **options),
    )
    trainer.run()

    views, overlap = VolumeCrops(2, (3, 3, 1), seed=0, **options)(batch)
    VolumeContrastLoss(variant)(by_hand(views), overlap).backward()
    with torch.no_grad():
        gradients = parameters_to_vector(x.grad for x in by_hand.trainable_parameters())
        start = parameters_to_vector(by_hand.trainable_parameters())
    moved = parameters_to_vector(network.trainable_parameters()).detach()
    assert_equal_to_scale(moved, start - rate * gradients)
    assert float((moved - start).abs().max()) > 1e-2 * float(start.abs().max()), "the step is too small to be seen"

    crops = VolumeCrops(2, (3, 3, 1), num_crops=20, seed=0, **options)
    hits = []
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=[batch], network=network, prepare_batch=crops, decollate=False
    )
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: hits.append(loss.find_hits(engine.state.output["pred"], engine.state.output["label"])),
    )
    evaluator.run()
    views, overlap = crops(batch)
    with torch.no_grad():
        output = network.eval()(views)
    pairs = [("random", "base" if variant == "paper" else "teacher_base")]
    pairs += [("teacher_random", "base")] if variant == "cvpr" else []
    cosines = sum(F.cosine_similarity(output[crop][:, :, None], output[base][:, None], dim=-1) for crop, base in pairs)
    chosen = cosines.argmax(-1)
    expected = [
        float(shares[pick] == shares.max())
        for shares, pick in zip(overlap.flatten(0, 1), chosen.flatten(), strict=True)
    ]
    assert torch.cat(hits).tolist() == expected
    assert 0 < sum(expected) < len(expected)
