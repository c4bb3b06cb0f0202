# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers of pre-training: what the network restores, and its transformer for others."""

from __future__ import annotations

from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys

from tools.hardware import is_main_process
from tools.reports import plot_reconstruction
from tools.weights import save_checkpoint
from tools.weights.swin_transformer import name_like_swinvit

SWINVIT = "model_swinvit.pt"


class ReconstructionPreview:
    """Draw what the network makes of the first batch of a validation: `reconstruction/epoch_0010.png`.

    Attached to the evaluator; with a validation that always shows the same corrupted crops the pictures compare.

    Args:
        output_dir: folder of the folder `reconstruction`.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.folder = Path(output_dir) / "reconstruction"

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the picture, after the first batch and in the first process."""
        if engine.state.iteration != 1 or not is_main_process():
            return
        output = engine.state.output
        self.folder.mkdir(parents=True, exist_ok=True)
        plot_reconstruction(
            output[CommonKeys.IMAGE],
            output[CommonKeys.PRED]["reconstruction"],
            output[CommonKeys.LABEL]["reconstruction"],
            self.folder / f"epoch_{engine.state.epoch:04}.png",
            f"epoch {engine.state.epoch}",
        )


class SwinTransformerExport:
    """Write the transformer as `model_swinvit.pt`, in the layout of the public file of that name, for other programs.

    Args:
        output_dir: folder of the file.
        network: has the transformer as `swinViT`; not a distributed wrapper.
        interval: epochs between two writings; the last epoch is always written.
    """

    def __init__(self, output_dir: str | Path, network: torch.nn.Module, interval: int = 1) -> None:
        self.path = Path(output_dir) / SWINVIT
        self.network = network
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the file, in the first process."""
        epoch = engine.state.epoch
        if is_main_process() and (epoch % self.interval == 0 or epoch == engine.state.max_epochs):
            save_checkpoint(name_like_swinvit(self.network.state_dict()), self.path)
