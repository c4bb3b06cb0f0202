# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import gzip
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    MapLabelValued,
    MapTransform,
    Orientationd,
    SaveImaged,
    ScaleIntensityRanged,
    Spacingd,
)
from torch import nn

from tools.errors import CheckpointError, ConfigValueError, FailedScansError, MemoryLimitError, UnreadableScanError
from tools.inference import MirroringInferer, SaveProbabilitiesd, SaveSegmentationd, ScanSegmenter
from tools.reports import measure_statistics
from tools.transforms import FillNonFinited, LoadScand

LABELS = ["background", "ball", "hole", "edge"]


@pytest.fixture(scope="module")
def network():
    """An untrained network that sees all four classes in a phantom."""
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv3d(1, 6, 3, padding=1), nn.InstanceNorm3d(6), nn.ReLU(), nn.Dropout(0.3), nn.Conv3d(6, 4, 3, padding=1)
    )


@pytest.fixture
def checkpoint(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def make_preprocessing(spacing: tuple[float, ...] = (1.5, 1.5, 2.0), a_max: float = 400) -> Compose:
    return Compose(
        [
            LoadScand("image"),
            EnsureChannelFirstd("image"),
            FillNonFinited("image"),
            Orientationd("image", "RAS", labels=None),
            Spacingd("image", spacing, mode="bilinear", dtype=torch.float32),
            ScaleIntensityRanged("image", -500, a_max, 0, 1, clip=True),
        ]
    )


def make_postprocessing(preprocessing: Compose, writer: SaveImaged) -> Compose:
    invert = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False)
    return Compose([invert, AsDiscreted("pred", argmax=True), writer])


def make_inferer() -> SlidingWindowInferer:
    return SlidingWindowInferer((16, 16, 16), sw_batch_size=2, overlap=0.5, mode="gaussian")


@pytest.fixture
def make_segmenter(tmp_path, network, checkpoint):
    def make(
        *scans: Path,
        network: nn.Module = network,
        output_dir: Path = tmp_path / "out",
        preprocessing: Compose | None = None,
        inferer: SlidingWindowInferer | None = None,
        structures: list[str] | None = None,
        more: Sequence[MapTransform] = (),
        **settings,
    ) -> ScanSegmenter:
        preprocessing = preprocessing or make_preprocessing()
        writer = SaveSegmentationd("pred", output_dir, LABELS, structures=structures)
        postprocessing = make_postprocessing(preprocessing, writer)
        postprocessing = Compose([*postprocessing.transforms[:-1], *more, postprocessing.transforms[-1]])
        return ScanSegmenter(
            dataset=Dataset([{"image": str(scan)} for scan in scans], preprocessing),
            network=network,
            inferer=inferer or make_inferer(),
            postprocessing=postprocessing,
            labels=LABELS,
            output_dir=output_dir,
            **{"checkpoint": checkpoint, "preview": False, **settings},
        )

    return make


def read_report(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def run_stock_chain(scan: Path, network: nn.Module, folder: Path) -> nib.Nifti1Image:
    preprocessing = make_preprocessing()
    writer = SaveImaged("pred", output_dir=folder, output_postfix="stock", separate_folder=False, print_log=False)
    SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset([{"image": str(scan)}], preprocessing), batch_size=1),
        network=network,
        inferer=make_inferer(),
        postprocessing=make_postprocessing(preprocessing, writer),
    ).run()
    return nib.load(folder / f"{scan.name.removesuffix('.nii.gz')}_stock.nii.gz")


