# SPDX-License-Identifier: Apache-2.0
"""The web application: MONAI Label's routes behind rules and a gate, with answers that tell what was wrong.

uvicorn gets `tools.labelling.application:app` from `tools.labelling.server`. MONAI Label answers every error with
"Internal Server Error"; 3D Slicer shows its user the answer, not the log.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, UploadFile
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from monailabel.app import app as original
from monailabel.interfaces.utils.app import app_instance

from tools.errors import RequestError, ToolsError, find_cause
from tools.labelling import parameters
from tools.labelling.conditions import Conditions, get_conditions
from tools.labelling.gate import Gate
from tools.labelling.holdings import AbsentError, Holdings
from tools.labelling.replacement import WEIGHTS_BYTES, take_weights
from tools.labelling.rules import OPEN, Rule, confine, list_endpoints
from tools.labelling.uploads import SCAN_BYTES

TEXT_BYTES = 1 << 20  # of a request without a file, and of what stands beside the files of one
UPLOAD_BYTES = {
    ("PUT", "datastore"): SCAN_BYTES,
    ("PUT", "session"): SCAN_BYTES,
    ("POST", "infer"): 2 * SCAN_BYTES,  # a scan and its label
    ("PUT", "model"): WEIGHTS_BYTES,
}
PAGE = '<!doctype html><title>MONAI Label</title><p>MONAI Label, for 3D Slicer and <a href="/ohif/">OHIF</a>.</p>'


def build(conditions: Conditions) -> Gate:
    """Return an application with those routes of MONAI Label that have a rule, and our own instead of some.

    Routes, not a filter in front of all: what a request means is decided once, by FastAPI, and checked after that.
    CORS is left out: MONAI Label lets every web page that its user opens read the studies; OHIF of this server needs no
    permission.
    """
    closed: dict[str, Any] = dict.fromkeys(("openapi_url", "docs_url", "redoc_url"))
    web = FastAPI(title="MONAI Label", lifespan=original.router.lifespan_context, **closed)

    def get_holdings() -> Holdings:
        return Holdings(app_instance(), conditions.follow_links)

    endpoints = {(method, path): endpoint for method, path, endpoint in list_endpoints(original.routes)}
    for (method, path), rule in OPEN.items():
        endpoint = confine(endpoints[method, path], rule, get_holdings)
        web.add_api_route(path, endpoint, methods=[method])
    web.add_api_route("/", _show_page, methods=["GET"])
    upload_rule = Rule({"model": parameters.model, "file": lambda subject, value, call: value})
    web.add_api_route("/model/{model}", confine(_put_model, upload_rule, get_holdings), methods=["PUT"])
    for route in original.routes:
        if getattr(route, "path", None) == "/static":
            web.mount("/static", route.app)
    web.add_exception_handler(ToolsError, _answer)
    web.add_exception_handler(AbsentError, _answer)
    web.add_exception_handler(RequestValidationError, _answer_invalid)
    web.add_exception_handler(404, _answer_absent)
    web.add_exception_handler(405, _answer_absent)
    # as a handler of Exception it only answers: the error goes on into the log, with its traceback
    web.add_exception_handler(Exception, _answer)
    return Gate(web, conditions.access, limit_bytes)


def limit_bytes(method: str, path: str) -> int:
    """Return the largest number of bytes for the body of a request."""
    first = path.removeprefix("/").partition("/")[0]  # of `OPTIONS *` there is no slash
    return UPLOAD_BYTES.get((method, first), 0) + TEXT_BYTES


def explain(error: Exception) -> tuple[int, str]:
    """Return the HTTP status and the sentence that answer an error.

    Status 422 stands for input that cannot be used, 404 for a model, image or label that is not there.
    """
    if isinstance(error, AbsentError):
        return 404, str(error)
    if cause := find_cause(error):
        return 422, str(cause)
    if (message := getattr(error, "msg", None)) and type(error).__module__.startswith("monailabel."):
        return 404, message
    reason = str(error).strip().partition("\n")[0]
    return 500, f"{type(error).__name__}: {reason}; the server's log has the details."


async def _show_page() -> HTMLResponse:
    return HTMLResponse(PAGE)


async def _put_model(model: str, file: UploadFile) -> dict[str, Any]:
    instance = app_instance()
    network = getattr(instance._infers[model], "network", None)  # None of a TorchScript program
    return await asyncio.to_thread(take_weights, network, file, Path(instance.model_file(model, validate=False)))


async def _answer(request: Request, error: Exception) -> JSONResponse:
    status, sentence = explain(error)
    return JSONResponse({"detail": sentence}, status)


async def _answer_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    subject = ", ".join(map(str, first["loc"][1:] or first["loc"]))
    sentence = RequestError(subject, first["type"], "what MONAI Label asks for", first["msg"].lower())
    return JSONResponse({"detail": str(sentence)}, 422)


async def _answer_absent(request: Request, error: HTTPException) -> JSONResponse:
    if error.detail not in ("Not Found", "Method Not Allowed"):
        return JSONResponse({"detail": error.detail}, error.status_code)
    found = f"{request.method} {request.url.path[:100]}"
    wanted = "a request of 3D Slicer or OHIF"
    sentence = RequestError("request", found, wanted, "see tools/labelling/rules.py for those that are answered")
    return JSONResponse({"detail": str(sentence)}, error.status_code)


app = build(get_conditions())
