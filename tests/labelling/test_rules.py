# SPDX-License-Identifier: Apache-2.0
"""An endpoint is called with checked values only; the real endpoints are in tests/contract."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tools.demonstration import EMBEDDED
from tools.errors import RequestError, UnreadableScanError
from tools.labelling import parameters
from tools.labelling.holdings import AbsentError, Holdings
from tools.labelling.parameters import DICOM_PATH, Call, Check, plain
from tools.labelling.rules import CLOSED, OPEN, PAGE, REPLACED, Rule, confine
from tools.labelling.values import flag, name

SCAN = next((EMBEDDED / "msd04_hippocampus" / "imagesTr").glob("*.nii.gz")).read_bytes()


def upload(content: bytes = SCAN, filename: str = "x.nii.gz") -> SimpleNamespace:
    return SimpleNamespace(filename=filename, file=io.BytesIO(content))


async def endpoint(model: str, sync: bool = False, lines: int = 300, user: Any = None) -> dict[str, Any]:
    return {"model": model, "sync": sync, "lines": lines, "user": user}


def call(rule: Rule, **given: Any) -> dict[str, Any]:
    confined = confine(endpoint, rule, lambda: Holdings(SimpleNamespace(studies="http://x")))
    return asyncio.run(confined(**{"model": "unet", "sync": False, "lines": 300, "user": "me", **given}))


def test_values_are_checked_fixed_or_left_out():
    rule = Rule({"model": plain(name)}, {"lines": 5})
    assert call(rule, lines=10**9) == {"model": "unet", "sync": False, "lines": 5, "user": "me"}
    with pytest.raises(RequestError, match=r"model: found '\.\./x'"):
        call(rule, model="../x")
    with pytest.raises(RequestError, match="sync: found True, wanted no such parameter here"):
        call(rule, sync=True)


def test_parameter_without_a_rule_and_rule_without_a_parameter_are_defects():
    with pytest.raises(TypeError, match="a parameter that needs a rule: "):
        confine(endpoint, Rule({"sync": plain(flag)}), SimpleNamespace)
    with pytest.raises(TypeError, match="no parameter modle"):
        confine(endpoint, Rule({"modle": plain(name), "model": plain(name)}), SimpleNamespace)


def test_every_route_is_in_one_table_with_its_reason():
    assert not (OPEN.keys() & CLOSED.keys() | OPEN.keys() & REPLACED.keys() | CLOSED.keys() & REPLACED.keys())
    assert all([*CLOSED.values(), *REPLACED.values()])


@pytest.mark.parametrize(
    "path",
    [
        "studies",
        "studies/1.2.3/series/1.2/metadata",
        "studies/1.2/series/1.2/instances/1.2/frames/1,2",
        "series/",
        "instances",
    ],
)
def test_resources_of_dicomweb_are_asked_for(path: str):
    assert DICOM_PATH.fullmatch(path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "..",
        "studies/..",
        "studies/../tools",
        "studies/%2e%2e/x",
        "tools/execute-script",
        "studies//x",
        "studies/.",
        "studies/a/./b",
        "studies?x",
        "studies\n",
        "@evil.test/",
        "studies/" + "1" * 1000,
    ],
)
def test_nothing_else_of_the_dicom_server_is_asked_for(path: str):
    assert not DICOM_PATH.fullmatch(path)


def test_dicom_server_is_asked_where_there_is_one(check: Callable[..., Any], app: SimpleNamespace):
    with pytest.raises(AbsentError, match="There is no DICOMweb server"):
        check(parameters.dicom_resource, "studies")
    app.studies = "http://127.0.0.1:8042/dicom-web"
    assert check(parameters.dicom_resource, "studies") == "studies"
    with pytest.raises(RequestError):
        check(parameters.dicom_resource, "studies/../tools")


@pytest.mark.parametrize("path", ["", "app.bundle.af87d1dd.js", "viewer", "assets/favicon-16x16.png", "_headers"])
def test_pages_of_ohif_are_given(path: str):
    assert PAGE.fullmatch(path)


@pytest.mark.parametrize("path", ["..", "a/../b", "/etc", "a//b", ".x", "a:b", "a\\b", "x" * 501])
def test_no_other_page_is_given(path: str):
    assert not PAGE.fullmatch(path)


@pytest.fixture
def check(app: SimpleNamespace) -> Callable[..., Any]:
    """Give a function that checks one value among others."""

    def run(take: Check, value: Any, **others: Any) -> Any:
        return take("key", value, Call(Holdings(app), others))

    return run


class Output(Enum):
    image = "image"


def test_typed_values_are_those_that_fastapi_limits(check: Callable[..., Any]):
    for value in (None, True, Output.image):
        assert check(parameters.typed, value) is value
    for value in ("x", 1, ["x"]):
        with pytest.raises(RequestError):
            check(parameters.typed, value)


def test_segmented_is_a_scan_that_is_there_or_comes_along(check: Callable[..., Any], session: str):
    assert check(parameters.segmented_scan, "case") == "case"
    for others in ({"file": upload()}, {"session_id": session}):
        assert check(parameters.segmented_scan, "", **others) == ""
        assert check(parameters.segmented_scan, "Volume of mine", **others) == "Volume of mine"
        with pytest.raises(RequestError):
            check(parameters.segmented_scan, "../secret", **others)
    for wrong in ("nobody", "secret"):
        with pytest.raises(AbsentError):
            check(parameters.segmented_scan, wrong)
    for wrong in ("", "../secret", "labels/final/case"):
        with pytest.raises(RequestError):
            check(parameters.segmented_scan, wrong)


def test_model_is_one_that_segments_or_trains(check: Callable[..., Any]):
    for take in (parameters.model, parameters.trained_model):
        assert check(take, "unet") == "unet"
        with pytest.raises(AbsentError, match="There is no model 'nothing' available"):
            check(take, "nothing")
        with pytest.raises(RequestError):
            check(take, "../unet")


def test_session_is_one_that_is_there(check: Callable[..., Any], session: str):
    assert check(parameters.session, session) == session
    assert check(parameters.session, "") == ""
    with pytest.raises(AbsentError, match="There is no session 1"):
        check(parameters.session, f"1{session[1:]}")
    for wrong in ("..", "../../home", session.upper(), f"{session}/"):
        with pytest.raises(RequestError):
            check(parameters.session, wrong)


def test_new_scan_has_the_name_that_is_given_or_that_of_its_file(check: Callable[..., Any]):
    assert check(parameters.new_scan, "mine", file=upload()) == "mine"
    assert check(parameters.new_scan, "mine.nii.gz", file=upload()) == "mine", "as MONAI Label's client gives it"
    assert check(parameters.new_scan, "mine.v2.nii", file=upload()) == "mine.v2"
    assert check(parameters.new_scan, None, file=upload(filename="/home/me/Patient 1.v2.nii.gz")) == "Patient 1"
    for given, filename in (
        ("../x", "x.nii.gz"),
        ("/x", "x.nii.gz"),
        (None, ".nii.gz"),
        (".nii", "x.nii"),
        (None, "x.sh"),
    ):
        with pytest.raises(RequestError):
            check(parameters.new_scan, given, file=upload(filename=filename))


def test_uploads_are_read(check: Callable[..., Any]):
    for take in (parameters.upload, parameters.label_upload):
        assert check(take, None) is None
        assert check(take, given := upload()) is given
        with pytest.raises(UnreadableScanError):
            check(take, upload(gzip.compress(b"x")))
    with pytest.raises(RequestError):
        check(parameters.label_upload, upload(b"\0\0", "label.bin"))
    for count in (0, 2):
        with pytest.raises(RequestError, match=f"found {count} files, wanted one scan"):
            check(parameters.one_upload, [upload()] * count)
    assert len(check(parameters.one_upload, [upload()])) == 1


def test_voxels_alone_are_a_label_of_a_scan_on_another_server(app: SimpleNamespace):
    app.studies = "http://127.0.0.1:8042/dicom-web"
    given = upload(b"\0\0", "label.bin")
    assert parameters.label_upload("label", given, Call(Holdings(app), {})) is given


INFER = {"overlap": 0.25, "mirroring": True, "device": "cpu", "result_extension": ".nrrd", "client_id": None}
CLICKS = {"foreground": [[1, 2, 3]], "spleen": [[1, 2, 3]], "label": "spleen", "slice": None, "label_info": [{"id": 1}]}


@pytest.mark.parametrize(
    "content", [{}, INFER, CLICKS, {"device": "GPU (1)"}, {"device": ["GPU (1)"]}, {"device": "cuda:1"}]
)
def test_settings_of_a_segmentation_are_those_that_are_offered(check: Callable[..., Any], content: dict[str, Any]):
    given = {"model": "unet", "image": "case"}
    assert json.loads(check(parameters.infer_params, json.dumps(content), **given)) == content
    assert check(parameters.infer_params, "", **given) == "{}"


@pytest.mark.parametrize(
    "content",
    [
        {"image": "/etc/passwd"},
        {"image_path": "x"},
        {"result_dir": "/tmp"},
        {"result_extension": "/../../x.nrrd"},
        {"result_extension": ".sh"},
        {"overlap": "$print()"},
        {"mirroring": "@network"},
        {"device": "$print()"},
        {"model_filename": "../../../x.pt"},
        {"model_filename": ["/x.pt"]},
        {"label_tag": "../x"},
        {"save_label": True, "label_tag": "elsewhere"},
        {"label": "/etc/passwd"},
        {"logging": "x"},
        {"spleen": "/etc/passwd"},
        {"liver": []},
        {"session": {"image": "/etc/passwd"}},
    ],
)
def test_other_settings_of_a_segmentation_are_refused(
    check: Callable[..., Any], studies: Path, content: dict[str, Any]
):
    (studies / "labels" / "elsewhere").symlink_to(studies.parent)
    for take in (parameters.infer_params, parameters.batch_params):
        with pytest.raises(RequestError):
            check(take, json.dumps(content), model="unet", image="case")


TRAIN = {
    "device": "cpu",
    "max_epochs": 1,
    "val_split": -1,
    "tracking": "None",
    "tracking_uri": "",
    "run_id": "",
    "gpus": "0,1",
}


def test_settings_of_a_training_are_those_that_are_offered(check: Callable[..., Any]):
    assert check(parameters.train_params, TRAIN, model="unet") == TRAIN
    assert check(parameters.train_params, None, model="unet") == {}
    everything = {"unet": TRAIN, "client_id": "me"}
    assert check(parameters.train_all_params, everything) == everything


@pytest.mark.parametrize(
    "content",
    [
        {"bundle_path": "/x"},
        {"model": "unet"},
        {"max_epochs": "$print()"},
        {"max_epochs": 0},
        {"device": "$print()"},
        {"tracking": "/x/settings.json"},
        {"tracking": "$print()"},
        {"tracking_uri": "file:///x"},
        {"tracking_uri": "http://evil.test"},
        {"tracking_experiment_name": "../x"},
        {"run_id": "initialize"},
        {"gpus": "0;x"},
        {"model_filename": "../x.pt"},
        {"val_split": 1},
        {"force_multi_gpu": True},
        {"dataset": "/x"},
    ],
)
def test_other_settings_of_a_training_are_refused(check: Callable[..., Any], content: dict[str, Any]):
    with pytest.raises(RequestError):
        check(parameters.train_params, content, model="unet")
    with pytest.raises(RequestError):
        check(parameters.train_all_params, {"unet": content})


def test_training_reads_no_link_to_elsewhere(check: Callable[..., Any], studies: Path):
    (studies / "link.nii.gz").symlink_to(studies.parent / "secret.nii.gz")
    for take in (parameters.train_params, parameters.train_all_params, parameters.batch_params):
        with pytest.raises(RequestError, match="a link to a file outside of the studies"):
            check(take, {}, model="unet")


def test_settings_of_a_strategy_are_those_that_are_offered(check: Callable[..., Any]):
    given = {"label_tag": "final", "labels": ["spleen"], "client_id": "me"}
    assert check(parameters.sample_params, given, strategy="first") == given
    assert check(parameters.sample_params, {"count": 5}, strategy="best") == {"count": 5}
    for wrong in ({"strategy": "x"}, {"count": 5}, {"labels": "../x"}, {"labels": ["../x"]}, {"label_tag": "../x"}):
        with pytest.raises(RequestError):
            check(parameters.sample_params, wrong, strategy="first")


def test_labels_are_written_where_labels_are(check: Callable[..., Any], studies: Path):
    (studies / "labels" / "elsewhere").symlink_to(studies.parent)
    for take in (parameters.label, parameters.written_label):
        assert check(take, "case", tag="final") == "case"
        for tag in ("../final", "", "/x"):
            with pytest.raises(RequestError):
                check(take, "case", tag=tag)
    with pytest.raises(RequestError):
        check(parameters.written_label, "case", tag="elsewhere")
    with pytest.raises(RequestError):
        check(parameters.written_label, "../case", tag="final")


def test_scan_is_removed_with_its_labels_in_the_studies_only(check: Callable[..., Any], studies: Path):
    assert check(parameters.removed_scan, "case") == "case"
    (studies / "labels" / "elsewhere").symlink_to(studies.parent)
    (studies.parent / "case.nii.gz").touch()
    with pytest.raises(RequestError, match="a link to a file outside"):
        check(parameters.removed_scan, "case")
