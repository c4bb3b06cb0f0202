# SPDX-License-Identifier: Apache-2.0
"""Training on labelled scans and on scans without labels at once: VoCo's contrast goes through the segmenting encoder.

Source: the omni-supervised pre-training of VoCo's extension, github.com/Luffy03/Large-Scale-Medical: Dice and
cross-entropy of labelled crops through the whole Swin UNETR v2, the contrast of whole volumes through its encoder.

One branch of that code is left out, which gives the decoder detached features of unlabelled crops: without labels of
these crops it has no loss, and the encoder gets no gradient from it in any case. Scans with pseudo-labels can be given
as labelled ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import torch
from monai.data import DataLoader
from monai.engines import default_prepare_batch
from monai.networks.nets import SwinUNETR
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn
from torch.utils.data import Dataset

from tools.errors import ConfigValueError
from tools.networks.swin_unetr import check_sizes
from tools.pretraining.voco import SwinUNETREncoder, VoCo
from tools.pretraining.volume_contrast import VolumeContrastLoss
from tools.pretraining.volume_crops import VolumeCrops

ENCODER = ("swinViT", "encoder1", "encoder2", "encoder3", "encoder4", "encoder10")


class OmniLoader(DataLoader):
    """Batches of labelled crops, each with a batch of whole volumes beside it, `unlabelled` `(B, C, X, Y, Z)`.

    An epoch is one pass over the labelled scans, so that the schedule of their segmentation stays what it is. The
    volumes are shuffled anew in each epoch: of many it sees a part, and a few are passed again and again.

    All random numbers are drawn within the epoch and, of the labelled scans, first: under `tools.handlers.EpochSeed`
    an epoch can be repeated, and it has the labelled batches of a run without volumes. Several processes draw their
    volumes each for itself, as their seeds differ, in batches of the same size.

    Args:
        dataset: the labelled scans.
        unlabelled: loader of the volumes, as `image`; that it shuffles and how many it gives at once is up to it.
        options: as of MONAI's `DataLoader`, for the labelled scans.

    Raises:
        ConfigValueError: if there is no batch of volumes.
    """

    def __init__(self, dataset: Dataset, unlabelled: DataLoader, **options: Any) -> None:
        if not len(unlabelled):
            remedy = "add scans to --unlabelled_dir, or keep the last batch"
            raise ConfigValueError("unlabelled", "no batch of volumes", "at least one", remedy)
        super().__init__(dataset, **options)
        self.unlabelled = unlabelled

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the batches of an epoch."""
        for batch, volumes in zip(super().__iter__(), chain.from_iterable(repeat(self.unlabelled)), strict=False):
            yield {**batch, "unlabelled": volumes["image"]}


class OmniBatch:
    """Move a batch of `OmniLoader` to the device and cut its volumes there: `prepare_batch` of an engine.

    Args:
        volume_crops: cuts the volumes.
    """

    def __init__(self, volume_crops: VolumeCrops) -> None:
        self.volume_crops = volume_crops

    def __call__(
        self,
        batch: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the input, `image` and the views of `VolumeCrops`, and the target, `label` and `overlap`."""
        image, label = default_prepare_batch(batch, device, non_blocking, **kwargs)
        views, overlap = self.volume_crops({"image": batch["unlabelled"]}, device, non_blocking, **kwargs)
        return {"image": image, **views}, {"label": label, "overlap": overlap}


class SharedEncoder(SwinUNETREncoder):
    """The encoder of a Swin UNETR as `VoCo` takes it: the network's own modules, no copies.

    Args:
        network: it may have any weights, and both may be trained.
        img_size: voxels of the crops along X, Y, Z, or one number for all three; checked only.

    Raises:
        ConfigValueError: if the crops do not fit the network.
    """

    def __init__(self, network: SwinUNETR, img_size: Sequence[int] | int) -> None:
        nn.Module.__init__(self)  # that of SwinUNETREncoder would make modules of its own
        self.in_channels = network.swinViT.patch_embed.proj.in_channels
        self.feature_size = network.swinViT.embed_dim
        self.num_features = 24 * self.feature_size
        self.normalize = network.normalize
        check_sizes(ensure_tuple_rep(img_size, 3), self.feature_size, "crop_size")
        for name in ENCODER:
            self.add_module(name, network.get_submodule(name))


class OmniNetwork(nn.Module):
    """Swin UNETR and VoCo on its encoder, in one forward pass, as DistributedDataParallel needs it.

    The segmentation is that of `network`, which is what checkpoints hold and what inference uses; `heads` is all that
    training needs beside it.

    Args:
        network: with the weights to start from.
        crop_size: voxels of the crops of volumes along X, Y, Z, or one number for all three.
        options: as of `VoCo`.

    Raises:
        ConfigValueError: if a value is out of range.
    """

    def __init__(self, network: SwinUNETR, crop_size: Sequence[int] | int, **options: Any) -> None:
        super().__init__()
        self.network = network
        self.contrast = VoCo(SharedEncoder(network, crop_size), **options)

    @property
    def heads(self) -> nn.ModuleDict:
        """Student's head and teacher, for a checkpoint: what of VoCo is not the network."""
        return nn.ModuleDict({name: part for name, part in self.contrast.named_children() if name != "backbone"})

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the network and of the student's head, each once; none of the teacher."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return `logits` `(N, classes, x, y, z)` of the labelled crops and `embeddings`, those of `VoCo`.

        Args:
            inputs: of `OmniBatch`.
        """
        return {"logits": self.network(inputs["image"]), "embeddings": self.contrast(inputs)}


class OmniLoss(nn.Module):
    """The loss of segmentation plus a weighted contrast of volumes.

    After each call `segmentation` and `contrast` are these two, unweighted and detached.

    Args:
        segmentation_loss: of logits and label, such as `DiceCELoss`.
        contrast_loss: of the embeddings; its own terms are noted by itself.
        weight: factor of the contrast. With 0 the network learns from labels alone, and the time is spent all the same.

    Raises:
        ConfigValueError: if the weight is negative.
    """

    def __init__(self, segmentation_loss: nn.Module, contrast_loss: VolumeContrastLoss, weight: float = 1.0) -> None:
        super().__init__()
        if weight < 0:
            raise ConfigValueError("omni_weight", str(weight), "0 or a positive number", "correct --omni_weight")
        self.segmentation_loss = segmentation_loss
        self.contrast_loss = contrast_loss
        self.weight = weight
        self.segmentation = torch.zeros(())
        self.contrast = torch.zeros(())

    def forward(self, output: Mapping[str, Any], target: Mapping[str, Tensor]) -> Tensor:
        """Return the loss, a scalar.

        Args:
            output: of `OmniNetwork`.
            target: of `OmniBatch`.
        """
        segmentation = self.segmentation_loss(output["logits"], target["label"])
        contrast = self.contrast_loss(output["embeddings"], target["overlap"])
        self.segmentation, self.contrast = segmentation.detach(), contrast.detach()
        return segmentation + self.weight * contrast
