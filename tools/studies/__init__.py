# SPDX-License-Identifier: Apache-2.0
"""Experiments that back the tables in the docs: defined in a YAML file, run so that they can be resumed, summarized.

A study is `<bundle>/studies/<name>.yaml`:

    title: ViTAutoEnc pre-training against random weights, hippocampus, 10 % of the labels
    card: msd04_hippocampus
    seeds: [0, 1, 2]
    runs:
      pretrain:
        configs: [configs/pretrain.yaml, CARD, configs/recipes/msd04_hippocampus_pretrain.yaml]
        overrides: {epochs: 100}
      scratch:
        configs: [configs/train.yaml, CARD, configs/recipes/msd04_hippocampus.yaml]
        overrides: {training_share: 0.1, epochs: 50}
        evaluate: [configs/evaluate.yaml]
      pretrained:
        like: scratch
        overrides: {pretrained: "{pretrain}/last.pt"}
    table:
      scratch: random weights
      pretrained: ViTAutoEnc

`configs` are merged in order, relative to the bundle; CARD is the data set's card. `overrides` go to the command line.
`{pretrain}` is the folder of that run with the same seed. `evaluate` lists overlays on the run's configs that measure
the Dice of its `last.pt`, with the same overrides. `like` takes over everything from a run further up; overrides are
added to its own. `table` gives the rows and their labels; default: every run that is evaluated. `against` names for a
run the one that its Dice is compared with; default: the first of the table.
"""

from __future__ import annotations

from tools.studies.definition import read_study
from tools.studies.runner import run_study
from tools.studies.summary import render, summarize, write_summary

__all__ = ["read_study", "render", "run_study", "summarize", "write_summary"]
