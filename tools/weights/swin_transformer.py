# SPDX-License-Identifier: Apache-2.0
"""A Swin transformer in the layout of model_swinvit.pt, which MONAI's SwinUNETR.load_from and its tutorials read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tools.networks.patch_merging import DEFAULT, name_form
from tools.weights.merging_forms import HEADER, split_marks


def name_like_swinvit(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the transformer in a state dict of SwinUNETR or SwinSSL under the names of the 0.8.1 release.

    These begin with `module.`, lack `swinViT.`, and call the linear layers of an MLP `fc1` and `fc2`. All else in the
    state dict is left out. `load_from` takes the file of a network with `use_v2=False`; of the other one it leaves
    the residual convolutions out.

    Args:
        state: names and tensors; `swinViT.*` are used.
    """
    renamed = {
        re.sub(r"\.mlp\.linear([12])\.", r".mlp.fc\1.", name.removeprefix("swinViT.")): tensor
        for name, tensor in state.items()
        if name.startswith("swinViT.")
    }
    weights, marks = split_marks(renamed)
    forms = {name_form(mark) for mark in marks.values()} or {DEFAULT}
    return {"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}, HEADER: forms.pop()}
