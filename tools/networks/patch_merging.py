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
AUTO = "auto"
DEFAULT = "corrected"  # what a state dict without `slices` stands for where nothing else is known
SLICES = "slices"  # in the state dict: what the blocks of a patch merging read


class PatchMerging(nn.Module):
    """Halve a map `(B, X, Y, Z, C)` to `(B, X/2, Y/2, Z/2, 2C)` as MONAI's Swin transformer does, in a form of choice.

    The state dict tells the form as `slices` `(8, 3)`, the offsets of the voxels, unless it is `corrected`, which is
    what MONAI computes with the same names. `load_state_dict` takes the form over; without `slices` it stays as it is.

    Source: Liu et al., Swin Transformer, ICCV 2021, section 3.1; in 3D, MONAI's `PatchMerging`.

    Args:
        dim: channels `C`.
        norm_layer: makes the normalization of the eight blocks together.
        spatial_dims: 3.
        form: a key of `FORMS`.
        is_told: whether the state dict tells `corrected`, too.

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
        is_told: bool = False,
    ) -> None:
        super().__init__()
        if spatial_dims != 3:
            raise ConfigValueError("spatial_dims", str(spatial_dims), "3", "use MONAI's own PatchMerging")
        self.dim = dim
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(8 * dim)
        self.is_told = is_told
        self.choose(form)

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

    @torch.jit.unused
    def choose(self, form: str) -> None:
        """Read the voxels of another form from now on.

        Raises:
            ConfigValueError: if it is unknown.
        """
        check_form(form)
        self.offsets = [list(offset) for offset in FORMS[form]]
        device = self.reduction.weight.device
        # it is read, and tensors on the meta device have no values
        slices = torch.tensor(FORMS[form], dtype=torch.uint8, device="cpu" if device.type == "meta" else device)
        self.register_buffer(SLICES, slices, persistent=self.is_told or form != DEFAULT)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Take the form from the state dict, if it tells one."""
        key = f"{prefix}{SLICES}"
        if key in state_dict:
            self.is_told = True
            self.choose(name_form(state_dict[key]))
        elif SLICES not in self._non_persistent_buffers_set:
            state_dict[key] = self.slices
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def make_patch_merging(form: str | None) -> Callable[..., PatchMerging]:
    """Return what MONAI's networks take as `downsample`.

    Args:
        form: a key of `FORMS`. None: `corrected`, until weights of another form are loaded. `auto`: the same, and the
            state dict tells the form in any case, so that whatever copies values into it (MONAI Label, `ckpt_export`)
            copies the form, too.

    Raises:
        ConfigValueError: if it is unknown.
    """
    form = DEFAULT if form is None else form
    check_form(form, AUTO)
    return functools.partial(PatchMerging, form=DEFAULT if form == AUTO else form, is_told=form == AUTO)


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
