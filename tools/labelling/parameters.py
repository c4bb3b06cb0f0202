# SPDX-License-Identifier: Apache-2.0
"""What the parameters of MONAI Label's endpoints may be, where it depends on what the server has or on each other."""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tools.errors import RequestError
from tools.labelling import values
from tools.labelling.holdings import AbsentError, Holdings
from tools.labelling.uploads import SUFFIXES, check_filename, check_upload
from tools.labelling.values import Kind, choice, flag, match, name, note, number, one_or_more, optional, text

# the resources of DICOMweb; a name of one dot or two would lead to what else the server at this address does
DICOM_PATH = re.compile(r"(?=.{0,1000}\Z)(studies|series|instances)(/[A-Za-z0-9_,-]+(\.[A-Za-z0-9_,-]+)*)*/?")
SCAN_SUFFIX = choice(".nii.gz", ".nii", ".nrrd", ".seg.nrrd")
VOXEL_TYPE = choice("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
LOG_LEVEL = choice("DEBUG", "INFO", "WARNING", "ERROR")
WEIGHTS = one_or_more(match(values.WEIGHTS, "the name of a .pt file of the model"))
GPUS = match(values.GPUS, "all, or numbers of GPUs with commas between")
DEVICE = match(values.DEVICE, "cpu, cuda or cuda:1")

RESULT: dict[str, Kind] = {
    "client_id": optional(text),
    "model_filename": WEIGHTS,
    "logging": LOG_LEVEL,
    "result_extension": SCAN_SUFFIX,
    "result_dtype": VOXEL_TYPE,
    "result_compress": flag,
    "save_label": flag,
    "label_tag": values.tag,
}
# what viewers send with clicks, boxes and scribbles
PROMPTS: dict[str, Kind] = {
    "foreground": values.points,
    "background": values.points,
    "roi": values.points,
    "slice": optional(number(0, 1e6, whole=True)),
    "label": name,
    "label_info": lambda subject, value: _take_list(subject, value, note()),
    "selected_label_name": name,
    "reset_state": flag,
    "restore_label_idx": flag,
}
BATCH: dict[str, Kind] = {
    "multi_gpu": flag,
    "gpus": GPUS,
    "max_workers": number(0, 64, whole=True),
    "max_batch_size": number(0, 1e6, whole=True),
}
TRAIN: dict[str, Kind] = {
    "client_id": optional(text),
    "model_filename": WEIGHTS,
    "pretrained": flag,
    "max_epochs": number(1, 100_000, whole=True),
    "val_split": number(-1, 0.99),
    "multi_gpu": flag,
    "gpus": GPUS,
    "tracking": optional(one_or_more(choice("mlflow", "None", "none", ""))),
    "tracking_experiment_name": match(values.WORDS, "at most 64 letters, digits, spaces, _ . and -"),
    "tracking_run_name": match(values.WORDS, "at most 64 letters, digits, spaces, _ . and -"),
    "run_id": choice("run", ""),  # the expression of the config that is evaluated
}
SAMPLE: dict[str, Kind] = {
    "client_id": optional(text),
    "label_tag": values.tag,
    "labels": lambda subject, value: _take_list(subject, value, name),
}


@dataclass(frozen=True)
class Call:
    """One call of an endpoint: what there is, and all values of its parameters."""

    holdings: Holdings
    values: Mapping[str, Any]


Check = Callable[[str, Any, Call], Any]


def plain(kind: Kind) -> Check:
    """Return the check that a value is of a kind which depends on nothing else."""
    return lambda subject, value, call: kind(subject, value)


def typed(subject: str, value: Any, call: Call) -> Any:
    """Take what FastAPI has made a flag or one of an enumeration; numbers and texts need a kind."""
    if value is not None and not isinstance(value, (bool, enum.Enum)):
        raise RequestError(subject, values.shorten(value), "a value of a fixed list", values.REMEDY)
    return value


def model(subject: str, value: Any, call: Call) -> str:
    """Take the name of a model that segments."""
    return call.holdings.find_model("models", name(subject, value))


def trained_model(subject: str, value: Any, call: Call) -> str:
    """Take the name of a model that can be trained: MONAI Label would start a process for any."""
    return call.holdings.find_model("trainers", name(subject, value))


def scan(subject: str, value: Any, call: Call) -> str:
    """Take the name of a scan that is there."""
    return call.holdings.find_scan(subject, name(subject, value))


def removed_scan(subject: str, value: Any, call: Call) -> str:
    """Take the name of a scan that may be removed, its labels too."""
    call.holdings.check_scan_place(subject, scan(subject, value, call))
    for tag in call.holdings.list_tags(value):
        call.holdings.check_label_place(subject, value, tag)
    return value


def new_scan(subject: str, value: Any, call: Call) -> str:
    """Take the name of a scan to be added; default: that of the uploaded file."""
    if not value:
        filename = check_filename("file", call.values["file"].filename)
        value = filename[: filename.index(".")]
    else:  # the clients of MONAI Label give the file's name, and its server adds the suffix once more
        value = functools.reduce(str.removesuffix, SUFFIXES, name(subject, value))
    call.holdings.check_scan_place(subject, name(subject, value))
    return value


def segmented_scan(subject: str, value: Any, call: Call) -> str:
    """Take the name of what is segmented: a scan that is there, unless one comes with the request or its session."""
    if call.values.get("file") is None and not call.values.get("session_id"):
        return scan(subject, value, call)
    return name(subject, value) if value else ""


def label(subject: str, value: Any, call: Call) -> str:
    """Take the name of a scan whose label is read."""
    call.holdings.check_label(subject, scan(subject, value, call), values.tag("tag", call.values["tag"]))
    return value


def written_label(subject: str, value: Any, call: Call) -> str:
    """Take the name of a scan whose label is written or removed."""
    call.holdings.check_label_place(subject, scan(subject, value, call), values.tag("tag", call.values["tag"]))
    return value


def session(subject: str, value: Any, call: Call) -> str:
    """Take the id of a session that is there, or nothing."""
    if not value:
        return ""
    value = match(values.SESSION, "the id that PUT /session/ gave")(subject, value)
    if not call.holdings.has_session(value):
        raise AbsentError(f"There is no session {value}")
    return value


def upload(subject: str, value: Any, call: Call) -> Any:
    """Take a scan or label that can be read, or nothing."""
    if value is not None:
        check_upload(subject, value)
    return value


def label_upload(subject: str, value: Any, call: Call) -> Any:
    """Take a label; beside scans on a DICOMweb server OHIF sends its voxels alone, in the grid of the scan."""
    if call.holdings.studies is None and value is not None and value.filename == "label.bin":
        return value
    return upload(subject, value, call)


def one_upload(subject: str, value: Any, call: Call) -> Any:
    """Take a list of one scan: a list of more, and an archive, would be a folder of anything."""
    if len(value) != 1:
        raise RequestError(subject, f"{len(value)} files", "one scan", values.REMEDY)
    check_upload(subject, value[0])
    return value


def infer_params(subject: str, value: Any, call: Call) -> str:
    """Take the settings of one segmentation, as JSON."""
    used = call.values["model"]
    kinds = call.holdings.get_settings("models", used) | PROMPTS | call.holdings.get_prompts(used) | RESULT
    content = values.read_settings(subject, value or "{}", kinds | _take_device(call, "models", used))
    if content.get("save_label") and call.values.get("image"):
        tag = content.get("label_tag", "original")
        call.holdings.check_label_place("label_tag", call.values["image"], tag)
    return values.write_object(content)


def batch_params(subject: str, value: Any, call: Call) -> Any:
    """Take the settings for the segmentation of all scans."""
    call.holdings.check_all("studies")
    used = call.values["model"]
    kinds = call.holdings.get_settings("models", used) | BATCH | RESULT
    content = values.read_settings(subject, value or {}, kinds | _take_device(call, "models", used))
    for known in call.holdings.list_scans():
        call.holdings.check_label_place("label_tag", known, content.get("label_tag", "original"))
    return content


def train_params(subject: str, value: Any, call: Call) -> Any:
    """Take the settings of a training of one model."""
    call.holdings.check_all("studies")
    return values.read_settings(subject, value or {}, _list_training_kinds(call, call.values["model"]))


def train_all_params(subject: str, value: Any, call: Call) -> Any:
    """Take the settings of a training of all models, by their names."""
    call.holdings.check_all("studies")
    kinds: dict[str, Kind] = {"client_id": optional(text)}
    for trained in call.holdings.app.info().get("trainers", {}):
        kinds[trained] = functools.partial(values.read_settings, kinds=_list_training_kinds(call, trained))
    return values.read_settings(subject, value or {}, kinds)


def sample_params(subject: str, value: Any, call: Call) -> Any:
    """Take the settings for the choice of the next scan."""
    kinds = call.holdings.get_settings("strategies", call.values["strategy"]) | SAMPLE
    return values.read_settings(subject, value or {}, kinds)


def dicom_resource(subject: str, value: Any, call: Call) -> str:
    """Take the path of something on the DICOMweb server that has the studies."""
    if call.holdings.studies is not None:
        raise AbsentError("There is no DICOMweb server: the studies are a folder")
    return match(DICOM_PATH, "a resource of DICOMweb")(subject, value)


def kept_note(*reserved: str) -> Check:
    """Take JSON that is kept beside a scan or label."""
    return lambda subject, value, call: values.write_object(note(reserved)(subject, value or "{}"))


def _take_device(call: Call, section: str, used: str) -> dict[str, Kind]:
    """Take cpu, cuda and what MONAI Label calls the devices of this machine."""
    offered = call.holdings.get_settings(section, used).get("device", DEVICE)

    def take(subject: str, value: Any) -> Any:
        try:
            return offered(subject, value)
        except RequestError:
            return one_or_more(DEVICE)(subject, value)

    return {"device": take}


def _list_training_kinds(call: Call, trained: str) -> dict[str, Kind]:
    kinds = call.holdings.get_settings("trainers", trained) | TRAIN | _take_device(call, "trainers", trained)
    # a place to write to, on this machine or another: only what the owner of the server has set
    config = call.holdings.app.info().get("trainers", {}).get(trained, {}).get("config") or {}
    return kinds | {"tracking_uri": choice("", config.get("tracking_uri", ""))}


def _take_list(subject: str, value: Any, kind: Kind) -> list[Any]:
    if not isinstance(value, list) or len(value) > 1_000:
        raise RequestError(subject, values.shorten(value), "a list of at most 1000 entries", values.REMEDY)
    return [kind(subject, entry) for entry in value]