@pytest.mark.numeric
@pytest.mark.parametrize(
    "phantom",
    [
        {"grid": "RAS"},
        {"grid": "LPI", "dtype": np.float32},
        {"grid": "oblique", "shape": (30, 12, 26)},
        {"grid": "oblique", "shape": (30, 12, 26, 1), "codes": (0, 1)},
        {"grid": "LPI", "slope_inter": (0.5, -100), "units": ("mm", "msec")},
    ],
    ids=["RAS", "LPI", "oblique", "oblique with a fourth axis", "LPI with slope"],
)
def test_the_result_is_that_of_the_stock_chain_voxel_for_voxel(
    write_phantom, make_segmenter, network, tmp_path, phantom
):
    path = write_phantom(**phantom)
    make_segmenter(path).run()
    scan, result = nib.load(path), nib.load(tmp_path / "out" / "scan_seg.nii.gz")
    stock = run_stock_chain(path, network, tmp_path / "stock")

    labels = np.asanyarray(result.dataobj)
    assert np.array_equal(labels.reshape(labels.shape[:3]), np.asanyarray(stock.dataobj))
    counts = np.bincount(labels.ravel(), minlength=4)
    assert np.count_nonzero(counts > 20) >= 3, f"a phantom that tells nothing: {counts}"

    assert result.shape == scan.shape
    assert np.array_equal(result.affine, scan.affine)
    for field in ("qform_code", "sform_code", "xyzt_units"):
        assert result.header[field] == scan.header[field], field
    assert result.get_data_dtype() == np.uint8


