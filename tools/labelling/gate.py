# SPDX-License-Identifier: Apache-2.0
"""The gate in front of the web application: what it lets in has come to the right place and has the right size.

It is plain ASGI (https://asgi.readthedocs.io) and stands before anything of a request is parsed.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from tools.errors import RequestError
from tools.labelling.access import Access

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "label_token"
HEADERS = (
    (b"x-content-type-options", b"nosniff"),  # an upload is no page, whatever is in it
    (b"x-frame-options", b"SAMEORIGIN"),  # no page of another site shows this one under its own buttons
    (b"referrer-policy", b"no-referrer"),
)


class Gate:
    """Refuse requests under a foreign name, from foreign pages, without the token, or with too large a body.

    A client gives the token as `Authorization: Bearer TOKEN`; as the first part of the path, which is what 3D Slicer
    can do; or once as `?token=TOKEN`, which a browser gets back as a cookie.

    Args:
        app: the application behind.
        access: what a request must have.
        limit: gives the largest number of bytes for the body of a method and path.
    """

    def __init__(self, app: Application, access: Access, limit: Callable[[str, str], int]) -> None:
        self.app, self.access, self.limit = app, access, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        send = _add_headers(send)
        headers = _Headers(scope)
        try:
            self.access.check_host(headers.get("host"))
            host = headers.get("host")[0]
            site, mode = headers.first("sec-fetch-site"), headers.first("sec-fetch-mode")
            self.access.check_origin(scope["method"], host, headers.get("origin"), site, mode)
        except RequestError as error:
            await _answer(send, 403, str(error))
            return
        path, token = self._split_path(scope["path"])
        tokens = [token, _read_bearer(headers), _read_cookie(headers)]
        if path == scope["path"] and self.access.token and (asked := self._read_query(scope)) is not None:
            if self.access.accepts(asked):
                await _redirect(scope, send, asked)
                return
            tokens = []
        if not any(self.access.accepts(token) for token in tokens):
            await _answer(send, 401, str(_make_token_error(host)), (b"www-authenticate", b"Bearer"))
            return
        # in place: uvicorn's access log shows what is in the scope by then
        scope["path"], scope["raw_path"] = path, quote(path).encode()
        await self._limit_body(scope, receive, send, headers)

    def _split_path(self, path: str) -> tuple[str, str | None]:
        """Return the path without the token in front of it, and the token, if there is one."""
        first, _, rest = path.removeprefix("/").partition("/")
        if self.access.token and self.access.accepts(first):
            return f"/{rest}", first
        return path, None

    def _read_query(self, scope: Scope) -> str | None:
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        return dict(pairs).get("token")

    async def _limit_body(self, scope: Scope, receive: Receive, send: Send, headers: _Headers) -> None:
        """Hand on a request, unless its body is larger than allowed, whether its length was announced or not."""
        limit = self.limit(scope["method"], scope["path"])
        refusal = str(RequestError("body", "more bytes", f"at most {limit:,}", "send less"))
        announced = headers.first("content-length")
        if announced is not None and not (announced.isdecimal() and int(announced) <= limit):
            await _answer(send, 413, refusal)
            return
        received, exceeded, answered = 0, False, False

        async def count() -> Message:
            nonlocal received, exceeded
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                exceeded = True
                raise RequestError("body", "more bytes", f"at most {limit:,}", "send less")
            return message

        async def forward(message: Message) -> None:
            nonlocal answered
            if not exceeded:  # FastAPI says of a body that could not be read that it could not be parsed
                answered = True
                await send(message)

        try:
            await self.app(scope, count, forward)
        except Exception:
            if not exceeded or answered:
                raise
        if exceeded and not answered:
            await _answer(send, 413, refusal)


class _Headers:
    """Headers of a request by their names in small letters."""

    def __init__(self, scope: Scope) -> None:
        self.pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]

    def get(self, name: str) -> list[str]:
        return [value for key, value in self.pairs if key == name]

    def first(self, name: str) -> str | None:
        return next(iter(self.get(name)), None)


def _read_bearer(headers: _Headers) -> str | None:
    kind, _, token = (headers.first("authorization") or "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


def _read_cookie(headers: _Headers) -> str | None:
    for header in headers.get("cookie"):
        try:
            morsel = SimpleCookie(header).get(COOKIE)
        except CookieError:
            continue
        if morsel is not None:
            return morsel.value
    return None


def _make_token_error(host: str) -> RequestError:
    return RequestError(
        "token",
        "none or another one",
        "the one that the server showed when it started",
        f"give http://{host}/TOKEN as the server in 3D Slicer, open http://{host}/ohif/?token=TOKEN in a browser, or "
        "send it as Authorization: Bearer TOKEN",
    )


def _add_headers(send: Send) -> Send:
    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
        await send(message)

    return add


async def _answer(send: Send, status: int, sentence: str, *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps({"detail": sentence}).encode()
    await _respond(send, status, body, [(b"content-type", b"application/json"), *headers])


async def _redirect(scope: Scope, send: Send, token: str) -> None:
    """Give the token back as a cookie and send the browser to the same page without it in the address."""
    pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    query = urlencode([(key, value) for key, value in pairs if key != "token"])
    # one slash: `//site/` would be a page of another site
    location = "/" + quote(scope["path"].lstrip("/")) + (f"?{query}" if query else "")
    cookie = f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict"
    headers = [(b"location", location.encode()), (b"set-cookie", cookie.encode()), (b"cache-control", b"no-store")]
    scope["query_string"] = query.encode()  # in place, as above
    await _respond(send, 303, b"", headers)


async def _respond(send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
