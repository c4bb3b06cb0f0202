# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers between the backward pass and the optimizer's step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from ignite.engine import Engine
from monai.engines import IterationEvents
from torch.nn import Parameter

from tools.errors import ConfigValueError


class GradientClipping:
    """Scale the gradient down where its norm is larger than `norm`; MONAI's SupervisedTrainer has no such option.

    Args:
        parameters: of the network.
        norm: the largest norm over all parameters together; None: no clipping.

    Raises:
        ConfigValueError: if `norm` is not positive.
    """

    def __init__(self, parameters: Iterable[Parameter], norm: float | None) -> None:
        if norm is not None and norm <= 0:
            raise ConfigValueError("clip_norm", str(norm), "a positive number", "correct it, or None for no clipping")
        self.parameters = list(parameters)
        self.norm = norm

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Clip the gradients of one step; those of mixed precision are brought to their true size first."""
        if self.norm is None:
            return
        scaler = getattr(engine, "scaler", None)
        if scaler is not None and engine.amp:
            scaler.unscale_(engine.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.norm)
