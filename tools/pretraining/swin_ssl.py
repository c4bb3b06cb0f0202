# SPDX-License-Identifier: Apache-2.0
"""Pre-training of Swin UNETR's transformer by three proxy tasks: its heads, and the loss that adds them up.

Source: Tang et al., Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis, CVPR 2022, section
3, and its code, github.com/Project-MONAI/research-contributions, SwinUNETR/Pretrain. Where the two differ the defaults
here are those of the code, as the public weights come from it:

- Image Rotation, Contrastive Coding: the paper has an MLP for the rotation and does not say which tokens are read;
  the code has a linear layer each, on token 0 of the deepest map for the rotation and on token 1 for the contrast.
  `heads="pooled"` puts both on the mean of all tokens.
- Masked Volume Inpainting: the paper's decoder is a transposed convolution, the code's default five convolutions with
  upsampling (`decoder="vae"`). The error is that of the whole crop, not of its holes; `masked_only=True` changes that.

The contrast differs from the code in one way: it sees the crops of all processes, not those of its own alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from monai.losses import ContrastiveLoss
from monai.networks.nets.swin_unetr import SwinTransformer
from monai.utils import ensure_tuple, ensure_tuple_rep
from torch import Tensor, nn

from tools.errors import ConfigValueError
from tools.networks.patch_merging import make_patch_merging
from tools.networks.swin_unetr import STRIDE, check_sizes
from tools.pretraining.vit_autoencoder import MIN_TEMPERATURE, gather_batch

TASKS = ("rotation", "contrast", "reconstruction")
HEADS = ("tokens", "pooled")
NUM_TURNS = 4  # 0°, 90°, 180°, 270°


class SwinSSL(nn.Module):
    """Swin UNETR's transformer with the heads of its pre-training: crops `(N, C, X, Y, Z)` to what the tasks ask for.

    The state dict has the names of the published script: `swinViT.*`, as in a SwinUNETR of the same arguments (126
    tensors, 134 with `use_v2`), and `rotation_head.*`, `contrastive_head.*`, `conv.*` of the tasks that are on. With
    `feature_size` 48 and one channel these are 8,062,002 parameters and 3,076, 393,728, 10,638,385 ("vae").

    Args:
        in_channels: channels `C` of the image, and of the reconstruction.
        img_size: voxels of the crop along X, Y, Z, or one number for all three. It is checked, not built in.
        feature_size: channels at stride 2; the deepest map has 16 times as many.
        window_size: tokens along X, Y, Z that attend to each other, or one number; fine-tuning must have the same.
        use_v2: whether a convolution block precedes each stage.
        use_checkpoint: whether to compute activations again in the backward pass, which saves memory.
        tasks: those that are on, of "rotation", "contrast", "reconstruction", or one of them; the others have no head.
        heads: "tokens": rotation from token 0, contrast from token 1 of the deepest map, the corner of the crop and its
            neighbour along Z. "pooled": both from the mean of all tokens.
        decoder: "vae": five times a convolution and trilinear upsampling; "deconv": five transposed convolutions by
            2³; "large_kernel_deconv": one by 32³.
        embedding_dim: length of an embedding.
        patch_merging: of the transformer, see `tools.networks.ScriptableSwinUNETR`.

    Raises:
        ConfigValueError: if the sizes do not fit together, or a name is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        img_size: Sequence[int] | int,
        feature_size: int = 48,
        window_size: Sequence[int] | int = 7,
        use_v2: bool = False,
        use_checkpoint: bool = False,
        tasks: Sequence[str] | str = TASKS,
        heads: str = "tokens",
        decoder: str = "vae",
        embedding_dim: int = 512,
        patch_merging: str | None = None,
    ) -> None:
        super().__init__()
        voxels, tasks = ensure_tuple_rep(img_size, 3), ensure_tuple(tasks)
        check_sizes(voxels, feature_size)  # the contrast needs a second token, too
        if not tasks or not set(tasks) <= set(TASKS):
            found = ", ".join(tasks) or "none"
            raise ConfigValueError("tasks", found, f"one or more of {', '.join(TASKS)}", "correct --tasks")
        if heads not in HEADS:
            raise ConfigValueError("heads", repr(heads), f"one of {', '.join(HEADS)}", "correct --heads")
        if decoder not in DECODERS:
            raise ConfigValueError("decoder", repr(decoder), f"one of {', '.join(DECODERS)}", "correct --decoder")
        self.heads = heads
        self.patch_merging = patch_merging
        self.swinViT = SwinTransformer(
            in_chans=in_channels,
            embed_dim=feature_size,
            window_size=ensure_tuple_rep(window_size, 3),
            patch_size=(2, 2, 2),
            depths=(2, 2, 2, 2),
            num_heads=(3, 6, 12, 24),
            use_checkpoint=use_checkpoint,
            use_v2=use_v2,
            downsample=make_patch_merging(patch_merging),
        )
        width = 16 * feature_size
        self.rotation_head = nn.Linear(width, NUM_TURNS) if "rotation" in tasks else None
        self.contrastive_head = nn.Linear(width, embedding_dim) if "contrast" in tasks else None
        self.conv = DECODERS[decoder](width, in_channels) if "reconstruction" in tasks else None

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return what the tasks ask for of crops `(N, C, X, Y, Z)`, each only if its task is on.

        `rotation` `(N, 4)`: logits of the quarter turns; `embedding` `(N, embedding_dim)`; `reconstruction` in the
        shape of the crops.
        """
        deepest = self.swinViT(image)[-1]
        tokens = deepest.flatten(2)
        if self.heads == "tokens":
            first, second = tokens[:, :, 0], tokens[:, :, 1]
        else:
            first = second = tokens.mean(dim=2)
        output = {}
        if self.rotation_head is not None:
            output["rotation"] = self.rotation_head(first)
        if self.contrastive_head is not None:
            output["embedding"] = self.contrastive_head(second)
        if self.conv is not None:
            output["reconstruction"] = self.conv(deepest)
        return output


def _make_vae(width: int, out_channels: int) -> nn.Module:
    widths = [width, width // 2, width // 4, width // 8, width // 16, width // 16]
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [
            nn.Conv3d(wide, narrow, 3, padding=1),
            nn.InstanceNorm3d(narrow),
            nn.LeakyReLU(),
            nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False),
        ]
    return nn.Sequential(*layers, nn.Conv3d(widths[-1], out_channels, 1))


def _make_deconv(width: int, out_channels: int) -> nn.Module:
    widths = [width, width // 2, width // 4, width // 8, width // 16, out_channels]
    return nn.Sequential(*(nn.ConvTranspose3d(*pair, 2, stride=2) for pair in itertools.pairwise(widths)))


def _make_large_kernel_deconv(width: int, out_channels: int) -> nn.Module:
    return nn.ConvTranspose3d(width, out_channels, STRIDE, stride=STRIDE)


DECODERS = {"vae": _make_vae, "deconv": _make_deconv, "large_kernel_deconv": _make_large_kernel_deconv}


class ProxyTaskLoss(nn.Module):
    """Cross-entropy of the turns, NT-Xent of the embeddings and L1 of the reconstruction, weighted and added up.

    The terms are those of the outputs there are: the tasks of `SwinSSL` switch them. After each call `rotation`,
    `contrast` and `reconstruction` are the terms, unweighted and detached; 0 if the task is off.

    In the contrast the two views of a crop attract each other and all other views of the batch repel; the batch is that
    of all processes together, so that the gradient is the one of a single process with the whole batch. A batch of one
    crop has nothing that repels: its contrast is 0.

    Source: Tang et al., section 3, all weights 1; of the code also the temperature.

    Args:
        rotation_weight: factor of the cross-entropy.
        contrast_weight: factor of the contrast.
        reconstruction_weight: factor of the L1.
        temperature: divides the cosine similarities.
        masked_only: whether the L1 is the mean over what was cut out, and not over the whole crop as in the code.

    Raises:
        ConfigValueError: if the temperature is too small for MONAI's ContrastiveLoss.
    """

    def __init__(
        self,
        rotation_weight: float = 1.0,
        contrast_weight: float = 1.0,
        reconstruction_weight: float = 1.0,
        temperature: float = 0.5,
        masked_only: bool = False,
    ) -> None:
        super().__init__()
        if temperature < MIN_TEMPERATURE:
            raise ConfigValueError("temperature", str(temperature), f"at least {MIN_TEMPERATURE}", "raise it")
        self.weights = dict(zip(TASKS, (rotation_weight, contrast_weight, reconstruction_weight), strict=True))
        self.contrast_loss = ContrastiveLoss(temperature=temperature)
        self.masked_only = masked_only
        self.rotation = torch.zeros(())
        self.contrast = torch.zeros(())
        self.reconstruction = torch.zeros(())

    def forward(self, output: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
        """Return the loss, a scalar in float32.

        Args:
            output: of `SwinSSL` on `2B` views: the first views of all crops, then the second ones in the same order.
            target: of `ProxyTasks` in that order: `rotation` `(2B,)`, `reconstruction` `(2B, C, X, Y, Z)`, `mask` `(2B,
                1, X, Y, Z)`; those that are needed.

        Raises:
            ConfigValueError: if turns are to be told of crops that were not turned.
        """
        terms = {}
        if "rotation" in output:
            if "rotation" not in target:
                raise ConfigValueError("tasks", "rotation of crops that are not turned", "turns", "set turns [0,1,2,3]")
            terms["rotation"] = F.cross_entropy(output["rotation"].float(), target["rotation"])
        if "embedding" in output:
            # a pair stays together when the batches of all processes are put behind each other
            pairs = torch.stack(output["embedding"].float().chunk(2), dim=1)
            terms["contrast"] = self.contrast_loss(*gather_batch(pairs).unbind(dim=1))
        if "reconstruction" in output:
            mask = target["mask"] if self.masked_only else None
            terms["reconstruction"] = compute_l1(output["reconstruction"], target["reconstruction"], mask)
        for task in TASKS:
            setattr(self, task, terms[task].detach() if task in terms else torch.zeros(()))
        return torch.stack([self.weights[task] * term for task, term in terms.items()]).sum()


def compute_l1(reconstruction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean absolute difference in float32, of all voxels or of those in `mask` `(N, 1, X, Y, Z)`.

    It is 0 if the mask is empty.
    """
    reconstruction, target = reconstruction.float(), target.float()
    if mask is None:
        return F.l1_loss(reconstruction, target)
    error = ((reconstruction - target).abs() * mask).sum()
    return error / (mask.sum() * target.shape[1]).clamp(min=1)
