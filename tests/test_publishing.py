# SPDX-License-Identifier: Apache-2.0
"""A training run becomes three files that belong together; the evaluation, a run of its own, is a stand-in here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tools import publishing
from tools.bundles import CARDS, locate_card
from tools.errors import CheckpointError, MissingFileError
from tools.files import compute_sha256

CARD = "openkbp_hn"
RECIPE = {"roi_size": [32, 64, 32], "feature_size": 12, "window_size": [4, 4, 4], "mirror_axes": [], "epochs": 7}
DICE = {"brainstem": 0.5, "mandible": 0.75}


class Workshop:
    """A bundle's folder, a finished run and a data set."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "bundle"
        (self.root / "models").mkdir(parents=True)
        (self.root / "configs" / "recipes").mkdir(parents=True)
        self.recipe = self.root / "configs" / "recipes" / f"{CARD}.yaml"
        self.recipe.write_text(yaml.safe_dump(RECIPE))
        self.run = folder / "run"
        self.run.mkdir()
        self.checkpoint = self.run / "last.pt"
        self.save({"weight": torch.tensor([1.0, 0.1]), "index": torch.tensor([70000])})
        self.write_record(self.run, training_cases=60, steps=35)

    def save(self, model: dict[str, torch.Tensor]) -> None:
        torch.save({"model": model, "epoch": 7, "iteration": 35}, self.checkpoint)

    def write_record(self, folder: Path, **facts: object) -> None:
        record = {"seed": 3, "seconds": 600.0, "hardware": "a machine", "epochs": [{}] * 7, **facts}
        (folder / "training.json").write_text(json.dumps(record))

    def publish(self) -> str:
        return publishing.publish("bundle", CARD, self.checkpoint, self.recipe, CARDS / "demo" / CARD)


@pytest.fixture
def workshop(tmp_path, monkeypatch) -> Workshop:
    def evaluate(files, overrides):
        content = {"per_case": {"pt_1": DICE, "pt_2": DICE}, "per_class": DICE, "mean": 0.625}
        (Path(overrides["output_dir"]) / "evaluation.json").write_text(json.dumps(content))
        return 0

    made = Workshop(tmp_path)
    monkeypatch.setattr(publishing, "run_bundle", evaluate)
    monkeypatch.setattr(publishing, "locate_bundle", lambda name: made.root)
    monkeypatch.setattr(publishing, "read_datalist", lambda folder, section: [{}] * 60)
    return made


def test_weights_are_stored_in_half_precision_and_integers_as_they_are(workshop):
    workshop.publish()
    state = load_file(workshop.root / "models" / f"{CARD}.safetensors")
    assert torch.equal(state["weight"], torch.tensor([1.0, 0.1], dtype=torch.float16))
    assert torch.equal(state["index"], torch.tensor([70000]))


def test_the_overlay_holds_the_data_set_and_the_network_and_nothing_of_the_training(workshop):
    workshop.publish()
    overlay = yaml.safe_load((workshop.root / "models" / f"{CARD}.yaml").read_text())
    card = yaml.safe_load(locate_card(CARD).read_text())
    assert overlay["label_map"] == card["label_map"]
    assert overlay.items() >= {key: value for key, value in RECIPE.items() if key != "epochs"}.items()
    assert not {"card", "epochs"} & set(overlay)
    assert overlay["checkpoint"] == f"$@bundle_root + '/models/{CARD}.safetensors'"


def test_the_card_states_what_was_measured_and_how_it_came_about(workshop):
    text = workshop.publish()
    assert text == (workshop.root / "models" / f"{CARD}.md").read_text()
    sha256 = compute_sha256(workshop.root / "models" / f"{CARD}.safetensors")
    for fact in (
        *("60 cases, 35 steps", "random weights", "epoch 7 of 7", "10 minutes", "a machine", sha256, "0.6250"),
        *("`configs/recipes/openkbp_hn.yaml`", "which the validation cases did not choose"),
    ):
        assert fact in text


@pytest.mark.parametrize("has_record", [False, True])
def test_the_card_names_the_pretraining_its_cost_and_its_licence_where_it_is_known(workshop, tmp_path, has_record):
    report = {"source": str(tmp_path / "last.pt"), "sha256": "abc", "title": "a transformer", "licence": "MIT"}
    report["counts"] = {"matched": 126, "reshaped": 0}
    (workshop.run / "weights.json").write_text(json.dumps(report))
    if has_record:
        workshop.write_record(tmp_path, training_cases=108, steps=1080, seconds=3480.0)
    text = workshop.publish()
    made = " (108 scans, 1080 steps, seed 3, 58 minutes, a machine)" if has_record else ""
    licence = "that of the pre-training it comes from" if has_record else "MIT"
    assert f"| last.pt, SHA-256 `abc`: a transformer{made}, 126 tensors; licence: {licence} |" in text


def test_a_chosen_epoch_is_told(workshop):
    workshop.write_record(workshop.run, epochs=[{}] * 9)
    assert "chosen on the same 2 cases" in workshop.publish()


def test_weights_beyond_half_precision_are_refused(workshop):
    workshop.save({"weight": torch.tensor([1e6])})
    with pytest.raises(CheckpointError, match="weight"):
        workshop.publish()


def test_a_run_without_its_record_is_refused(workshop):
    (workshop.run / "training.json").unlink()
    with pytest.raises(MissingFileError, match=r"training\.json"):
        workshop.publish()