def test_the_report_has_versions_weights_settings_and_the_seconds_of_each_stage(
    write_phantom, make_segmenter, tmp_path
):
    segmenter = make_segmenter(write_phantom(), preview=True)
    segmenter.run()
    report = read_report(tmp_path / "out")
    assert report["versions"]["torch"] == torch.__version__
    assert len(report["weights"]["sha256"]) == 64
    assert report["labels"] == {"0": "background", "1": "ball", "2": "hole", "3": "edge"}
    assert report["fingerprint"] == segmenter.fingerprint
    scan = report["scans"]["scan"]
    assert (scan["state"], scan["segmentation"]) == ("done", "scan_seg.nii.gz")
    assert list(scan["seconds"]) == ["read", "prepare", "network", "labels", "write", "report"]
    assert scan["peak_memory_gb"] > 0.1  # torch alone needs more

    voxels = np.asanyarray(nib.load(tmp_path / "out" / "scan_seg.nii.gz").dataobj)
    assert scan["volumes_ml"]["ball"] == pytest.approx((voxels == 1).sum() * 1.5 * 1.5 * 2 / 1000, abs=1e-3)
    with (tmp_path / "out" / "volumes.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row == {"scan": "scan", **{f"{name}_ml": f"{ml:.3f}" for name, ml in scan["volumes_ml"].items()}}
    names = ["run.json", "scan_seg.nii.gz", "scan_seg.png", "volumes.csv"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_a_bad_scan_does_not_cost_the_others_theirs(write_phantom, make_segmenter, tmp_path, caplog):
    scans = [write_phantom(f"in/{name}.nii.gz", seed=seed) for seed, name in enumerate("abc")]
    truncate(scans[1])
    with pytest.raises(FailedScansError) as caught:
        make_segmenter(*scans).run()
    assert "found 1 of 3 scans that failed, first b (" in str(caught.value)
    report = read_report(tmp_path / "out")
    assert [report["scans"][name]["state"] for name in "abc"] == ["done", "failed", "done"]
    assert "the file ends early" in report["scans"]["b"]["reason"]
    assert str(scans[1]) in report["scans"]["b"]["reason"]
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["a_seg.nii.gz", "c_seg.nii.gz", "run.json", "volumes.csv"]
    assert "Traceback" not in caplog.text
    assert len((tmp_path / "out" / "volumes.csv").read_text().splitlines()) == 3


def test_a_defect_is_logged_with_its_traceback_and_the_others_are_done(write_phantom, make_segmenter, tmp_path, caplog):
    class Broken(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls == 1:
                raise AssertionError
            return self.inner(image)

    scans = [write_phantom(f"in/{name}.nii.gz") for name in "ab"]
    segmenter = make_segmenter(*scans)
    segmenter.network = Broken(segmenter.network)
    with pytest.raises(FailedScansError, match="first a \\(AssertionError\\)"):
        segmenter.run()
    assert "Traceback" in caplog.text
    assert read_report(tmp_path / "out")["scans"]["b"]["state"] == "done"


def test_mending_the_bad_scan_and_running_again_does_only_that_one(write_phantom, make_segmenter, tmp_path):
    scans = [write_phantom(f"in/{name}.nii.gz") for name in "ab"]
    truncate(scans[0])
    with pytest.raises(FailedScansError):
        make_segmenter(*scans).run()
    before = (tmp_path / "out" / "b_seg.nii.gz").stat().st_mtime_ns
    write_phantom("in/a.nii.gz")
    make_segmenter(*scans).run()
    assert (tmp_path / "out" / "a_seg.nii.gz").is_file()
    assert (tmp_path / "out" / "b_seg.nii.gz").stat().st_mtime_ns == before
    assert {scan["state"] for scan in read_report(tmp_path / "out")["scans"].values()} == {"done"}


def test_a_single_bad_scan_raises_its_own_error(write_phantom, make_segmenter, tmp_path):
    path = truncate(write_phantom())
    with pytest.raises(UnreadableScanError, match="the file ends early"):
        make_segmenter(path).run()
    assert read_report(tmp_path / "out")["scans"]["scan"]["state"] == "failed"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (b"<html></html>", "no gzip data"),
        (gzip.compress(b"<html></html>" * 99), "no NIfTI header"),
    ],
    ids=["empty", "a web page", "a packed web page"],
)
def test_a_file_that_is_no_scan_is_refused_before_it_is_read(tmp_path, make_segmenter, content, reason):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    with pytest.raises(UnreadableScanError, match=reason):
        make_segmenter(path).run()


def test_a_series_of_volumes_is_refused_though_it_can_be_read(write_phantom, make_segmenter, tmp_path):
    image = nib.load(write_phantom())
    nib.save(nib.Nifti1Image(np.stack([image.get_fdata()] * 3, -1), image.affine), tmp_path / "scan.nii.gz")
    with pytest.raises(UnreadableScanError, match="found 3 volumes in 4D data"):
        make_segmenter(tmp_path / "scan.nii.gz").run()


def test_a_scan_that_is_gone_is_told_by_name(write_phantom, make_segmenter, tmp_path):
    scan = write_phantom("in/there.nii.gz")
    with pytest.raises(FailedScansError, match="first gone"):
        make_segmenter(tmp_path / "in" / "gone.nii.gz", scan).run()
    assert (tmp_path / "out" / "there_seg.nii.gz").is_file()


def test_a_name_that_is_no_utf8_is_segmented_and_escaped_in_the_reports(write_phantom, make_segmenter, tmp_path):
    name = os.fsdecode(b"\xfc")
    scans = [write_phantom(f"in/{stem}.nii.gz") for stem in ("a", name, "z")]
    make_segmenter(*scans, preview=True).run()
    assert {scan["state"] for scan in read_report(tmp_path / "out")["scans"].values()} == {"done"}
    assert list(read_report(tmp_path / "out")["scans"]) == ["a", name, "z"]
    assert r'"\udcfc"' in (tmp_path / "out" / "run.json").read_text(encoding="utf-8")
    assert (tmp_path / "out" / f"{name}_seg.png").is_file()
    assert (tmp_path / "out" / "volumes.csv").read_text().splitlines()[2].startswith("\\udcfc,")


def test_a_scan_whose_report_fails_leaves_no_segmentation(write_phantom, make_segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr("tools.inference.segmenter.write_preview", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_segmenter(write_phantom(), preview=True).run()
    assert not list((tmp_path / "out").glob("*_seg*"))


def test_one_value_everywhere_is_refused(write_phantom, make_segmenter, tmp_path):
    image = nib.load(write_phantom())
    nib.save(nib.Nifti1Image(np.full(image.shape, 7, np.int16), image.affine), tmp_path / "scan.nii.gz")
    with pytest.raises(UnreadableScanError, match="the value 7 in every voxel"):
        make_segmenter(tmp_path / "scan.nii.gz").run()


def test_a_grid_that_memory_does_not_hold_is_refused_before_it_is_made(write_phantom, make_segmenter, tmp_path):
    image = nib.load(write_phantom())
    affine = image.affine @ np.diag([1e6, 1, 1, 1])  # 36,000 km to the right
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), affine), tmp_path / "scan.nii.gz")
    with pytest.raises(MemoryLimitError, match=r"million voxels at the spacing of the model.*correct the spacing"):
        make_segmenter(tmp_path / "scan.nii.gz").run()


