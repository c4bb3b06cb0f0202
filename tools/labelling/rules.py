# SPDX-License-Identifier: Apache-2.0
"""The routes of MONAI Label 0.8.5 that are served, with what each of their parameters may be, and those that are not.

A route that stands in neither table, or a parameter that has no rule, is not served: a new version of MONAI Label opens
nothing by itself.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tools.errors import RequestError
from tools.labelling import parameters, values
from tools.labelling.holdings import Holdings
from tools.labelling.parameters import Call, Check, plain, scan, typed
from tools.labelling.values import match, name, number, optional

# what FastAPI gives an endpoint by itself
PROVIDED = frozenset({"user", "background_tasks", "request"})
PAGE = re.compile(r"(?=.{0,500}\Z)([A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*/?)?")
CHECKSUM = re.compile(r"((SHA256|SHA512|MD5):)?[0-9a-fA-F]{32,128}")
KEPT_BY_SERVER = ("name", "path", "ts", "strategy", "checksum")  # 3D Slicer writes to a file of this name


@dataclass(frozen=True)
class Rule:
    """What the parameters of a route may be.

    Args:
        checks: by the names of the endpoint's parameters; they return what the endpoint gets.
        fixed: values that the endpoint gets whatever the request says.
    """

    checks: Mapping[str, Check] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


def list_endpoints(routes: Sequence[Any]) -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """Yield method, path and endpoint of all routes, those of included routers too."""
    for route in routes:
        if router := getattr(route, "original_router", None):  # newer FastAPI includes routers as they are
            yield from list_endpoints(router.routes)
        elif endpoint := getattr(route, "endpoint", None):  # a mounted application has none
            for method in sorted(route.methods):
                yield method, route.path, endpoint


def confine(endpoint: Callable[..., Any], rule: Rule, get_holdings: Callable[[], Holdings]) -> Callable[..., Any]:
    """Return `endpoint` with its parameters checked.

    Raises:
        TypeError: if a parameter of the rule is none of the endpoint.
    """
    signature = inspect.signature(endpoint, eval_str=True)
    declared = signature.parameters
    ruled = rule.checks.keys() | rule.fixed.keys()
    if unknown := ruled - declared.keys():
        raise TypeError(f"{endpoint.__name__} has no parameter {min(unknown)}")
    defaults = {key: _get_default(declared[key].default) for key in declared.keys() - ruled - PROVIDED}
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


def _get_default(default: Any) -> Any:
    """Return the default in what FastAPI calls `Form` and `File`, or the plain one."""
    return getattr(default, "default", default)


_MODEL = {"model": parameters.model}
_STATUS = Rule({"all": typed, "check_if_running": typed})
_ADD = Rule({"file": parameters.upload, "image": parameters.new_scan, "params": parameters.kept_note(*KEPT_BY_SERVER)})
_REMOVE = Rule({"id": parameters.removed_scan})
_NOTE_TO_LABEL = {"label": parameters.written_label, "tag": plain(values.tag)}
_DICOM = Rule({"path": parameters.dicom_resource})

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
            "session_id": parameters.session,
            "image": parameters.segmented_scan,
            "file": parameters.upload,
            "label": parameters.label_upload,
            "params": parameters.infer_params,
            "output": typed,
        }
    ),
    ("GET", "/batch/infer"): _STATUS,
    ("POST", "/batch/infer/{model}"): Rule({**_MODEL, "images": typed, "params": parameters.batch_params}),
    ("DELETE", "/batch/infer"): Rule(),
    ("GET", "/train/"): _STATUS,
    ("POST", "/train/"): Rule({"params": parameters.train_all_params}),
    ("POST", "/train/{model}"): Rule(
        {"model": parameters.trained_model, "params": parameters.train_params, "enqueue": typed}
    ),
    ("DELETE", "/train/"): Rule(),
    ("POST", "/activelearning/{strategy}"): Rule({"strategy": plain(name), "params": parameters.sample_params}),
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
    ("PUT", "/datastore/image/info"): Rule({"image": scan, "info": parameters.kept_note(*KEPT_BY_SERVER)}),
    ("PUT", "/datastore/label"): Rule(
        {
            "image": parameters.written_label,
            "tag": plain(values.tag),
            "label": parameters.label_upload,
            "params": parameters.kept_note(),
        }
    ),
    ("DELETE", "/datastore/label"): Rule({"id": parameters.written_label, "tag": plain(values.tag)}),
    ("GET", "/datastore/label"): Rule({"label": parameters.label, "tag": plain(values.tag)}),
    ("HEAD", "/datastore/label"): Rule({"image": parameters.label, "tag": plain(values.tag)}),
    ("GET", "/datastore/label/info"): Rule({"label": parameters.label, "tag": plain(values.tag)}),
    ("PUT", "/datastore/label/info"): Rule({**_NOTE_TO_LABEL, "info": parameters.kept_note()}),
    ("PUT", "/datastore/updatelabelinfo"): Rule({**_NOTE_TO_LABEL, "params": parameters.kept_note()}),
    ("PUT", "/session/"): Rule({"files": parameters.one_upload, "expiry": plain(number(0, 86_400, whole=True))}),
    ("GET", "/session/{session_id}"): Rule({"session_id": parameters.session, "update_ts": typed, "image": typed}),
    ("DELETE", "/session/{session_id}"): Rule({"session_id": parameters.session}),
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
