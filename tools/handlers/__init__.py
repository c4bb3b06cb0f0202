# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers that MONAI lacks: seeds, record, progress, checkpoints, previews, Dice per case."""

from tools.handlers.checkpoints import TrainingCheckpoint
from tools.handlers.evaluation import DiceReport
from tools.handlers.gradients import GradientClipping
from tools.handlers.models import ModelReplacement, RunModel
from tools.handlers.pretraining import ReconstructionPreview, SwinTransformerExport
from tools.handlers.samples import SampleCheck
from tools.handlers.training import EpochSeed, TrainingRecord

__all__ = [
    "DiceReport",
    "EpochSeed",
    "GradientClipping",
    "ModelReplacement",
    "ReconstructionPreview",
    "RunModel",
    "SampleCheck",
    "SwinTransformerExport",
    "TrainingCheckpoint",
    "TrainingRecord",
]
