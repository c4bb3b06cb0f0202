# SPDX-License-Identifier: Apache-2.0
"""A training's life in every bundle: what goes in, what is killed and resumed, what comes out, and what is refused."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import read_epochs
from click.testing import CliRunner
from processes import explain, run_module
from products import sample
from table import TRAININGS

from tools.__main__ import tools
from tools.bundles import BUNDLES
from tools.errors import find_cause
from tools.labelling.models import place_bundles

# what all bundles share of a training's life: of two of them in each commit
sampled = pytest.mark.parametrize("trained", sample(TRAININGS, "unetr_btcv", "swin_unetr_ssl"), indirect=True)


@pytest.mark.parametrize("kind", ["train", "infer"])
def test_monai_finds_every_property_it_requires(kind, trained, tmp_path):
    name, folder = {"train": ("train", trained.dataset), "infer": ("inference", trained.dataset / "imagesTr")}[kind]
    options = {"checkpoint": str(trained.folder / "best.pt")} if kind == "infer" else {}
    options |= {"workflow_type": kind, "dataset_dir": str(folder), "output_dir": str(tmp_path)}
    assert trained.bundle.make_workflow(name, **options).check_properties() == []


def test_a_run_leaves_its_record_its_curve_and_both_checkpoints(trained):
    record = trained.record
    assert (record["training_cases"], record["best"]["epoch"], len(record["epochs"])) == (4, 2, 2)
    assert all(np.isfinite(epoch["loss"]) for epoch in record["epochs"])
    assert ["dice" in epoch for epoch in record["epochs"]] == [False, True]
    assert 0 <= record["best"]["dice"] <= 1
    names = {"best.pt", "last.pt", "training.json", "learning_curve.png", "model.yaml"}
    assert names <= {path.name for path in trained.folder.iterdir()}


@pytest.mark.numeric
@pytest.mark.costs(processes=2)
@pytest.mark.usefixtures("commands_in_forks")
def test_the_folder_of_a_training_is_its_model_for_evaluation_and_inference(trained, tmp_path):
    model = ["-m", str(trained.folder)]  # and no key of the training typed again
    done = CliRunner().invoke(tools, ["evaluate", str(trained.dataset), *model, "-o", str(tmp_path / "evaluation")])
    assert done.exit_code == 0, done.output
    evaluation = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert evaluation["mean"] == pytest.approx(trained.record["best"]["dice"], abs=1e-4)
    assert list(evaluation["per_case"]) == ["case_4.nii.gz", "case_5.nii.gz"]

    scan = trained.dataset / "imagesTr" / "case_4.nii.gz"
    done = CliRunner().invoke(tools, ["segment", "-i", str(scan), "-o", str(tmp_path / "out"), *model])
    assert done.exit_code == 0, done.output
    image = nib.load(tmp_path / "out" / "case_4_seg.nii.gz")
    values = TRAININGS[trained.name].label_values
    assert image.get_data_dtype() == (np.uint8 if max(values) < 256 else np.uint16)
    np.testing.assert_array_equal(image.affine, nib.load(scan).affine)
    label = np.asanyarray(nib.load(trained.dataset / "labelsTr" / "case_4.nii.gz").dataobj)
    segmentation = np.asanyarray(image.dataobj)
    assert {*np.unique(segmentation)} <= {*values}
    for number, name in ((1, "Bäll, 1"), (2, "N/A")):
        found, wanted = segmentation == values[number], label == values[number]
        overlap = 2 * np.sum(found & wanted) / (np.sum(found) + np.sum(wanted))
        assert overlap == pytest.approx(evaluation["per_case"]["case_4.nii.gz"][name], abs=1e-4)
    assert {"case_4_seg.png", "volumes.csv", "run.json"} <= {path.name for path in (tmp_path / "out").iterdir()}


@sampled
@pytest.mark.numeric
@pytest.mark.costs(processes=2, exports=2, large_files=6)
@pytest.mark.usefixtures("commands_in_forks")
def test_the_folder_of_a_training_is_exported_and_served_as_it_is(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    scan = trained.dataset / "imagesTr" / "case_4.nii.gz"
    runner = CliRunner()
    done = runner.invoke(tools, ["export", str(trained.folder), "--out", str(tmp_path / "exports")])
    assert done.exit_code == 0, done.output
    (archive,) = (tmp_path / "exports").glob("*.zip")
    found = []
    for number, model in enumerate((trained.folder, archive)):
        done = runner.invoke(tools, ["segment", str(scan), "-o", str(tmp_path / str(number)), "-m", str(model)])
        assert done.exit_code == 0, done.output
        found.append(np.asanyarray(nib.load(tmp_path / str(number) / "case_4_seg.nii.gz").dataobj))
    np.testing.assert_array_equal(*found)
    (name,) = place_bundles([str(trained.folder)], tmp_path / "app")
    config = json.loads((tmp_path / "app" / "model" / name / "configs" / "inference.json").read_text())
    assert config["labels"] == list(TRAININGS[trained.name].small["labels"])
    assert str(trained.folder) not in json.dumps(config)


@pytest.mark.parametrize("trained", sample(TRAININGS, "unetr_btcv"), indirect=True)
@pytest.mark.costs(processes=8)
@pytest.mark.parametrize("changes", [{"num_workers": 2, "cache_rate": 0.0}], ids=str)
def test_loader_workers_and_caches_change_no_loss(trained, changes, tmp_path):
    trained.bundle.run("train", dataset_dir=str(trained.dataset), output_dir=str(tmp_path / "run"), **changes)
    found, wanted = ([epoch["loss"] for epoch in read_epochs(folder)] for folder in (tmp_path / "run", trained.folder))
    assert found == pytest.approx(wanted, rel=1e-6)


@sampled
@pytest.mark.costs(processes=1)
def test_a_run_killed_in_mid_epoch_and_resumed_ends_like_an_unbroken_one(trained, tmp_path):
    options = {"dataset_dir": str(trained.dataset), "folder": tmp_path / "run"}
    trained.bundle.check_resuming("train", unbroken=trained.folder, **options)


@sampled
@pytest.mark.costs(processes=2)
def test_two_processes_share_the_cases_and_the_first_alone_writes(trained, tmp_path):
    gradient = "sum(p.grad.abs().sum().item() for p in @network.parameters() if p.grad is not None)"
    folder, start = tmp_path / "run", trained.folder / "last.pt"
    options = {"dataset_dir": str(trained.dataset), "output_dir": str(folder), "epochs": 1, "pretrained": str(start)}
    told = f"[list(@train#sampler), {gradient}, @train#record._losses]"
    found = trained.bundle.run_in_processes(2, "train", "multi_gpu_train", tell=told, **options)
    (first, one, losses), (second, other, other_losses) = found
    assert sorted(first + second) == [0, 1, 2, 3]
    assert one == pytest.approx(other)
    (epoch,) = json.loads((folder / "training.json").read_text())["epochs"]
    assert epoch["loss"] == pytest.approx(statistics.mean(losses + other_losses))
    assert losses != other_losses
    assert len(list(folder.glob("events*"))) == 2  # trainer and evaluator of rank 0
    assert json.loads((folder / "training.json").read_text())["best"]["epoch"] == 1
    assert json.loads((folder / "weights.json").read_text())["accepted"]
    states = [torch.load(path, weights_only=True)["model"] for path in (folder / "last.pt", start)]
    assert states[0].keys() == states[1].keys()


@sampled
@pytest.mark.costs(processes=2)
def test_a_run_of_one_process_goes_on_in_two_by_whole_epochs(trained, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(trained.folder / "last.pt", folder)
    before = torch.load(folder / "last.pt", weights_only=True)
    options = {"dataset_dir": str(trained.dataset), "output_dir": str(folder), "epochs": before["epoch"] + 1}
    told = "[@train#trainer.state.epoch_length, @train#trainer.state.iteration]"
    ((length, steps), other) = trained.bundle.run_in_processes(
        2, "train", "multi_gpu_train", tell=told, resume=True, **options
    )
    assert other == [length, steps]
    assert steps == (before["epoch"] + 1) * length
    record = json.loads((folder / "training.json").read_text())
    assert [epoch["epoch"] for epoch in record["epochs"]] == list(range(1, before["epoch"] + 2))
    assert record["training_cases"] == 4
    assert record["steps"] == before["steps"] + length


# ---- mistakes


def remove(path: Path) -> None:
    path.unlink()


def change_value(path: Path) -> None:
    image = nib.load(path)
    values = np.asanyarray(image.dataobj).copy()
    values[0, 0, 0] = 9
    nib.save(nib.Nifti1Image(values, image.affine), path)


def crop(path: Path) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj)[:-1], image.affine), path)


FAULTS = {
    "missing image": (remove, "imagesTr", ["no such file"]),
    "missing label": (remove, "labelsTr", ["no such file"]),
    "label value out of range": (change_value, "labelsTr", ["9", "0, 1, 2"]),
    "image and label of different shape": (crop, "labelsTr", ["21", "22"]),
}
# every bundle with every fault, in training or in evaluation
PAIRS = [
    (name, fault, ("train", "evaluate")[(row + column) % 2])
    for row, name in enumerate(TRAININGS)
    for column, fault in enumerate(FAULTS)
]


@pytest.mark.parametrize(("name", "fault", "config"), PAIRS)
def test_a_bad_data_set_is_named_before_anything_is_computed(name, fault, config, make_bundle, dataset, tmp_path):
    spoil, folder, words = FAULTS[fault]
    bundle = make_bundle(name, {key: value for key, value in TRAININGS[name].small.items() if key != "label_map"})
    if config == "evaluate":
        content = json.loads((dataset / "dataset.json").read_text())
        content["validation"].append(content["training"].pop(1))
        (dataset / "dataset.json").write_text(json.dumps(content))
        torch.save(bundle.parse("inference").get_parsed_content("network_def").state_dict(), tmp_path / "weights.pt")
    spoil(dataset / folder / "case_1.nii.gz")
    configs = {"train": ("train",), "evaluate": ("train", "evaluate")}[config]
    options = {"checkpoint": str(tmp_path / "weights.pt")} if config == "evaluate" else {}
    options |= {"patch_merging": "corrected"} if "swin" in name or "voco" in name else {}
    sentence = bundle.find_error(*configs, dataset_dir=str(dataset), output_dir=str(tmp_path / "run"), **options)
    assert all(word in sentence for word in ("case_1.nii.gz", *words)), sentence
    assert not list(tmp_path.glob("run/*.pt"))


def test_a_checkpoint_of_another_network_is_refused(trained, tmp_path):
    options = {"dataset_dir": str(trained.dataset / "imagesTr"), "checkpoint": str(trained.folder / "best.pt")}
    options |= {"output_dir": str(tmp_path / "out"), **TRAININGS[trained.name].wide}
    assert "tensors that fit" in trained.bundle.find_error("inference", **options)
    assert not (tmp_path / "out").exists()


MISTAKES = [
    ({"overlpa": "0.25"}, ["--overlpa", "--overlap"]),
    ({"dataset_dir": "nowhere"}, ["nowhere", "no such"]),
    ({"dataset_dir": "."}, ["no .nii"]),
    ({"checkpoint": "nothing.pt"}, ["nothing.pt", "no such file"]),
]


@pytest.mark.costs(processes=1)
@pytest.mark.parametrize("trained", ["unetr_btcv"], indirect=True)
@pytest.mark.parametrize(("overrides", "words"), MISTAKES)
def test_a_mistake_on_the_command_line_ends_in_one_sentence(overrides, words, trained, tmp_path):
    options = {"dataset_dir": trained.dataset / "imagesTr", "checkpoint": trained.folder / "best.pt"}
    options |= {"output_dir": tmp_path / "out"}
    command = trained.bundle.make_command("inference", **(options | overrides))
    done = run_module(command, cwd=tmp_path, environment={"PYTHONWARNINGS": "ignore"})
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("Error: ")
    assert all(word in sentence for word in words), sentence


@pytest.mark.costs(processes=1)
@pytest.mark.parametrize("trained", ["unetr_btcv"], indirect=True)
@pytest.mark.parametrize("place", ["repository", "bundle"])
def test_inference_runs_from_the_repository_and_from_the_bundle(place, trained, tmp_path):
    cwd = BUNDLES.parent if place == "repository" else trained.bundle.root
    scan = trained.dataset / "imagesTr" / "case_0.nii.gz"
    files = [str((trained.bundle.root / "configs" / "inference.yaml").relative_to(cwd)), str(trained.bundle.small)]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files)]
    command += ["--checkpoint", trained.folder / "best.pt", "--output_dir", tmp_path, "--datalist", f"['{scan}']"]
    done = run_module(command, cwd=cwd, environment={"PYTHONWARNINGS": "ignore"})
    assert done.returncode == 0, explain(done)
    source, image = nib.load(scan), nib.load(tmp_path / "case_0_seg.nii.gz")
    assert image.shape == source.shape
    np.testing.assert_array_equal(image.affine, source.affine)
    assert (tmp_path / "case_0_seg.png").stat().st_size > 1000
    assert json.loads((tmp_path / "run.json").read_text())["scans"]["case_0"]["state"] == "done"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"overlpa": 0.9},
            "overlpa: found a key that nothing reads, wanted a key of the config; did you mean overlap.",
        ),
        ({"overlap": 1.5}, "overlap: found 1.5, wanted a number from 0 to less than 1"),
        ({"dataset_dir": "/nowhere"}, "/nowhere: found no such file or folder"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_from_python_a_mistake_is_the_sentence_of_the_command_line(overrides, words, tmp_path):
    """An exception that nobody handles ends the program with it, see tests/test_errors.py."""
    root = BUNDLES / "unetr_btcv"
    values = {"bundle_root": str(root), "output_dir": str(tmp_path / "out"), "dataset_dir": str(tmp_path)} | overrides
    weights = root / "models" / "msd04_hippocampus.yaml"
    files = [str(root / "configs" / "inference.yaml"), str(weights)]
    with pytest.raises(RuntimeError) as caught:
        monai.bundle.run(config_file=files, logging_file=False, **values)  # that of the bundle would stay in force
    assert str(find_cause(caught.value)).startswith(words)
    assert not (tmp_path / "out").exists()
