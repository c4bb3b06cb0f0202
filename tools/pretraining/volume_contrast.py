# SPDX-License-Identifier: Apache-2.0
"""The loss of VoCo: a crop is like the base crops that it overlaps, and base crops are unlike each other.

Sources and differences of the variants: see `tools.pretraining.voco`, the network.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tools.errors import ConfigValueError
from tools.pretraining.vit_autoencoder import gather_batch
from tools.pretraining.voco import get_variant

logger = logging.getLogger(__name__)

EPSILON = 1e-6  # of both codes, in logarithms and divisions


class VolumeContrastLoss(nn.Module):
    """Prediction of the overlap, contrast with the next volume and regularization of the base crops, added up.

    With s_k, the cosine of a random crop with base crop k, negative ones set to 0, and y_k, their overlap:

    - positive: sum of -y_k log(1 - |y_k - s_k|) over the crops of a volume, divided by the sum of y_k;
    - negative: mean over all k with y_k = 0 of s_k² (cvpr) or -log(1 - s_k) (extension);
    - prediction: their sum. "paper": the mean of -log(1 - |y_k - s_k|) over all k, and no negative term;
    - inter-volume (extension): the prediction of the teacher's s_k with the base crops of the next volume of the batch;
    - regularization: mean over pairs of base crops of a volume of ReLU(cosine)², or of |cosine| ("paper").

    Each is computed for each volume, then averaged; 1e-6 is added in logarithms and to divisors. After each call
    `positive`, `negative`, `prediction`, `inter_volume` and `regularization` are these terms, unweighted and detached,
    and `retrieval` is the mean of `find_hits`.

    The next volume is that of all processes together, the last one's is the first; all other terms are of one volume,
    so that their mean over processes, which DistributedDataParallel takes of the gradients, is that of the whole batch.
    A single volume has no other: its inter-volume term is 0, which is logged once.

    Args:
        variant: that of the network.
        prediction_weight: factor of the prediction.
        inter_volume_weight: factor of the inter-volume term; 0: it is not computed.
        regularization_weight: factor of the regularization.

    Raises:
        ConfigValueError: if there is no such variant.
    """

    def __init__(
        self,
        variant: str = "extension",
        prediction_weight: float = 1.0,
        inter_volume_weight: float = 1.0,
        regularization_weight: float = 1.0,
    ) -> None:
        super().__init__()
        get_variant(variant)
        self.variant = variant
        self.weights = {
            "prediction": prediction_weight,
            "inter_volume": inter_volume_weight if variant == "extension" else 0.0,
            "regularization": regularization_weight,
        }
        self.warned = False
        for name in (*self.weights, "positive", "negative", "retrieval"):
            setattr(self, name, torch.zeros(()))

    def forward(self, output: Mapping[str, Tensor], overlap: Tensor) -> Tensor:
        """Return the loss, a scalar in float32 whatever the mixed precision.

        Args:
            output: of `VoCo`.
            overlap: of `VolumeCrops`, `(B, S, K)`.

        Raises:
            ConfigValueError: if the network is of a variant without teacher, and the loss is not.
        """
        with torch.autocast(overlap.device.type, enabled=False):
            output = {name: _widen(embedding) for name, embedding in output.items()}
            positive, negative = self._predict(overlap, self._compare(output))
            terms = {
                "prediction": positive + negative,
                "inter_volume": self._contrast_volumes(output),
                "regularization": self._regularize(output["base"]),
            }
        logged = terms | {
            "positive": positive,
            "negative": negative,
            "retrieval": self.find_hits(output, overlap).mean(),
        }
        for name, term in logged.items():
            setattr(self, name, term.detach())
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()

    @torch.no_grad()
    def compute_prediction(self, output: Mapping[str, Tensor], overlap: Tensor) -> Tensor:
        """Return the prediction term alone, a scalar; in no process it waits for others, as validation needs it."""
        output = {name: _widen(embedding) for name, embedding in output.items()}
        return torch.stack(self._predict(overlap, self._compare(output))).sum()

    @torch.no_grad()
    def find_hits(self, output: Mapping[str, Tensor], overlap: Tensor) -> Tensor:
        """Return for each random crop whether it is most like the base crop that holds most of it, 0 or 1, `(B * S,)`.

        If two hold equally much, both count. `compute_constant_retrieval` is what the mean must exceed.
        """
        nearest = self._compare(output).mean(dim=0).argmax(dim=-1, keepdim=True)
        return (overlap.gather(-1, nearest) == overlap.amax(dim=-1, keepdim=True)).float().flatten()

    def _compare(self, output: Mapping[str, Tensor]) -> Tensor:
        """Return the cosines of random crops and base crops that the variant averages, `(1 or 2, B, S, K)`."""
        if self.variant == "paper":
            return compute_cosines(output["random"], output["base"].detach())[None]
        if "teacher_base" not in output:
            raise ConfigValueError(
                "variant", "a network of the variant paper", self.variant, "give both the same variant"
            )
        cosines = [compute_cosines(output["random"], output["teacher_base"])]
        if self.variant == "cvpr":
            cosines.append(compute_cosines(output["teacher_random"], output["base"]))
        return torch.stack(cosines)

    def _predict(self, overlap: Tensor, cosines: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positive and the negative term of overlap `(B, S, K)` and cosines `(n, B, S, K)`, their mean."""
        similarity = _rectify(cosines).mean(dim=0)
        overlap = overlap.to(similarity.dtype)
        distance = -torch.log(1 - (overlap - similarity).abs() + EPSILON)
        if self.variant == "paper":
            return distance.mean(), distance.new_zeros(())
        positive = (overlap * distance).sum(dim=(1, 2)) / (overlap.sum(dim=(1, 2)) + EPSILON)
        apart = (overlap == 0).to(similarity.dtype)
        penalty = similarity.square() if self.variant == "cvpr" else -torch.log(1 - similarity + EPSILON)
        negative = (apart * penalty).sum(dim=(1, 2)) / (apart.sum(dim=(1, 2)) + EPSILON)
        return positive.mean(), negative.mean()

    def _contrast_volumes(self, output: Mapping[str, Tensor]) -> Tensor:
        if not self.weights["inter_volume"]:
            return output["base"].new_zeros(())
        bases = {name: gather_batch(output[name]) for name in ("base", "teacher_base")}
        own, total = len(output["base"]), len(bases["base"])
        if total == 1:
            if not self.warned:
                logger.warning("the inter-volume term is off: it needs two volumes in a batch, and there is one")
                self.warned = True
            return output["base"].new_zeros(())
        first = dist.get_rank() * own if total > own else 0
        following = (torch.arange(first, first + own, device=output["base"].device) + 1) % total
        target = _rectify(compute_cosines(output["teacher_random"], bases["teacher_base"][following]))
        cosines = compute_cosines(output["random"], bases["base"][following])
        return torch.stack(self._predict(target.detach(), cosines[None])).sum()

    def _regularize(self, base: Tensor) -> Tensor:
        first, second = torch.triu_indices(base.shape[1], base.shape[1], offset=1, device=base.device)
        if self.variant == "paper":
            return compute_cosines(base, base)[:, first, second].abs().mean()
        return _rectify(compute_cosines(base, base.detach())[:, first, second]).square().mean()


def compute_cosines(crops: Tensor, bases: Tensor) -> Tensor:
    """Return the cosines of embeddings `(B, S, D)` and `(B, K, D)` of the same volumes, `(B, S, K)`."""
    return F.normalize(crops, dim=-1) @ F.normalize(bases, dim=-1).transpose(1, 2)


def _rectify(cosines: Tensor) -> Tensor:
    return cosines.clamp(min=0, max=1)  # rounding may exceed 1, and the logarithm of 1 - s + 1e-6 its domain


def _widen(embedding: Tensor) -> Tensor:
    return embedding.to(torch.promote_types(embedding.dtype, torch.float32))
