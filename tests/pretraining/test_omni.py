# SPDX-License-Identifier: Apache-2.0
"""Both losses train one encoder, labels alone train the decoder, and volumes do not disturb the labelled batches."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from comparisons import assert_equal_to_scale
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from monai.losses import DiceCELoss
from monai.transforms import RandSpatialCropd
from torch import Tensor

from tools.errors import ConfigValueError
from tools.handlers import EpochSeed
from tools.networks import ScriptableSwinUNETR
from tools.pretraining import OmniBatch, OmniLoader, OmniLoss, OmniNetwork, VolumeContrastLoss, VolumeCrops
from tools.pretraining.omni import ENCODER, SharedEncoder
from tools.pretraining.voco import DECODER

CROP = (32, 32, 64)
VARIANTS = ("cvpr", "extension", "paper")


@functools.cache
def build_segmenter() -> ScriptableSwinUNETR:
    torch.manual_seed(0)
    options = {"feature_size": 12, "window_size": 2, "use_v2": True}
    return ScriptableSwinUNETR(CROP, in_channels=1, out_channels=3, **options)


def make_segmenter() -> ScriptableSwinUNETR:
    network = copy.deepcopy(build_segmenter())  # its initialization takes a second
    torch.manual_seed(0)  # what is drawn next shall not depend on whether it was built just now
    return network


def make_network(variant: str = "extension", **changes) -> OmniNetwork:
    return OmniNetwork(make_segmenter(), CROP, variant=variant, embedding_dim=8, **changes)


def make_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.rand(1, 1, *CROP, generator=generator),
        "label": torch.randint(0, 3, (1, 1, *CROP), generator=generator).float(),
        "unlabelled": torch.rand(2, 1, 32, 64, 64, generator=generator),
    }


def prepare() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return OmniBatch(VolumeCrops(CROP, (1, 2, 1), num_crops=1, seed=0))(make_batch())


def make_loss(variant: str = "extension", weight: float = 1.0) -> OmniLoss:
    return OmniLoss(DiceCELoss(to_onehot_y=True, softmax=True), VolumeContrastLoss(variant), weight)


# ---- the network


@pytest.mark.numeric
def test_the_encoder_is_that_of_the_network_and_no_copy():
    network = make_segmenter()
    encoder = SharedEncoder(network, CROP)
    own = {id(parameter) for parameter in network.parameters()}
    assert {id(parameter) for parameter in encoder.parameters()} < own
    assert (encoder.in_channels, encoder.feature_size, encoder.num_features) == (1, 12, 288)
    names = {name for name in network.state_dict() if name.startswith(("swinViT.", "encoder"))}
    assert set(encoder.state_dict()) == names
    assert len(names) == 145
    assert {name for name, _ in network.named_children()} == {*ENCODER, *DECODER}  # it lost nothing

    seen = {}
    for name in ENCODER[1:]:
        network.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    crops = torch.rand(2, 1, *CROP)
    with torch.no_grad():
        network(crops)
        expected = torch.cat([seen[name].mean((2, 3, 4)) for name in ENCODER[1:]], dim=1)
        assert_equal_to_scale(encoder(crops), expected)


@pytest.mark.numeric
def test_the_segmentation_is_that_of_the_network_alone():
    network, (inputs, _) = make_network().eval(), prepare()
    with torch.no_grad():
        output = network(inputs)
        assert torch.equal(output["logits"], network.network(inputs["image"]))
    assert {name: tuple(x.shape) for name, x in output["embeddings"].items()} == {
        "base": (2, 2, 8),
        "random": (2, 1, 8),
        "teacher_base": (2, 2, 8),
        "teacher_random": (2, 1, 8),
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_losses_reach_the_encoder_and_labels_alone_the_decoder(variant):
    network, (inputs, target) = make_network(variant), prepare()
    network.train()
    output = network(inputs)
    loss = make_loss(variant)
    parts = {
        "segmentation": loss.segmentation_loss(output["logits"], target["label"]),
        "contrast": loss.contrast_loss(output["embeddings"], target["overlap"]),
    }
    names, parameters = zip(*((n, p) for n, p in network.named_parameters() if p.requires_grad), strict=True)
    assert {*names} == {name for name, _ in network.named_parameters() if not name.startswith("contrast.teacher")}
    assert {id(parameter) for parameter in parameters} == {
        id(parameter) for parameter in network.trainable_parameters()
    }
    reached, used = {}, set()
    for part, value in parts.items():
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        reached[part] = {name for name, x in zip(names, gradients, strict=True) if x is not None and x.any()}
        used |= {name for name, x in zip(names, gradients, strict=True) if x is not None}
    assert used == {*names}  # DistributedDataParallel has no unused ones to find
    encoder = {name for name in names if name.removeprefix("network.").startswith(ENCODER)}
    decoder = {name for name in names if name.removeprefix("network.").startswith(DECODER)}
    assert {*names} - encoder - decoder == {name for name in names if name.startswith("contrast.student.")}
    assert encoder <= reached["segmentation"] | reached["contrast"]
    assert len(encoder & reached["segmentation"] & reached["contrast"]) > 0.9 * len(encoder)
    assert not decoder & reached["contrast"]
    assert decoder <= reached["segmentation"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_network_and_heads_are_all_there_is_to_save(variant):
    network, other = make_network(variant), make_network(variant)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1)
    other.network.load_state_dict(network.network.state_dict())
    other.heads.load_state_dict(network.heads.state_dict())
    assert all(torch.equal(other.state_dict()[name], x) for name, x in network.state_dict().items())
    kinds = {name.partition(".")[0] for name in network.heads.state_dict()}
    wanted = {"paper": {"student"}, "extension": {"student", "teacher"}}
    assert kinds == wanted.get(variant, {"student", "teacher", "teacher_backbone"})


# ---- the loss


def make_output(volumes: int = 2) -> tuple[dict, dict[str, Tensor]]:
    """Return what the network could say, and the target."""
    generator = torch.Generator().manual_seed(2)
    counts = {"base": 4, "random": 2, "teacher_base": 4, "teacher_random": 2}
    embeddings = {name: torch.randn(volumes, n, 8, generator=generator) for name, n in counts.items()}
    logits = torch.randn(1, 3, 4, 4, 4, generator=generator).requires_grad_()
    label = torch.randint(0, 3, (1, 1, 4, 4, 4), generator=generator)
    shares = torch.tensor([0.6, 0.4, 0, 0]).expand(volumes, 2, 4)
    return {"logits": logits, "embeddings": embeddings}, {"label": label, "overlap": shares}


@pytest.mark.numeric
def test_the_loss_is_the_weighted_sum_of_its_two_parts():
    (output, target), loss = make_output(), make_loss(weight=0.25)
    value = loss(output, target)
    segmentation = DiceCELoss(to_onehot_y=True, softmax=True)(output["logits"], target["label"])
    contrast = VolumeContrastLoss()(output["embeddings"], target["overlap"])
    assert_equal_to_scale(value, segmentation + 0.25 * contrast)
    assert (loss.segmentation.item(), loss.contrast.item()) == (segmentation.item(), contrast.item())
    assert not loss.segmentation.requires_grad


def test_one_volume_in_a_batch_is_warned_of_once(caplog):
    loss = make_loss()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.isfinite(loss(*make_output(volumes=1)))
    (record,) = caplog.records
    assert "needs two volumes in a batch, and there is one" in record.getMessage()


# ---- batches


def test_a_batch_is_image_and_views_and_their_targets():
    batch = make_batch()
    batch["unlabelled"] = MetaTensor(batch["unlabelled"])
    inputs, target = OmniBatch(VolumeCrops(CROP, (1, 2, 1), num_crops=3))(batch, torch.device("cpu"))
    assert torch.equal(inputs["image"], batch["image"])
    assert torch.equal(target["label"], batch["label"])
    assert inputs["base"].shape == (2, 2, 1, *CROP)
    assert inputs["random"].shape == (2, 3, 1, *CROP)
    torch.testing.assert_close(target["overlap"].sum(-1), torch.ones(2, 3))


def make_data(count: int, start: int) -> list[dict[str, Tensor]]:
    """Return volumes whose first voxel along x tells the item, and where a crop comes from."""
    return [{"image": (100 * number + torch.arange(8.0)).view(1, 8, 1, 1)} for number in range(start, start + count)]


def make_loaders(labelled: int, volumes: int, workers: int = 0) -> tuple[OmniLoader, DataLoader, Callable[[int], None]]:
    """Return a loader, the labelled one without volumes, and a function that starts an epoch."""
    first, second = (
        CacheDataset(make_data(n, s), RandSpatialCropd("image", (2, 1, 1), random_size=False), progress=False)
        for n, s in ((labelled, 1), (volumes, 50))
    )
    options = {"batch_size": 2, "shuffle": True, "num_workers": workers}
    loader = OmniLoader(first, DataLoader(second, drop_last=volumes > 1, **options), **options)

    def start(epoch: int) -> None:
        EpochSeed(7, [first, second])(SimpleNamespace(state=SimpleNamespace(epoch=epoch)))

    return loader, DataLoader(first, **options), start


def read_epoch(loader: DataLoader, key: str = "image") -> list[list[float]]:
    return [batch[key].flatten().tolist() for batch in loader]


@pytest.mark.costs(processes=8)
@pytest.mark.parametrize("workers", [0, 1])
def test_the_labelled_batches_are_those_of_a_run_without_volumes(workers):
    loader, plain, start = make_loaders(5, 4, workers)
    for epoch in (1, 2):
        start(epoch)
        found = read_epoch(loader)
        start(epoch)
        assert found == read_epoch(plain)


@pytest.mark.parametrize(("volumes", "seen"), [(2, 2), (7, 6), (1, 1)])
def test_an_epoch_is_one_of_the_labelled_scans_however_many_volumes_there_are(volumes, seen):
    loader, _, start = make_loaders(6, volumes)
    assert len(loader) == 3
    everything = set()
    for epoch in range(1, 12):
        start(epoch)
        batches = read_epoch(loader, "unlabelled")
        items = [value // 100 for batch in batches for value in batch[::2]]
        assert [len(batch) // 2 for batch in batches] == [min(2, volumes)] * 3
        assert len(set(items)) == seen  # none of many twice, all of a few again and again
        everything |= set(items)
    assert len(everything) == volumes


def test_an_epoch_can_be_repeated_and_differs_from_the_next():
    loader, _, start = make_loaders(6, 5)
    epochs = []
    for epoch in (2, 3, 2):
        torch.rand(epoch)
        np.random.rand(epoch)
        start(epoch)
        epochs.append((read_epoch(loader), read_epoch(loader, "unlabelled")))
    assert epochs[0] == epochs[2]
    assert epochs[0][1] != epochs[1][1]


# ---- faults


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OmniLoader(Dataset([1]), DataLoader(Dataset([1]), batch_size=2, drop_last=True)), "no batch of vol"),
        (lambda: make_loss(weight=-1), r"omni_weight: found -1, wanted 0 or a positive number"),
        (lambda: OmniNetwork(make_segmenter(), 32), "crop_size: found 32×32×32, wanted multiples of 32"),
        (lambda: OmniNetwork(make_segmenter(), 64, variant="v3"), "variant: found 'v3'"),
    ],
)
def test_faults_of_a_config_are_told(make, words):
    with pytest.raises(ConfigValueError, match=words):
        make()