@pytest.mark.parametrize("factor", [0.02, 50.0])
def test_voxels_far_from_those_of_the_model_are_refused(factor, write_phantom, make_segmenter, tmp_path):
    image = nib.load(write_phantom())
    affine = image.affine @ np.diag([factor, factor, factor, 1])
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), affine), tmp_path / "scan.nii.gz")
    with pytest.raises(UnreadableScanError, match="of the model; correct the units"):
        make_segmenter(tmp_path / "scan.nii.gz").run()


def test_intensities_without_negative_values_are_told_where_the_model_knows_hounsfield_units(
    write_phantom, make_segmenter, tmp_path, caplog
):
    image = nib.load(write_phantom())
    shifted = np.asanyarray(image.dataobj) + 1024
    nib.save(nib.Nifti1Image(shifted, image.affine), tmp_path / "scan.nii.gz")
    make_segmenter(tmp_path / "scan.nii.gz").run()
    assert "are no Hounsfield units, in which fat is at -100 and air at -1000" in caplog.text
    caplog.clear()
    make_segmenter(write_phantom("sound.nii.gz"), output_dir=tmp_path / "other").run()
    assert "Hounsfield" not in caplog.text


def test_a_scan_without_any_number_is_refused(write_phantom, make_segmenter, tmp_path):
    image = nib.load(write_phantom(dtype=np.float32))
    nib.save(nib.Nifti1Image(np.full(image.shape, np.nan, np.float32), image.affine), tmp_path / "scan.nii.gz")
    with pytest.raises(UnreadableScanError, match="NaN"):
        make_segmenter(tmp_path / "scan.nii.gz").run()
    assert "NaN" in read_report(tmp_path / "out")["scans"]["scan"]["reason"]


@pytest.fixture
def finished(write_phantom, make_segmenter, tmp_path):
    """Two scans that are done, and a function that tells which files were written since."""
    scans = [write_phantom(f"in/{name}.nii.gz", seed=seed) for seed, name in enumerate("ab")]
    make_segmenter(*scans).run()
    results = [tmp_path / "out" / f"{name}_seg.nii.gz" for name in "ab"]
    times = [path.stat().st_mtime_ns for path in results]

    def list_rewritten() -> list[str]:
        return [path.name[0] for path, time in zip(results, times, strict=True) if path.stat().st_mtime_ns != time]

    return scans, list_rewritten


def test_what_is_done_is_skipped(finished, make_segmenter, caplog):
    scans, list_rewritten = finished
    with caplog.at_level(logging.INFO):
        make_segmenter(*scans).run()
    assert list_rewritten() == []
    assert caplog.text.count("done already, skipped") == 2
    assert "2 of 2 scans segmented" in caplog.text


def test_overwrite_segments_again(finished, make_segmenter):
    scans, list_rewritten = finished
    make_segmenter(*scans, overwrite=True).run()
    assert list_rewritten() == ["a", "b"]


def test_other_weights_segment_again(finished, make_segmenter, checkpoint):
    scans, list_rewritten = finished
    state = torch.load(checkpoint, weights_only=True)
    state["0.weight"] += 1
    torch.save(state, checkpoint)
    make_segmenter(*scans).run()
    assert list_rewritten() == ["a", "b"]


