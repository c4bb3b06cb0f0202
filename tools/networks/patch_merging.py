# SPDX-License-Identifier: Apache-2.0
"""Patch merging of Swin transformers: which of the eight voxels of a 2×2×2 cube each block of its weights reads.

Names and shapes of the weights are the same in all forms, what the network computes is not:

- `original`: MONAI 0.9.0 to 1.4.0 and the code that the public weights were trained with. Blocks 5 and 6 read the
  voxels of blocks 2 and 3 again, and two of the eight voxels are never read.
- `corrected`: MONAI 1.5.0 and later (pull request 8285), where each block reads another voxel.
- `v2`: MONAI's `downsample="mergingv2"`, the eight voxels in another order.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from monai.networks.nets.swin_unetr import PatchMerging as MonaiPatchMerging
from monai.networks.nets.swin_unetr import PatchMergingV2
from torch import Tensor, nn

from tools.errors import ConfigValueError

Slices = tuple[tuple[int, int, int], ...]

# offsets along the three axes of the voxel that a block reads
FORMS: dict[str, Slices] = {
    "original": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
    "corrected": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
    "v2": ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)),
}
AUTO = "auto"  # the form of the weights; of random ones `DEFAULT`
DEFAULT = "corrected"
SLICES = "slices"  # of the state dict: what a module's blocks read


class PatchMerging(nn.Module):
    """Halve a map `(B, X, Y, Z, C)` to `(B, X/2, Y/2, Z/2, 2C)` as MONAI's Swin transformer does, in a form of choice.

    The form is part of the state dict, `slices` `(8, 3)`: weights that are saved with it are loaded as what they were
    trained as, by `load_state_dict` too. A state dict without it, as MONAI writes, leaves the form as it is.

    Source: Liu et al., Swin Transformer, ICCV 2021, section 3.1; in 3D, MONAI's `PatchMerging`.

    Args:
        dim: channels `C`.
        norm_layer: makes the normalization of the eight blocks together.
        spatial_dims: 3.
        form: a key of `FORMS`.

    Raises:
        ConfigValueError: if the form is unknown, or the maps are no volumes.
    """

    # without `from __future__ import annotations` above: torch.jit.script reads these
    slices: Tensor
    offsets: list[list[int]]
    __jit_unused_properties__: ClassVar[list[str]] = ["form"]

    def __init__(
        self,
        dim: int,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        spatial_dims: int = 3,
        form: str = DEFAULT,
    ) -> None:
        super().__init__()
        check_form(form)
        if spatial_dims != 3:
            raise ConfigValueError("spatial_dims", str(spatial_dims), "3", "use MONAI's own PatchMerging")
        self.dim = dim
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(8 * dim)
        # on the CPU even where networks are built on the meta device, which has no values
        self.register_buffer(SLICES, torch.tensor(FORMS[form], dtype=torch.uint8, device="cpu"))
        self.offsets = [list(offset) for offset in FORMS[form]]

    def forward(self, x: Tensor) -> Tensor:
        """Merge the cubes of a map `(B, X, Y, Z, C)`; an odd axis is padded with zeros at its end."""
        odd = [x.shape[1] % 2, x.shape[2] % 2, x.shape[3] % 2]
        if sum(odd) > 0:
            x = nn.functional.pad(x, [0, 0, 0, odd[2], 0, odd[1], 0, odd[0]])
        blocks = [x[:, offset[0] :: 2, offset[1] :: 2, offset[2] :: 2, :] for offset in self.offsets]
        return self.reduction(self.norm(torch.cat(blocks, -1)))

    @property
    def form(self) -> str:
        """The key of `FORMS`."""
        return name_form(self.slices)

    def choose(self, form: str) -> None:
        """Read the voxels of another form from now on.

        Raises:
            ConfigValueError: if it is unknown.
        """
        check_form(form)
        self.offsets = [list(offset) for offset in FORMS[form]]
        self.slices = torch.tensor(FORMS[form], dtype=torch.uint8, device=self.slices.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Take the form from the state dict, if it has one."""
        key = f"{prefix}{SLICES}"
        slices = state_dict.setdefault(key, self.slices)
        self.choose(name_form(slices))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def make_patch_merging(form: str) -> Callable[..., PatchMerging]:
    """Return what MONAI's networks take as `downsample`.

    Args:
        form: a key of `FORMS`, or `auto`.

    Raises:
        ConfigValueError: if it is unknown.
    """
    check_form(form, AUTO)
    return functools.partial(PatchMerging, form=DEFAULT if form == AUTO else form)


def check_form(form: object, *others: str) -> None:
    """Raise `ConfigValueError` unless the form is known, or one of `others`."""
    known = (*others, *FORMS)
    if form not in known:
        raise ConfigValueError("patch_merging", repr(form), f"one of {', '.join(known)}", "correct --patch_merging")


def name_form(slices: Tensor) -> str:
    """Return the key of `FORMS` of slices `(8, 3)`.

    Raises:
        ConfigValueError: if it is none of them.
    """
    offsets = tuple(map(tuple, slices.tolist())) if slices.ndim == 2 else ()
    for form, known in FORMS.items():
        if offsets == known:
            return form
    raise ConfigValueError(SLICES, f"{slices.tolist()}", "those of a known patch merging", "give other weights")


def read_form(network: nn.Module) -> str | None:
    """Return the form of a network's patch mergings, None if it has none.

    Raises:
        ConfigValueError: if they differ.
    """
    forms = {_name_form_of(module) for _, _, module in _iterate_mergings(network)}
    if len(forms) > 1:
        raise ConfigValueError("patch merging", ", ".join(sorted(forms)), "one form", "build the network anew")
    return next(iter(forms), None)


def choose_form(network: nn.Module, form: str) -> None:
    """Let all patch mergings of a network, MONAI's own too, read the voxels of this form; their weights stay.

    Raises:
        ConfigValueError: if the form is unknown.
    """
    check_form(form)
    for parent, name, module in list(_iterate_mergings(network)):
        if isinstance(module, PatchMerging):
            module.choose(form)
        elif _name_form_of(module) != form:
            parent.register_module(name, _take_over(module, form))


def _iterate_mergings(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield each patch merging of a volume with its parent and its name there."""
    for parent in network.modules():
        for name, module in parent.named_children():
            ours = isinstance(module, PatchMerging)
            if ours or (isinstance(module, PatchMergingV2) and module.reduction.in_features == 8 * module.dim):
                yield parent, name, module


def _name_form_of(module: nn.Module) -> str:
    if isinstance(module, PatchMerging):
        return module.form
    return "corrected" if isinstance(module, MonaiPatchMerging) else "v2"


def _take_over(module: nn.Module, form: str) -> PatchMerging:
    """Return a patch merging of another form with the layers of one of MONAI's."""
    dim: Any = module.dim
    merging = PatchMerging(dim, form=form)
    merging.reduction, merging.norm = module.reduction, module.norm  # type: ignore[assignment]
    merging.train(module.training)
    return merging.to(next(module.parameters()).device)
