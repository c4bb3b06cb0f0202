# SPDX-License-Identifier: Apache-2.0
"""What no tensor of a file says, and what is assumed instead: attention heads, activation, position grid, model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from monai.networks.blocks import SABlock
from torch import nn

from tools.errors import ConfigValueError
from tools.weights.adaptation import get_grid
from tools.weights.timm_encoders import takes_timm

# of public 2D transformers with 12 blocks, as UNETR has, by the length of a token: timm, DINO, DINOv2, MAE, BEiT.
# MoCo v3 has 12 at 384: `source_heads` says so
PUBLIC_HEADS = {192: 3, 384: 6, 768: 12}
HEAD_WIDTH = 64  # numbers of a token that each head reads, in all of these and in the published UNETR


def list_remarks(
    network: nn.Module,
    planar: bool,
    normalization: str,
    source_grid: Sequence[int] | None = None,
    source_heads: int | None = None,
) -> Iterator[str]:
    """Yield one sentence for each thing that a file does not say.

    Args:
        network: that gets the weights.
        planar: whether they are those of a 2D network.
        normalization: of the intensities, that is folded in.
        source_grid: as of `match`.
        source_heads: as of `match`.

    Raises:
        ConfigValueError: if the network has another number of heads than the file's, as far as that is known.
    """
    if takes_timm(network):
        encoder: Any = network.get_submodule("encoder")
        if planar:
            yield (
                f"the file does not name its model: heads, activation and epsilon are those of {encoder.name}, and so "
                "are the intensities unless the inflation's normalization says otherwise"
            )
        return
    if heads := count_heads(network):
        count, width = heads
        wanted = source_heads or (PUBLIC_HEADS.get(count * width) if planar else None)
        if wanted and wanted != count:
            known = "the file's network has" if source_heads else f"public 2D networks of width {count * width} have"
            remedy = f"set network_def#num_heads to {wanted}"
            if not source_heads:
                remedy += f", or say source_heads: {count} if the file's network does have {count}"
            raise ConfigValueError("num_heads", f"{count} in the network", f"{wanted}, as {known}", remedy)
        if source_heads is None:
            usual = "" if planar or width != HEAD_WIDTH else ", as published"
            yield f"the file does not say its attention heads: {count} of width {width} are taken{usual}"
    if planar:
        yield f"the file does not say its activation and its intensities: GELU and {normalization} are taken"
    grid = get_grid(network)
    if grid and not planar and source_grid is None and len(set(grid)) > 1:
        text = " × ".join(map(str, grid))
        yield f"the file does not say the grid of its position table: the network's, {text}, or a cube is taken"
    normalize = getattr(network, "normalize", None)
    if normalize is not None:
        usual = "as the published ones do" if normalize else "unlike the published ones"
        yield f"the file does not say whether its network normalizes its maps: normalize={normalize} is taken, {usual}"


def count_heads(network: nn.Module) -> tuple[int, int] | None:
    """Return the heads of a ViT of MONAI and the width of each; None for other networks."""
    attention = next((module for module in network.modules() if isinstance(module, SABlock)), None)
    return (attention.num_heads, attention.dim_head) if attention is not None else None
