# SPDX-License-Identifier: Apache-2.0
"""The bundle as people use it: configs merged, trained, killed, resumed, evaluated, exported, and fed with mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from comparisons import assert_equal_to_scale
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_net_in_out
from monai.utils import set_determinism
from processes import run_module

from tools.bundles import BUNDLES
from tools.errors import find_cause

BUNDLE = BUNDLES / "unetr_btcv"
CONFIGS = BUNDLE / "configs"
PRESETS = sorted((CONFIGS / "augmentation").glob("*.yaml"))

SMALL_NETWORK = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 3}
SMALL = {
    "labels": ["background", "ball", "shell"],
    "pixdim": [1.0, 1.0, 2.0],
    "roi_size": [16, 16, 16],
    "overlap": 0.25,
    **{f"network_def#{key}": value for key, value in SMALL_NETWORK.items()},
}
SMALL_TRAINING = {
    "epochs": 4,
    "val_interval": 2,
    "checkpoint_interval": 1,
    "num_workers": 0,
    "learning_rate": 0.001,
    "warmup_epochs": 1,
    "num_samples": 2,
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL | SMALL_TRAINING))
    return path


@pytest.fixture
def checkpoint(tmp_path: Path, small: Path) -> Path:
    set_determinism(seed=0)
    parser = ConfigParser(ConfigParser.load_config_files([str(CONFIGS / "inference.yaml"), str(small)]))
    path = tmp_path / "weights.pt"
    torch.save(parser.get_parsed_content("network_def").state_dict(), path)
    return path


def make_workflow(files: list[Path], **overrides: object) -> ConfigWorkflow:
    workflow = ConfigWorkflow(
        [str(file) for file in files], str(CONFIGS / "metadata.json"), logging_file=False, **overrides
    )
    workflow.initialize()
    return workflow


def run(files: list[Path], **overrides: object) -> None:
    workflow = make_workflow(files, **overrides)
    workflow.run()
    workflow.finalize()


def make_command(files: list[Path], *arguments: str) -> list[str]:
    return [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(list(map(str, files))), *arguments]


def finish(command: list[str], cwd: Path = BUNDLE) -> subprocess.CompletedProcess[str]:
    return run_module(command, cwd=cwd, environment={"PYTHONWARNINGS": "ignore"})


# ---- what the files say


@pytest.mark.parametrize(("name", "kind"), [("train", "train"), ("inference", "infer")])
def test_monai_finds_every_property_it_requires(name: str, kind: str, dataset, small, checkpoint, tmp_path):
    folder = dataset if kind == "train" else dataset / "imagesTr"
    overrides = {"checkpoint": str(checkpoint)} if kind == "infer" else {}
    workflow = make_workflow(
        [CONFIGS / f"{name}.yaml", small],
        workflow_type=kind,
        dataset_dir=str(folder),
        output_dir=str(tmp_path),
        **overrides,
    )
    assert workflow.check_properties() == []


def test_the_published_unetr_has_its_number_of_parameters():
    parser = ConfigParser(ConfigParser.load_config_file(str(CONFIGS / "train.yaml")))
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    assert sum(parameter.numel() for parameter in network.parameters()) == 92_802_478


# ---- training


@pytest.mark.parametrize("roi_size", [[32, 32, 32], [32, 32, 16]], ids=str)
@pytest.mark.parametrize("change", [*PRESETS, "stem", "light", "align", "fpn"], ids=lambda c: getattr(c, "stem", c))
def test_every_preset_and_every_switch_trains_a_step(change, roi_size, dataset, small, tmp_path):
    preset = [change] if isinstance(change, Path) else []
    switch = {} if preset else {f"network_def#{change}": True}
    run(
        [CONFIGS / "train.yaml", *preset, small],
        dataset_dir=str(dataset),
        output_dir=str(tmp_path / "run"),
        roi_size=roi_size,
        num_samples=1,
        epochs=1,
        **{"train#trainer#epoch_length": 1, **switch},
    )
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["steps"] == 1
    assert np.isfinite(record["epochs"][0]["loss"])
    assert 0 <= record["best"]["dice"] <= 1


def test_a_seed_reproduces_the_run(dataset, small, tmp_path):
    losses = []
    for name in ("first", "second"):
        run(
            [CONFIGS / "train.yaml", small],
            dataset_dir=str(dataset),
            output_dir=str(tmp_path / name),
            epochs=2,
            seed=7,
        )
        losses.append([e["loss"] for e in json.loads((tmp_path / name / "training.json").read_text())["epochs"]])
    assert losses[0] == losses[1]


def test_a_run_killed_in_mid_epoch_and_resumed_ends_like_an_unbroken_one(make_bundle, dataset, tmp_path):
    bundle = make_bundle("unetr_btcv", SMALL | SMALL_TRAINING)
    bundle.check_resuming("train", folder=tmp_path, dataset_dir=str(dataset), num_workers=1)


def test_two_processes_share_the_cases_and_the_first_alone_writes(make_bundle, dataset, tmp_path):
    bundle = make_bundle("unetr_btcv", SMALL | SMALL_TRAINING)
    told = "[list(@train#sampler), sum(p.grad.abs().sum().item() for p in @network.parameters() if p.grad is not None)]"
    options = {"dataset_dir": str(dataset), "output_dir": str(tmp_path / "run"), "epochs": 1}
    (first, gradient), (second, other) = bundle.run_in_processes(2, "train", "multi_gpu_train", tell=told, **options)
    assert sorted(first + second) == [0, 1, 2, 3]
    assert gradient == pytest.approx(other)
    assert len(list((tmp_path / "run").glob("events*"))) == 2  # trainer and evaluator of rank 0
    assert json.loads((tmp_path / "run" / "training.json").read_text())["best"]["epoch"] == 1
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert not any(name.startswith("module.") for name in state["model"])


def test_experiment_tracking_with_mlflow_records_the_loss(dataset, small, tmp_path):
    workflow = ConfigWorkflow(
        [str(CONFIGS / "train.yaml"), str(small)],
        str(CONFIGS / "metadata.json"),
        logging_file=False,
        tracking="mlflow",
        bundle_root=str(tmp_path),
        dataset_dir=str(dataset),
        output_dir=str(tmp_path / "run"),
        epochs=1,
    )
    workflow.initialize()
    workflow.run()
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/run/mlruns.db")
    runs = mlflow.search_runs(search_all_experiments=True)
    assert runs["metrics.train_loss"].notna().any()


# ---- inference and evaluation


@pytest.mark.numeric
def test_training_then_evaluation_then_inference(dataset, small, tmp_path):
    run([CONFIGS / "train.yaml", small], dataset_dir=str(dataset), output_dir=str(tmp_path / "run"))
    best = tmp_path / "run" / "best.pt"
    run(
        [CONFIGS / "train.yaml", CONFIGS / "evaluate.yaml", small],
        dataset_dir=str(dataset),
        output_dir=str(tmp_path / "evaluation"),
        checkpoint=str(best),
    )
    evaluation = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert evaluation["mean"] == pytest.approx(record["best"]["dice"], abs=1e-4)
    assert list(evaluation["per_case"]) == ["case_4.nii.gz", "case_5.nii.gz"]

    run(
        [CONFIGS / "inference.yaml", small],
        dataset_dir=str(dataset / "imagesTr"),
        output_dir=str(tmp_path / "segmentations"),
        checkpoint=str(best),
    )
    label = np.asanyarray(nib.load(dataset / "labelsTr" / "case_4.nii.gz").dataobj)
    image = nib.load(tmp_path / "segmentations" / "case_4_seg.nii.gz")
    segmentation = np.asanyarray(image.dataobj)
    expected = evaluation["per_case"]["case_4.nii.gz"]["ball"]
    overlap = 2 * np.sum((segmentation == 1) & (label == 1)) / (np.sum(segmentation == 1) + np.sum(label == 1))
    assert overlap == pytest.approx(expected, abs=1e-4), "evaluation and inference must be the same computation"
    assert image.get_data_dtype() == np.uint8
    assert (tmp_path / "segmentations" / "volumes.csv").is_file()


@pytest.mark.parametrize("place", ["repository", "bundle"])
def test_inference_runs_from_the_repository_and_from_the_bundle(place, dataset, small, checkpoint, tmp_path):
    cwd = BUNDLES.parent if place == "repository" else BUNDLE
    scan = dataset / "imagesTr" / "case_0.nii.gz"
    config = (CONFIGS / "inference.yaml").relative_to(cwd)
    command = make_command(
        [config, small],
        *("--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "out"), "--datalist", f"['{scan}']"),
    )
    result = finish(command, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    source, image = nib.load(scan), nib.load(tmp_path / "out" / "case_0_seg.nii.gz")
    assert image.shape == source.shape
    np.testing.assert_array_equal(image.affine, source.affine)
    assert (tmp_path / "out" / "case_0_seg.png").stat().st_size > 1000
    assert json.loads((tmp_path / "out" / "run.json").read_text())["scans"]["case_0"]["state"] == "done"


# ---- export


def test_network_takes_and_gives_what_the_metadata_say(small, tmp_path):
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    tensors = [
        *metadata["network_data_format"]["inputs"].values(),
        *metadata["network_data_format"]["outputs"].values(),
    ]
    for tensor in tensors:
        tensor["spatial_shape"] = [16, 16, 16]  # the small network; its classes stay those of the bundle
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    verify_net_in_out(
        "network_def",
        meta_file=str(tmp_path / "metadata.json"),
        config_file=str(CONFIGS / "inference.yaml"),
        roi_size=[16, 16, 16],
        **{f"network_def#{key}": value for key, value in SMALL_NETWORK.items()},
    )


@pytest.mark.numeric
def test_network_is_exported_to_torchscript(small, checkpoint, tmp_path):
    ckpt_export(
        "network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(checkpoint),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=[str(CONFIGS / "inference.yaml"), str(small)],
        input_shape=[1, 1, 16, 16, 16],
    )
    parser = ConfigParser(ConfigParser.load_config_files([str(CONFIGS / "inference.yaml"), str(small)]))
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(checkpoint, weights_only=True))
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        assert_equal_to_scale(torch.jit.load(tmp_path / "model.ts")(image), network(image))


# ---- mistakes


def remove(path: Path) -> None:
    path.unlink()


def change_label_value(path: Path) -> None:
    image = nib.load(path)
    values = np.asanyarray(image.dataobj).copy()
    values[0, 0, 0] = 9
    nib.save(nib.Nifti1Image(values, image.affine), path)


def crop_label(path: Path) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj)[:-1], image.affine), path)


@pytest.mark.parametrize(
    ("spoil", "folder", "words"),
    [
        (remove, "imagesTr", ["case_1.nii.gz", "no such file"]),
        (remove, "labelsTr", ["case_1.nii.gz", "no such file"]),
        (change_label_value, "labelsTr", ["case_1.nii.gz", "9", "0, 1, 2"]),
        (crop_label, "labelsTr", ["case_1.nii.gz", "21", "22"]),
    ],
    ids=["missing image", "missing label", "label value out of range", "image and label of different shape"],
)
@pytest.mark.parametrize("config", ["train", "evaluate"])
def test_a_bad_data_set_is_named_before_anything_is_computed(
    config, spoil, folder, words, dataset, small, checkpoint, tmp_path
):
    if config == "evaluate":
        content = json.loads((dataset / "dataset.json").read_text())
        content["validation"].append(content["training"].pop(1))
        (dataset / "dataset.json").write_text(json.dumps(content))
    spoil(dataset / folder / "case_1.nii.gz")
    files = [CONFIGS / "train.yaml", *([CONFIGS / "evaluate.yaml"] if config == "evaluate" else []), small]
    overrides = {"checkpoint": str(checkpoint)} if config == "evaluate" else {}
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it; the cause is what counts
        run(files, dataset_dir=str(dataset), output_dir=str(tmp_path / "run"), **overrides)
    cause = find_cause(caught.value)
    assert cause is not None, caught.value
    for word in words:
        assert word in str(cause)
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_checkpoint_of_another_network_is_refused(dataset, small, checkpoint, tmp_path):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run(
            [CONFIGS / "inference.yaml", small],
            dataset_dir=str(dataset / "imagesTr"),
            checkpoint=str(checkpoint),
            output_dir=str(tmp_path / "out"),
            **{"network_def#hidden_size": 48},
        )
    assert "tensors that fit" in str(find_cause(caught.value))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"overlpa": "0.25"}, ["--overlpa", "--overlap"]),
        ({"dataset_dir": "nowhere"}, ["nowhere", "no such"]),
        ({"dataset_dir": "."}, ["no .nii"]),
        ({"checkpoint": "nothing.pt"}, ["nothing.pt", "no such file"]),
    ],
    ids=["wrong override", "missing folder", "empty folder", "missing checkpoint"],
)
def test_a_mistake_on_the_command_line_ends_in_one_sentence(overrides, words, dataset, small, checkpoint, tmp_path):
    values = {
        "dataset_dir": str(dataset / "imagesTr"),
        "checkpoint": str(checkpoint),
        "output_dir": str(tmp_path / "o"),
    }
    arguments = [part for key, value in (values | overrides).items() for part in (f"--{key}", value)]
    result = finish(make_command([CONFIGS / "inference.yaml", small], *arguments), cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    sentence = result.stderr.strip().splitlines()[-1]
    assert sentence.startswith("Error: ")
    for word in words:
        assert word in result.stderr