WINDOWS = {"roi_size": (16, 16, 16), "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}


@pytest.mark.parametrize(
    "change",
    [
        lambda: {"preprocessing": make_preprocessing(spacing=(1.5, 1.5, 2.5))},
        lambda: {"preprocessing": make_preprocessing(a_max=300)},
        lambda: {"inferer": SlidingWindowInferer(**WINDOWS | {"overlap": 0.25})},
        lambda: {"inferer": SlidingWindowInferer(**WINDOWS | {"mode": "constant"})},
        lambda: {"inferer": SlidingWindowInferer(**WINDOWS | {"roi_size": (16, 16, 24)})},
        lambda: {"inferer": MirroringInferer(SlidingWindowInferer(**WINDOWS), [0])},
        lambda: {"more": [MapLabelValued("pred", [2], [0])]},
        lambda: {"structures": ["ball"]},
        lambda: {"amp": True},
    ],
    ids=["spacing", "intensity", "overlap", "mode", "window", "mirroring", "further step", "structures", "amp"],
)
def test_what_shapes_the_result_segments_again(finished, make_segmenter, change):
    scans, list_rewritten = finished
    make_segmenter(*scans, **change()).run()
    assert list_rewritten() == ["a", "b"]


@pytest.mark.parametrize(
    "change",
    [
        lambda: {"inferer": SlidingWindowInferer(**WINDOWS | {"sw_batch_size": 1, "progress": True})},
        lambda: {"inferer": SlidingWindowInferer(**WINDOWS, sw_device="cpu", device="cpu")},
        lambda: {"device": torch.device("cpu")},
        lambda: {"preview": True},
        lambda: {"statistics": True},
    ],
    ids=["batch", "devices of windows", "device", "preview", "statistics"],
)
def test_what_shapes_nothing_redoes_nothing(finished, make_segmenter, change, tmp_path):
    scans, list_rewritten = finished
    segmenter = make_segmenter(*scans, **change())
    segmenter.run()
    assert list_rewritten() == []
    # what is asked for beside the segmentation is made from it
    assert all((tmp_path / "out" / f"{name}_seg.png").is_file() == segmenter.preview for name in "ab")
    entries = read_report(tmp_path / "out")["scans"].values()
    assert all(("statistics" in entry) == segmenter.statistics for entry in entries)
    if segmenter.statistics:
        numbers = json.loads((tmp_path / "out" / "statistics.json").read_text())
        assert numbers["a"] == measure_statistics(scans[0], tmp_path / "out" / "a_seg.nii.gz", segmenter.writer.names)


def test_probabilities_that_are_asked_for_later_are_made(finished, make_segmenter, tmp_path):
    scans, list_rewritten = finished
    preprocessing = make_preprocessing()
    steps = make_postprocessing(preprocessing, SaveSegmentationd("pred", tmp_path / "out", LABELS)).transforms
    settings = {"labels": LABELS, "output_dir": tmp_path / "out", "checkpoint": tmp_path / "weights.pt"}
    writer = SaveProbabilitiesd("pred", tmp_path / "out", LABELS)
    segmenter = make_segmenter(*scans)
    again = ScanSegmenter(
        dataset=Dataset([{"image": str(scan)} for scan in scans], preprocessing),
        network=segmenter.network,
        inferer=make_inferer(),
        postprocessing=Compose([steps[0], writer, *steps[1:]]),
        preview=False,
        **settings,
    )
    again.run()
    assert all((tmp_path / "out" / f"{name}_prob.nii.gz").is_file() for name in "ab")
    again.run()
    assert list_rewritten() == ["a", "b"]
    make_segmenter(*scans).run()  # without them: what is there is enough
    assert again.fingerprint == segmenter.fingerprint


def test_a_scan_that_changed_is_segmented_again(finished, make_segmenter, write_phantom):
    scans, list_rewritten = finished
    write_phantom("in/b.nii.gz", seed=5)
    make_segmenter(*scans).run()
    assert list_rewritten() == ["b"]


def test_a_scan_that_was_touched_or_moved_is_not(finished, make_segmenter, tmp_path):
    scans, list_rewritten = finished
    os.utime(scans[0])
    (tmp_path / "moved").mkdir()
    moved = scans[1].rename(tmp_path / "moved" / "b.nii.gz")
    make_segmenter(scans[0], moved).run()
    assert list_rewritten() == []


def test_another_scan_of_the_same_name_does_not_replace_a_result(finished, make_segmenter, write_phantom, tmp_path):
    _, list_rewritten = finished
    other = write_phantom("site_b/a.nii.gz", seed=7)
    for change in ({}, {"amp": True}):  # with other settings as well
        with pytest.raises(
            ConfigValueError, match=r"--output_dir: found .*a_seg\.nii\.gz, the result of .*in/a\.nii\.gz"
        ):
            make_segmenter(write_phantom("site_b/c.nii.gz"), other, **change).run()
    assert list_rewritten() == []
    assert not (tmp_path / "out" / "c_seg.nii.gz").exists()
    make_segmenter(other, overwrite=True).run()
    assert list_rewritten() == ["a"]


def test_a_result_that_was_removed_is_made_again(finished, make_segmenter, tmp_path):
    scans, list_rewritten = finished
    (tmp_path / "out" / "a_seg.nii.gz").unlink()
    make_segmenter(*scans).run()
    assert list_rewritten() == ["a"]


def test_the_report_keeps_the_scans_of_earlier_runs(finished, make_segmenter, write_phantom, tmp_path):
    make_segmenter(write_phantom("in/c.nii.gz")).run()
    assert list(read_report(tmp_path / "out")["scans"]) == ["a", "b", "c"]


@pytest.mark.parametrize("content", ["{", "[1, 2]", "{}", '{"weights": 3}', '{"scans": []}', "\xff"])
def test_a_foreign_report_is_replaced(finished, make_segmenter, tmp_path, caplog, content):
    scans, list_rewritten = finished
    (tmp_path / "out" / "run.json").write_bytes(content.encode("latin-1"))
    make_segmenter(*scans).run()
    assert list_rewritten() == ["a", "b"]
    assert "is not a report of an earlier run" in caplog.text


def test_a_write_that_fails_leaves_no_file(write_phantom, make_segmenter, tmp_path, monkeypatch):
    scans = [write_phantom(f"in/{name}.nii.gz") for name in "ab"]
    save, calls = nib.save, []

    def fail_once(image: nib.Nifti1Image, path: Path) -> None:
        calls.append(path)
        save(image, path)
        if len(calls) == 1:
            truncate(path)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", fail_once)
    with pytest.raises(FailedScansError, match=r"first a \(OSError: \[Errno 28\] No space left on device\)"):
        make_segmenter(*scans).run()
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["b_seg.nii.gz", "run.json", "volumes.csv"]


def test_weights_that_give_no_numbers_are_refused(write_phantom, make_segmenter, network, tmp_path):
    class Diverged(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return network(image) * math.nan

    with pytest.raises(CheckpointError, match=r"weights\.pt: found logits that are not finite for scan\.nii\.gz"):
        make_segmenter(write_phantom(), network=Diverged()).run()
    assert not (tmp_path / "out" / "scan_seg.nii.gz").exists()


def test_scans_of_the_same_name_are_both_written(write_phantom, make_segmenter, tmp_path):
    scans = [write_phantom(f"{folder}/ct.nii.gz", seed=seed) for seed, folder in enumerate("ab")]
    make_segmenter(*scans).run()
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a_ct_seg.nii.gz", "b_ct_seg.nii.gz"]
    first, second = (np.asanyarray(nib.load(path).dataobj) for path in sorted((tmp_path / "out").glob("*.nii.gz")))
    assert not np.array_equal(first, second)


def test_a_result_never_replaces_a_scan(write_phantom, make_segmenter, tmp_path):
    scans = [write_phantom("in/x.nii.gz"), write_phantom("in/x_seg.nii.gz")]
    before = scans[1].read_bytes()
    with pytest.raises(ConfigValueError, match=r"--output_dir: found .*x_seg\.nii\.gz, both a scan"):
        make_segmenter(*scans, output_dir=tmp_path / "in").run()
    assert scans[1].read_bytes() == before


def test_the_home_folder_in_the_path_of_the_weights_is_understood(write_phantom, make_segmenter, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_segmenter(write_phantom(), checkpoint="~/weights.pt").run()
    assert read_report(tmp_path / "out")["weights"]["file"] == str(tmp_path / "weights.pt")


@pytest.mark.parametrize("steps", [[], [SaveImaged("pred")]])
def test_postprocessing_without_our_writer_is_refused(make_segmenter, checkpoint, network, tmp_path, steps):
    with pytest.raises(ConfigValueError, match="SaveSegmentationd"):
        ScanSegmenter(
            Dataset([], make_preprocessing()), network, make_inferer(), Compose(steps), LABELS, tmp_path, checkpoint
        )
