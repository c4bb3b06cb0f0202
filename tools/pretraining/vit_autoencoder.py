# SPDX-License-Identifier: Apache-2.0
"""Pre-training of UNETR's transformer: restore a corrupted crop, and tell it from all others by its tokens.

Source: the recipe of MONAI's tutorial vit_unetr_ssl (github.com/Project-MONAI/tutorials), changed where it is flawed:
both views are reconstructed and not the first alone, the contrast compares projected tokens and not raw voxels, its
weight is a constant and not the reconstruction error, and it sees the crops of all processes. The bundle's optimizer is
another one too: AdamW with warm-up and cosine instead of Adam with a constant rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from monai.losses import ContrastiveLoss
from monai.networks.nets import ViTAutoEnc
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn

from tools.errors import ConfigValueError

PATCH_SIZE = 16  # voxels along each edge, that of UNETR
MIN_TEMPERATURE = 0.0125  # ContrastiveLoss computes exp(1 / temperature) in float32, which ends at exp(88)


class ContrastiveViTAutoEnc(ViTAutoEnc):
    """MONAI's ViTAutoEnc with a projection head: crops `(N, C, X, Y, Z)` to their reconstructions and embeddings.

    The state dict has the names of ViTAutoEnc and `projection.*`. Without these and `conv3d_transpose*` it is the
    transformer of a UNETR of the same sizes, whose names have `vit.` in front.

    Args:
        in_channels: channels `C` of the image, and of the reconstruction.
        img_size: voxels of the crop along X, Y, Z, or one number for all three; the position code fixes it.
        hidden_size: length of a token.
        mlp_dim: width of the MLP in a transformer block.
        num_layers: transformer blocks; UNETR has 12.
        num_heads: attention heads.
        proj_type: "conv" or "perceptron", the layer that turns a patch into a token; the loader bridges the two.
        qkv_bias: whether query, key and value have a bias; fine-tuning must have one too if so.
        projection_dim: length of an embedding.

    Raises:
        ConfigValueError: if the sizes do not fit together.
        ValueError: from MONAI, for an unknown `proj_type`.
    """

    def __init__(
        self,
        in_channels: int,
        img_size: Sequence[int] | int,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_layers: int = 12,
        num_heads: int = 12,
        proj_type: str = "conv",
        qkv_bias: bool = False,
        projection_dim: int = 128,
    ) -> None:
        voxels = ensure_tuple_rep(img_size, 3)
        if any(size < PATCH_SIZE or size % PATCH_SIZE for size in voxels):
            raise ConfigValueError(
                "roi_size", "×".join(map(str, voxels)), f"multiples of {PATCH_SIZE}", "change --roi_size"
            )
        if hidden_size % num_heads:
            raise ConfigValueError(
                "hidden_size", str(hidden_size), f"a multiple of num_heads, {num_heads}", "change one of the two"
            )
        super().__init__(
            in_channels=in_channels,
            img_size=voxels,
            patch_size=PATCH_SIZE,
            out_channels=in_channels,
            hidden_size=hidden_size,
            mlp_dim=mlp_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            proj_type=proj_type,
            qkv_bias=qkv_bias,
        )
        self.projection = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, projection_dim)
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return `reconstruction` `(N, C, X, Y, Z)` and `embedding` `(N, projection_dim)` of crops `(N, C, X, Y, Z)`.

        The embedding is projected from the mean over all tokens after the final norm, which is what UNETR's deepest
        skip reads.
        """
        reconstruction, hidden_states = super().forward(image)
        tokens = self.norm(hidden_states[-1])  # a second time: MONAI keeps the tokens before the norm only
        return {"reconstruction": reconstruction, "embedding": self.projection(tokens.mean(dim=1))}


class ReconstructionContrastLoss(nn.Module):
    """L1 of the reconstruction plus a weighted InfoNCE of the embeddings.

    The two views of a crop attract each other, all other views of the batch repel; in a distributed run the batch is
    that of all processes together, so that the gradient is the one of a single process with the whole batch.

    After each call `reconstruction` and `contrast` are its two terms, unweighted and detached.

    Args:
        temperature: divides the cosine similarities.
        contrast_weight: factor of the contrast.

    Raises:
        ConfigValueError: if the temperature is too small for MONAI's ContrastiveLoss.
    """

    def __init__(self, temperature: float = 0.05, contrast_weight: float = 0.1) -> None:
        super().__init__()
        if temperature < MIN_TEMPERATURE:
            raise ConfigValueError("temperature", str(temperature), f"at least {MIN_TEMPERATURE}", "raise it")
        self.contrast_loss = ContrastiveLoss(temperature=temperature)
        self.contrast_weight = contrast_weight
        self.reconstruction = torch.zeros(())
        self.contrast = torch.zeros(())

    def forward(self, output: Mapping[str, Tensor], target: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            output: `reconstruction` `(2B, C, X, Y, Z)` and `embedding` `(2B, D)`: the first views of all crops, then
                the second views in the same order.
            target: the clean crops `(2B, C, X, Y, Z)` in that order.
        """
        reconstruction = F.l1_loss(output["reconstruction"].float(), target.float())
        pairs = torch.stack(output["embedding"].float().chunk(2), dim=1)  # float: exp(1 / 0.05) exceeds half precision
        contrast = self.contrast_loss(*gather_batch(pairs).unbind(dim=1))
        self.reconstruction, self.contrast = reconstruction.detach(), contrast.detach()
        return reconstruction + self.contrast_weight * contrast


def gather_batch(batch: Tensor) -> Tensor:
    """Return the batches `(B, ...)` of all processes, one after the other `(processes * B, ...)`, with gradient.

    All processes must call it with the same shape. Outside of a distributed run `batch` itself is returned.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return batch
    return _Gather.apply(batch)


class _Gather(torch.autograd.Function):
    """All-gather along the first axis; torch.distributed.nn.functional.all_gather is deprecated as of torch 2.15."""

    @staticmethod
    def forward(ctx: Any, batch: Tensor) -> Tensor:
        parts = [torch.empty_like(batch) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, batch.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient of the sum of the losses of all processes; the mean over them is up to DDP."""
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
