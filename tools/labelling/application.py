# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's web application, with answers that tell what was wrong: uvicorn gets `tools.labelling.application:app`.

MONAI Label answers every error with "Internal Server Error"; 3D Slicer shows its user the answer, not the log.
"""

from __future__ import annotations

import importlib
from typing import Any

from tools.errors import find_cause

_responses = importlib.import_module("fastapi.responses")
_app_instance = importlib.import_module("monailabel.interfaces.utils.app").app_instance

app: Any = importlib.import_module("monailabel.app").app


def explain(error: Exception) -> tuple[int, str]:
    """Return the HTTP status and the sentence that answer an error.

    Status 422 stands for input that cannot be used, 404 for a model, image or label that is not there.
    """
    if cause := find_cause(error):
        return 422, str(cause)
    if (message := getattr(error, "msg", None)) and type(error).__module__.startswith("monailabel."):
        return 404, message
    reason = str(error).strip().partition("\n")[0]
    return 500, f"{type(error).__name__}: {reason}; the server's log has the details."


async def _answer(request: Any, error: Exception) -> Any:
    status, sentence = explain(error)
    image = request.query_params.get("image")
    if request.url.path.startswith("/infer/") and image and not _app_instance().datastore().get_image_uri(image):
        status, sentence = 404, f"There is no image {image!r} in the studies"  # its path is empty, what reads it fails
    return _responses.JSONResponse({"detail": sentence}, status)


# MONAI Label lets every web page that its user opens read the studies; its own pages, OHIF too, need no permission
app.user_middleware = [entry for entry in app.user_middleware if entry.cls.__name__ != "CORSMiddleware"]
# as a handler of Exception it only answers: the error goes on into the log, with its traceback
app.add_exception_handler(Exception, _answer)
