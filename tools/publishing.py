# SPDX-License-Identifier: Apache-2.0
"""From a training run to the three files of a committed model: weights, overlay, card."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tools.bundles import locate_bundle, locate_card, run_bundle
from tools.configs import MODEL_KEYS, read_config, write_overlay
from tools.datasets import read_datalist
from tools.errors import CheckpointError, FailedScansError, MissingFileError
from tools.files import compute_sha256, write_atomically
from tools.tables import format_table
from tools.weights import read_checkpoint
from tools.weights.files import read_weights
from tools.weights.merging_forms import HEADER, find_form, split_marks
from tools.weights.origins import find_origin
from tools.weights.report import REPORT_NAME

logger = logging.getLogger(__name__)


def publish(bundle: str, card: str, checkpoint: str | Path, recipe: str | Path, dataset_dir: str | Path) -> str:
    """Write `models/<card>.{safetensors,yaml,md}` of a bundle and return the model card.

    The weights are stored in half precision. The Dice in the card is measured by `evaluate.yaml` with the files that
    were written, over the validation list of `dataset_dir`; time, seed and hardware come from `training.json`, which
    the training run left beside the checkpoint.

    Args:
        bundle: name of the bundle.
        card: name of the data set.
        checkpoint: `last.pt` or `best.pt` of the run.
        recipe: config file that was merged over `train.yaml` and the card.
        dataset_dir: the data set.

    Raises:
        MissingFileError: if the run's `training.json` or another file is missing.
        CheckpointError: if a weight does not fit into half precision.
        FailedScansError: if the evaluation fails.
    """
    root, card_path, checkpoint, recipe = (
        locate_bundle(bundle),
        locate_card(card),
        Path(checkpoint),
        Path(recipe).resolve(),
    )
    record_path, start_path = (checkpoint.with_name(name) for name in ("training.json", REPORT_NAME))
    for path in (checkpoint, recipe, record_path):
        if not path.is_file():
            raise MissingFileError(path, "no such file", "a file of the finished training run", "correct the path")
    models = root / "models"
    weights, overlay, description = (models / f"{card}.{suffix}" for suffix in ("safetensors", "yaml", "md"))
    merging = _write_weights(checkpoint, weights)
    _write_overlay(card, card_path, recipe, weights, overlay, merging)
    train, evaluate = (root / "configs" / f"{name}.yaml" for name in ("train", "evaluate"))
    with tempfile.TemporaryDirectory() as folder:
        overrides = {"bundle_root": root, "dataset_dir": Path(dataset_dir), "output_dir": Path(folder)}
        if status := run_bundle([train, evaluate, overlay], overrides):
            raise FailedScansError("evaluation", f"exit status {status}", "0", "see its message above")
        evaluation = json.loads((Path(folder) / "evaluation.json").read_text(encoding="utf-8"))
    text = _describe(
        bundle,
        read_config(card_path)["card"],
        recipe.relative_to(root) if recipe.is_relative_to(root) else recipe,
        weights,
        read_checkpoint(checkpoint),
        json.loads(record_path.read_text(encoding="utf-8")),
        evaluation,
        len(read_datalist(dataset_dir, "training")),
        json.loads(start_path.read_text(encoding="utf-8")) if start_path.is_file() else None,
    )
    with write_atomically(description) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def _write_weights(checkpoint: Path, path: Path) -> dict[str, str]:
    """Write the weights in half precision and return what the overlay must say of them."""
    state_dict, facts = read_weights(checkpoint)
    halves = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor.contiguous()
        for name, tensor in state_dict.items()
    }
    for name, tensor in halves.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                checkpoint, f"values of {name} beyond 65504", "the range of half precision", "train with weight decay"
            )
    weights, marks = split_marks(state_dict)
    origin = find_origin(checkpoint, state_dict, facts, compute_sha256(checkpoint))
    form = find_form(weights, marks, origin=origin, source=str(checkpoint))
    merging = {HEADER: form.form} if form else {}
    with write_atomically(path) as temporary:
        save_file(halves, temporary, metadata={"format": "pt", **merging})
    logger.info("%s: %.1f MB", path, path.stat().st_size / 1e6)
    return merging


def _write_overlay(
    card: str, card_path: Path, recipe: Path, weights: Path, path: Path, merging: Mapping[str, str]
) -> None:
    values, changes = read_config(card_path), read_config(recipe)
    # the other keys of a recipe belong to training and stay there
    shaping = {k: v for k, v in changes.items() if k in MODEL_KEYS or k.split("#")[0] == "network_def"}
    values = {key: value for key, value in values.items() if key != "card"} | shaping | dict(merging)
    values["checkpoint"] = f"$@bundle_root + '/models/{weights.name}'"
    head = (
        f"The committed model for {card}: goes after inference.yaml, or after train.yaml and evaluate.yaml.\n"
        f"Made of the data set's card and recipes/{recipe.name} by `python -m tools publish`."
    )
    write_overlay(path, values, head)


def _describe(
    bundle: str,
    card: Mapping[str, str],
    recipe: Path,
    weights: Path,
    state: Mapping[str, Any],
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    num_training: int,
    start: Mapping[str, Any] | None,
) -> str:
    num_cases = len(evaluation["per_case"])
    rows = [*evaluation["per_class"].items(), ("mean", evaluation["mean"])]
    table = format_table(["class", "Dice"], rows)
    selection = (
        "The weights are those of the last epoch, which the validation cases did not choose."
        if state["epoch"] == len(training["epochs"])
        else f"The epoch was chosen on the same {num_cases} cases, which flatters the figures a little."
    )
    facts = {
        "bundle": f"`{bundle}`",
        "data": f"{card['title']}, {card['source']}, {card['licence']}",
        "cite": card["citation"],
        "training": f"{num_training} cases, {state['iteration']} steps",
        "started from": _describe_start(start),
        "weights": f"epoch {state['epoch']} of {len(training['epochs'])}",
        "recipe": f"`{recipe.as_posix()}` over `configs/train.yaml` and the card `{weights.stem}`",
        "seed": training["seed"],
        "time": f"{training['seconds'] / 60:.0f} minutes",
        "hardware": training["hardware"],
        "file": f"{weights.stat().st_size / 1e6:.1f} MB, half precision, SHA-256 `{compute_sha256(weights)}`",
    }
    return "\n".join(
        [
            f"# {weights.stem}: {card['title']} ({card['modality']})",
            "",
            "| | |",
            "| --- | --- |",
            *(f"| {name} | {fact} |" for name, fact in facts.items()),
            "",
            f"Dice without background, mean over the {num_cases} validation cases, in the grid of the source scans,",
            f"measured with the file above. {selection}",
            "",
            *(f"    {line}" for line in table.splitlines()),
            "",
            "Use, in the bundle's folder:",
            "",
            "    python -m monai.bundle run --dataset_dir FOLDER \\",
            f"        --config_file \"['configs/inference.yaml','models/{weights.stem}.yaml']\"",
            "",
            "For research; not a medical device. The network has only seen data of this kind: anything else needs a",
            "test on labelled cases first.",
            "",
        ]
    )


def _describe_start(start: Mapping[str, Any] | None) -> str:
    """Say which weights the training started from, by the report that their loading left beside the checkpoint.

    Where they come from a run of ours, the record of it lies beside them and says how they came about.
    """
    if start is None:
        return "random weights"
    source = Path(start["source"])
    record = source.with_name("training.json")
    made, licence = "", start["licence"]  # of the public files in this layout
    if record.is_file():
        licence = "that of the pre-training it comes from"
        run = json.loads(record.read_text(encoding="utf-8"))
        minutes = f"{run['seconds'] / 60:.0f} minutes, {run['hardware']}"
        made = f" ({run['training_cases']} scans, {run['steps']} steps, seed {run['seed']}, {minutes})"
    return (
        f"{source.name}, SHA-256 `{start['sha256']}`: {start['title']}{made}, "
        f"{start['counts']['matched'] + start['counts']['reshaped']} tensors; licence: {licence}"
    )
