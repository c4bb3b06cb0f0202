# SPDX-License-Identifier: Apache-2.0
"""The routes of MONAI Label 0.8.5 that are served, with what each of their parameters may be, and those that are not.

A route that stands in neither table, or a parameter that has no rule, is not served: a new version of MONAI Label opens
nothing by itself.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tools.errors import RequestError
from tools.labelling import values
from tools.labelling.holdings import AbsentError, Holdings
from tools.labelling.uploads import check_filename, check_upload
from tools.labelling.values import Kind, choice, flag, match, name, note, number, one_or_more, optional, text

# what FastAPI gives an endpoint by itself
PROVIDED = frozenset({"user", "background_tasks", "request"})
SCAN_SUFFIX = choice(".nii.gz", ".nii", ".nrrd", ".seg.nrrd")
VOXEL_TYPE = choice("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
LOG_LEVEL = choice("DEBUG", "INFO", "WARNING", "ERROR")
WEIGHTS = one_or_more(match(values.WEIGHTS, "the name of a .pt file of the model"))
GPUS = match(values.GPUS, "all, or numbers of GPUs with commas between")
DEVICE = match(values.DEVICE, "cpu, cuda or cuda:1")
PAGE = re.compile(r"([A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*/?)?")
# the resources of DICOMweb; a name of one dot or two would lead to what else the server at this address does
DICOM_PATH = re.compile(r"(studies|series|instances)(/[A-Za-z0-9_,-]+(\.[A-Za-z0-9_,-]+)*)*/?")
CHECKSUM = re.compile(r"((SHA256|SHA512|MD5):)?[0-9a-fA-F]{32,128}")
KEPT_BY_SERVER = ("name", "path", "ts", "strategy", "checksum")  # 3D Slicer writes to a file of this name

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


@dataclass(frozen=True)
class Rule:
    """What the parameters of a route may be.

    Args:
        checks: by the names of the endpoint's parameters; they return what the endpoint gets.
        fixed: values that the endpoint gets whatever the request says.
    """

    checks: Mapping[str, Check] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


def plain(kind: Kind) -> Check:
    """Return the check that a value is of a kind which depends on nothing else."""
    return lambda subject, value, call: kind(subject, value)


def typed(subject: str, value: Any, call: Call) -> Any:
    """Take what FastAPI has made a flag or one of an enumeration; numbers and texts need a kind."""
    if value is not None and not isinstance(value, (bool, enum.Enum)):
        raise RequestError(subject, values.shorten(value), "a value of a fixed list", values.REMEDY)
    return value


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
    model = call.values["model"]
    kinds = call.holdings.get_settings("models", model) | PROMPTS | call.holdings.get_prompts(model) | RESULT
    content = values.read_settings(subject, value or "{}", kinds | _take_device(call, "models", model))
    if content.get("save_label") and call.values.get("image"):
        tag = content.get("label_tag", "original")
        call.holdings.check_label_place("label_tag", call.values["image"], tag)
    return values.write_object(content)


def batch_params(subject: str, value: Any, call: Call) -> Any:
    """Take the settings for the segmentation of all scans."""
    call.holdings.check_all("studies")
    model = call.values["model"]
    kinds = call.holdings.get_settings("models", model) | BATCH | RESULT
    content = values.read_settings(subject, value or {}, kinds | _take_device(call, "models", model))
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
    for model in call.holdings.app.info().get("trainers", {}):
        kinds[model] = functools.partial(values.read_settings, kinds=_list_training_kinds(call, model))
    return values.read_settings(subject, value or {}, kinds)


def sample_params(subject: str, value: Any, call: Call) -> Any:
    """Take the settings for the choice of the next scan."""
    kinds = call.holdings.get_settings("strategies", call.values["strategy"]) | SAMPLE
    return values.read_settings(subject, value or {}, kinds)


def kept_note(*reserved: str) -> Check:
    """Take JSON that is kept beside a scan or label."""
    return lambda subject, value, call: values.write_object(note(reserved)(subject, value or "{}"))


def confine(endpoint: Callable[..., Any], rule: Rule, get_holdings: Callable[[], Holdings]) -> Callable[..., Any]:
    """Return `endpoint` with its parameters checked.

    Raises:
        TypeError: if a parameter of the rule is none of the endpoint.
    """
    signature = inspect.signature(endpoint, eval_str=True)
    parameters = signature.parameters
    ruled = rule.checks.keys() | rule.fixed.keys()
    if unknown := ruled - parameters.keys():
        raise TypeError(f"{endpoint.__name__} has no parameter {min(unknown)}")
    defaults = {key: _get_default(parameters[key].default) for key in parameters.keys() - ruled - PROVIDED}
    if inspect.Parameter.empty in defaults.values():
        raise TypeError(f"{endpoint.__name__} has a parameter that needs a rule: {', '.join(defaults)}")

    def check(given: Mapping[str, Any]) -> dict[str, Any]:
        for key, default in defaults.items():
            if given[key] != default:
                raise RequestError(key, values.shorten(given[key]), "no such parameter here", "leave it out")
        call = Call(get_holdings(), given)
        return {**given, **{key: take(key, given[key], call) for key, take in rule.checks.items()}, **rule.fixed}

    @functools.wraps(endpoint)
    async def confined(**given: Any) -> Any:
        # scans are unpacked: not in the thread that answers all others
        return await endpoint(**await asyncio.to_thread(check, given))

    confined.__dict__["__signature__"] = signature  # what FastAPI reads, with the types themselves
    return confined


def _take_device(call: Call, section: str, model: str) -> dict[str, Kind]:
    """Take cpu, cuda and what MONAI Label calls the devices of this machine."""
    offered = call.holdings.get_settings(section, model).get("device", DEVICE)

    def take(subject: str, value: Any) -> Any:
        try:
            return offered(subject, value)
        except RequestError:
            return one_or_more(DEVICE)(subject, value)

    return {"device": take}


def _list_training_kinds(call: Call, model: str) -> dict[str, Kind]:
    kinds = call.holdings.get_settings("trainers", model) | TRAIN | _take_device(call, "trainers", model)
    # a place to write to, on this machine or another: only what the owner of the server has set
    config = call.holdings.app.info().get("trainers", {}).get(model, {}).get("config") or {}
    return kinds | {"tracking_uri": choice("", config.get("tracking_uri", ""))}


def _take_list(subject: str, value: Any, kind: Kind) -> list[Any]:
    if not isinstance(value, list) or len(value) > 1_000:
        raise RequestError(subject, values.shorten(value), "a list of at most 1000 entries", values.REMEDY)
    return [kind(subject, entry) for entry in value]


def _get_default(default: Any) -> Any:
    """Return the default in what FastAPI calls `Form` and `File`, or the plain one."""
    return getattr(default, "default", default)


_MODEL = {"model": plain(name)}
_STATUS = Rule({"all": typed, "check_if_running": typed})
_ADD = Rule({"file": upload, "image": new_scan, "params": kept_note(*KEPT_BY_SERVER)})
_REMOVE = Rule({"id": removed_scan})
_NOTE_TO_LABEL = {"label": written_label, "tag": plain(values.tag)}
_DICOM = Rule({"path": plain(match(DICOM_PATH, "a resource of DICOMweb"))})

OPEN: dict[tuple[str, str], Rule] = {
    ("GET", "/favicon.ico"): Rule(),
    ("GET", "/info/"): Rule(),
    ("GET", "/logs/"): Rule({"lines": plain(number(1, 10_000, whole=True))}, {"html": False, "text": True}),
    ("GET", "/ohif/{path:path}"): Rule({"path": plain(match(PAGE, "a page of OHIF"))}),
    ("GET", "/model/{model}"): Rule(_MODEL),
    ("GET", "/model/info/{model}"): Rule(_MODEL),
    ("POST", "/infer/{model}"): Rule(
        {
            **_MODEL,
            "session_id": session,
            "image": segmented_scan,
            "file": upload,
            "label": label_upload,
            "params": infer_params,
            "output": typed,
        }
    ),
    ("GET", "/batch/infer"): _STATUS,
    ("POST", "/batch/infer/{model}"): Rule({**_MODEL, "images": typed, "params": batch_params}),
    ("DELETE", "/batch/infer"): Rule(),
    ("GET", "/train/"): _STATUS,
    ("POST", "/train/"): Rule({"params": train_all_params}),
    ("POST", "/train/{model}"): Rule({**_MODEL, "params": train_params, "enqueue": typed}),
    ("DELETE", "/train/"): Rule(),
    ("POST", "/activelearning/{strategy}"): Rule({"strategy": plain(name), "params": sample_params}),
    ("GET", "/datastore/"): Rule({"output": typed}),
    ("PUT", "/datastore/"): _ADD,
    ("PUT", "/datastore/image"): _ADD,
    ("DELETE", "/datastore/"): _REMOVE,
    ("DELETE", "/datastore/image"): _REMOVE,
    ("GET", "/datastore/image"): Rule({"image": scan}),
    ("HEAD", "/datastore/image"): Rule(
        {"image": scan, "check_sum": plain(optional(match(CHECKSUM, "a checksum, SHA256 for instance")))}
    ),
    ("GET", "/datastore/image/info"): Rule({"image": scan}),
    ("PUT", "/datastore/image/info"): Rule({"image": scan, "info": kept_note(*KEPT_BY_SERVER)}),
    ("PUT", "/datastore/label"): Rule(
        {"image": written_label, "tag": plain(values.tag), "label": label_upload, "params": kept_note()}
    ),
    ("DELETE", "/datastore/label"): Rule({"id": written_label, "tag": plain(values.tag)}),
    ("GET", "/datastore/label"): Rule({"label": label, "tag": plain(values.tag)}),
    ("HEAD", "/datastore/label"): Rule({"image": label, "tag": plain(values.tag)}),
    ("GET", "/datastore/label/info"): Rule({"label": label, "tag": plain(values.tag)}),
    ("PUT", "/datastore/label/info"): Rule({**_NOTE_TO_LABEL, "info": kept_note()}),
    ("PUT", "/datastore/updatelabelinfo"): Rule({**_NOTE_TO_LABEL, "params": kept_note()}),
    ("PUT", "/session/"): Rule({"files": one_upload, "expiry": plain(number(0, 86_400, whole=True))}),
    ("GET", "/session/{session_id}"): Rule({"session_id": session, "update_ts": typed, "image": typed}),
    ("DELETE", "/session/{session_id}"): Rule({"session_id": session}),
    ("GET", "/proxy/dicom/wado/{path:path}"): _DICOM,
    ("GET", "/proxy/dicom/qido/{path:path}"): _DICOM,
}

# served by `tools.labelling.application` itself
REPLACED: dict[tuple[str, str], str] = {
    ("GET", "/"): "its page runs scripts of other sites",
    ("PUT", "/model/{model}"): "it copies whatever comes over the model, which can be half of it then",
    ("GET", "/static"): "files of the package, which Starlette confines",
}

CLOSED: dict[tuple[str, str], str] = {
    ("GET", "/docs"): "its page runs scripts of other sites",
    ("HEAD", "/docs"): "as GET",
    ("GET", "/openapi.json"): "it describes what is not served too",
    ("HEAD", "/openapi.json"): "as GET",
    ("POST", "/reload"): "it makes the app again, with all models",
    ("DELETE", "/model/{model}"): "the server does not start without it",
    ("GET", "/logs/gpu"): "it starts a program",
    ("GET", "/datastore/dataset"): "it writes an archive of all scans, which nobody removes",
    ("POST", "/infer/wsi/{model}"): "pathology",
    ("POST", "/infer/wsi_v2/{model}"): "pathology",
    ("GET", "/scoring/"): "the app has no scoring methods",
    ("POST", "/scoring/"): "the app has no scoring methods",
    ("POST", "/scoring/{method}"): "the app has no scoring methods",
    ("DELETE", "/scoring/"): "the app has no scoring methods",
    ("GET", "/proxy/dicom/stow/{path:path}"): "nothing is read by it",
    ("GET", "/proxy/dicom/{path:path}"): "anything of the DICOM server could be asked for",
    ("POST", "/proxy/dicom/wado/{path:path}"): "it hands on all headers, the token too",
    ("POST", "/proxy/dicom/qido/{path:path}"): "it hands on all headers, the token too",
    ("POST", "/proxy/dicom/stow/{path:path}"): "it hands on all headers, the token too",
    ("POST", "/proxy/dicom/{path:path}"): "it hands on all headers, the token too",
    ("GET", "/auth/"): "MONAI Label's login, which asks a Keycloak server",
    ("POST", "/auth/token"): "MONAI Label's login, which asks a Keycloak server",
    ("GET", "/auth/token/valid"): "MONAI Label's login, which asks a Keycloak server",
}
