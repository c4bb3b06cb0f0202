# SPDX-License-Identifier: Apache-2.0
"""Training on labelled and unlabelled scans as people use it: weighted, killed and resumed, evaluated, in processes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from bundle_runs import read_epochs
from ignite.engine import Events
from monai.networks.nets import SwinUNETR

from tools.bundles import BUNDLES
from tools.handlers.checkpoints import _STATE
from tools.weights import save_checkpoint

CONFIGS = BUNDLES / "voco_finetune" / "configs"
SMALL = {
    "feature_size": 12,
    "window_size": [2, 2, 2],
    "labels": ["background", "ball", "shell"],
    "pixdim": [1.0, 1.0, 2.0],
    "roi_size": [32, 32, 64],  # the smallest one: deeper than 1 x 1 x 2 there is nothing to normalize over
    "crop_size": [32, 32, 64],
    "grid": [1, 2, 1],
    "num_crops": 1,
    "embedding_dim": 8,
    "overlap": 0.25,
    "epochs": 1,
    "val_interval": 1,
    "checkpoint_interval": 1,
    "num_workers": 0,
    "learning_rate": 0.001,
    "warmup_epochs": 1,
    "batch_size": 2,
    "num_samples": 1,
    "use_checkpoint": False,
}
OMNI = ("train", "omni")
EPSILON = 1e-5


class Interruption(BaseException):
    """Stands for the end of a process: nothing catches it."""


@pytest.fixture
def bundle(make_bundle):
    return make_bundle("voco_finetune", SMALL)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Three scans without labels and a page that is none."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(3):
        generator = np.random.default_rng(number)
        image = generator.normal(0, 60, (30, 26 + number, 20)) + np.linspace(-150, 150, 30)[:, None, None]
        nib.save(nib.Nifti1Image(image.astype(np.int16), np.diag([-1, 1, 2, 1.0])), folder / f"scan_{number}.nii.gz")
    (folder / "page.nii").write_text("<html>404</html>")
    return folder


def test_the_task_is_that_of_pretraining():
    pretrain, omni, train = (
        yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("pretrain", "omni", "train")
    )
    for key in ("variant", "crop_size", "grid", "loss_weights", "volume_size", "momentum", "fitting", "volume_crops"):
        assert omni[key] == pretrain[key]
    assert omni["unlabelled"]["geometry"] == pretrain["train"]["geometry"]
    handlers = [step["_target_"].rpartition(".")[2] for step in train["train"]["handlers"]]
    assert (handlers[0], handlers[3]) == ("EpochSeed", "TrainingCheckpoint")  # omni.yaml adds arguments to these


@pytest.mark.numeric
def test_training_then_evaluation_then_inference_with_the_plain_network(bundle, dataset, scans, tmp_path, caplog):
    folder = tmp_path / "run"
    options = {"dataset_dir": str(dataset), "output_dir": str(folder), "omni_weight": 0.5, "grid": [2, 2, 1]}
    with caplog.at_level(logging.WARNING):
        bundle.run(*OMNI, **options, unlabelled_dir=[str(scans)])
    assert "1 of 4 scans cannot be used and are skipped" in caplog.text
    (epoch,) = read_epochs(folder)
    assert epoch["loss"] == pytest.approx(epoch["loss/segmentation"] + 0.5 * epoch["loss/contrast"], rel=1e-5)
    terms = ("positive", "negative", "inter_volume", "regularization")
    assert epoch["loss/contrast"] == pytest.approx(sum(epoch[f"loss/{term}"] for term in terms), rel=1e-3)
    assert 0 <= epoch["train/retrieval"] <= 1
    assert epoch["loss/inter_volume"] > 0
    record = json.loads((folder / "training.json").read_text())
    assert (record["training_cases"], record["steps"]) == (4, 2)

    state = torch.load(folder / "best.pt", weights_only=True)
    shapes = {name: x.shape for name, x in SwinUNETR(1, 3, feature_size=12, use_v2=True).state_dict().items()}
    assert state["model"].keys() == shapes.keys()
    assert {name.partition(".")[0] for name in state["auxiliary"]} == {"student", "teacher"}

    best = {"checkpoint": str(folder / "best.pt")}
    options = {"dataset_dir": str(dataset), "output_dir": str(tmp_path / "evaluation")}
    bundle.run("train", "evaluate", **options, **best)
    evaluation = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert evaluation["mean"] == pytest.approx(epoch["dice"], abs=1e-4)
    scan = dataset / "imagesTr" / "case_4.nii.gz"
    bundle.run("inference", datalist=[str(scan)], output_dir=str(tmp_path / "segmentations"), **best)
    image = nib.load(tmp_path / "segmentations" / "case_4_seg.nii.gz")
    label = np.asanyarray(nib.load(dataset / "labelsTr" / "case_4.nii.gz").dataobj)
    segmentation = np.asanyarray(image.dataobj)
    np.testing.assert_array_equal(image.affine, nib.load(scan).affine)
    overlap = 2 * np.sum((segmentation == 1) & (label == 1)) / (np.sum(segmentation == 1) + np.sum(label == 1))
    assert overlap == pytest.approx(evaluation["per_case"]["case_4.nii.gz"]["ball"], abs=1e-4)


@pytest.mark.costs(large_files=4)
def test_without_weight_it_is_the_training_of_train(bundle, dataset, scans, tmp_path, caplog):
    """To the last bit: volumes take no random number from the labelled scans, and 0 times a gradient adds nothing."""
    options = {"dataset_dir": str(dataset), "val_interval": 5}
    bundle.run("train", **options, output_dir=str(tmp_path / "train"))
    options |= {"unlabelled_dir": str(scans), "unlabelled_batch_size": 1, "omni_weight": 0}
    with caplog.at_level(logging.WARNING):
        bundle.run(*OMNI, **options, output_dir=str(tmp_path / "omni"))
    assert caplog.text.count("the inter-volume term is off: it needs two volumes in a batch") == 1
    train, omni = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("train", "omni"))
    assert all(torch.equal(omni["model"][name], tensor) for name, tensor in train["model"].items())
    assert read_epochs(tmp_path / "omni")[0]["loss"] == read_epochs(tmp_path / "train")[0]["loss"]


@pytest.mark.exhaustive  # as of the other trainings in each commit: test_training.py
@pytest.mark.costs(large_files=4, trainings=3)
def test_a_run_killed_in_mid_epoch_and_resumed_ends_like_an_unbroken_one(bundle, dataset, scans, tmp_path):
    pieces = tmp_path / "pieces.yaml"  # random ones: the volumes too must be drawn as before
    steps = [{"_target_": "SpatialPadd", "spatial_size": "@volume_size"}]
    steps.append({"_target_": "RandSpatialCropd", "roi_size": "@volume_size", "random_size": False})
    fitting = [{**step, "keys": "image"} for step in steps]
    pieces.write_text(yaml.safe_dump({"fitting": fitting, "resampling": []}))
    options = {"dataset_dir": str(dataset), "unlabelled_dir": str(scans), "epochs": 2, "val_interval": 5}
    options |= {"training_share": 0.25, "batch_size": 1, "unlabelled_batch_size": 1}  # an epoch is one step
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    bundle.run(*OMNI, pieces, output_dir=str(unbroken), **options)

    workflow = bundle.make_workflow(*OMNI, pieces, output_dir=str(broken), **options)
    trainer = workflow.parser.get_parsed_content("train#trainer")

    @trainer.on(Events.ITERATION_COMPLETED(once=2))
    def _kill() -> None:
        raise Interruption

    with pytest.raises(Interruption):
        trainer.run()
    assert torch.load(broken / "last.pt", weights_only=True)["epoch"] == 1

    torch.rand(7)
    bundle.run(*OMNI, pieces, output_dir=str(broken), resume=True, **options)
    expected, found = (torch.load(folder / "last.pt", weights_only=True) for folder in (unbroken, broken))
    for part in ("model", "auxiliary"):
        torch.testing.assert_close(found[part], expected[part], atol=EPSILON, rtol=0)
    for resumed, wanted in zip(read_epochs(broken), read_epochs(unbroken), strict=True):
        assert resumed == pytest.approx(wanted, rel=EPSILON)


def test_a_training_without_volumes_cannot_be_resumed_with_them(bundle, dataset, scans, tmp_path):
    save_checkpoint(dict.fromkeys(_STATE, 0), tmp_path / "last.pt")
    options = {"dataset_dir": str(dataset), "output_dir": str(tmp_path), "unlabelled_dir": str(scans)}
    message = bundle.find_error(*OMNI, **options, resume=True)
    assert "found no auxiliary, wanted a checkpoint of a training run" in message


def test_scans_of_validation_are_not_among_the_volumes(bundle, dataset, scans, tmp_path):
    folders = [str(dataset / "imagesTr"), str(scans)]
    workflow = bundle.make_workflow(*OMNI, dataset_dir=str(dataset), unlabelled_dir=folders)
    names = [Path(scan["image"]).name for scan in workflow.parser.get_parsed_content("unlabelled#dataset#data")]
    assert names == [f"case_{n}.nii.gz" for n in range(4)] + [f"scan_{n}.nii.gz" for n in range(3)]


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        (None, "--unlabelled_dir: found nothing, wanted the folder of a data set; give --unlabelled_dir FOLDER."),
        ("nowhere", "nowhere: found no such folder, wanted the folder of a data set; correct --unlabelled_dir."),
        ("empty", "empty: found no .nii or .nii.gz file among 0 entries, wanted a folder of scans"),
        ("pages", "found no usable scan among 1 ("),
    ],
)
def test_what_is_wrong_with_the_volumes_is_told(folder, words, bundle, dataset, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "page.nii").write_text("<html>404</html>")
    options = {"dataset_dir": str(dataset), "output_dir": str(tmp_path / "run")}
    message = bundle.find_error(*OMNI, **options, unlabelled_dir=folder and str(tmp_path / folder))
    assert words in message
    assert "--dataset_dir" not in message


def test_a_grid_that_exceeds_the_memory_ends_in_one_sentence(bundle, dataset, scans, tmp_path):
    options = {"dataset_dir": str(dataset), "output_dir": str(tmp_path / "run"), "unlabelled_dir": str(scans)}
    message = bundle.find_error(*OMNI, **options, grid=[64, 64, 1], crop_size=[512, 512, 512])
    assert message.startswith("memory: found ")
    assert "set --crops_at_once to a few, or a smaller grid, crop_size, unlabelled_batch_size" in message
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.mark.costs(processes=2)
def test_two_processes_share_the_cases_and_the_gradient(bundle, dataset, scans, tmp_path):
    assert "find_unused_parameters" not in yaml.safe_load((CONFIGS / "multi_gpu_omni.yaml").read_text())["omni_network"]
    gradient = "sum(p.grad.abs().sum().item() for p in @omni_network_def.trainable_parameters())"
    told = f"[list(@train#sampler), {gradient}, float(@contrast.inter_volume)]"
    options = {"dataset_dir": str(dataset), "output_dir": str(tmp_path / "run"), "unlabelled_dir": str(scans)}
    options |= {"training_share": 0.5, "batch_size": 1, "unlabelled_batch_size": 1, "val_interval": 5}
    ranks = bundle.run_in_processes(2, *OMNI, "multi_gpu_train", "multi_gpu_omni", tell=told, **options)
    (first, gradient, one), (second, other, two) = ranks
    assert sorted(first + second) == [0, 1]
    assert gradient == pytest.approx(other)
    # the next volume is that of the other process; without one the term is 0, where cosines are all negative a bit less
    assert 0 not in (one, two)
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["epoch"] == 1
