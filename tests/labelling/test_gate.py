# SPDX-License-Identifier: Apache-2.0
"""The gate lets a request through as it is, or answers it in a sentence; it needs no web framework."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from tools.labelling.access import Access, make_access
from tools.labelling.gate import COOKIE, Gate

TOKEN = "token-of-the-test-0123456789"
HOST = (b"host", b"127.0.0.1:8000")
OPEN, GUARDED = make_access("127.0.0.1"), make_access("127.0.0.1", token=TOKEN)
LIMIT = 10


class Behind:
    """An application that reads the body and keeps what it got."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] != "http":
            return
        body, more = b"", True
        try:
            while more:
                message = await receive()
                body, more = body + message["body"], message["more_body"]
        except Exception:  # as FastAPI does
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b"There was an error parsing the body"})
            return
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"answer"})


class Answer:
    """What came back, and what came through."""

    def __init__(self, messages: list[Any], behind: Behind) -> None:
        self.status = messages[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
        self.body = b"".join(message["body"] for message in messages[1:])
        self.behind = behind

    @property
    def detail(self) -> str:
        return json.loads(self.body)["detail"]


def ask(
    access: Access,
    path: str = "/info/",
    headers: Sequence[tuple[bytes, bytes]] = (),
    method: str = "GET",
    query: str = "",
    blocks: Sequence[bytes] = (b"",),
) -> Answer:
    behind, messages = Behind(), []
    waiting = [{"type": "http.request", "body": block, "more_body": True} for block in blocks]
    waiting[-1]["more_body"] = False

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [HOST, *headers],
    }
    asyncio.run(Gate(behind, access, lambda method, path: LIMIT)(scope, receive, send))
    return Answer(messages, behind)


def test_sound_request_goes_through_with_its_body():
    answer = ask(OPEN, "/datastore/", method="PUT", query="image=a", blocks=[b"12345", b"67890"])
    assert (answer.status, answer.body) == (200, b"answer")
    assert answer.behind.bodies == [b"1234567890"]
    (scope,) = answer.behind.scopes
    assert (scope["path"], scope["query_string"]) == ("/datastore/", b"image=a")


@pytest.mark.parametrize(
    "headers",
    [[(b"origin", b"http://evil.test")], [(b"Sec-Fetch-Site", b"cross-site")], [(b"host", b"evil.test")]],
)
def test_foreign_request_does_not_go_through(headers: list[tuple[bytes, bytes]]):
    answer = ask(OPEN, headers=headers)
    assert answer.status == 403
    assert ": found " in answer.detail
    assert not answer.behind.scopes


@pytest.mark.parametrize("blocks", [[b"x" * 11], [b"x" * 6, b"x" * 5]])
@pytest.mark.parametrize("announced", [False, True])
def test_too_large_a_body_is_refused(blocks: list[bytes], announced: bool):
    headers = [(b"content-length", b"11")] if announced else []
    answer = ask(OPEN, method="PUT", headers=headers, blocks=blocks)
    assert answer.status == 413
    assert answer.detail == "body: found more bytes, wanted at most 10; send less."
    assert not answer.behind.bodies
    assert len(answer.behind.scopes) == (0 if announced else 1)


@pytest.mark.parametrize("length", [b"-1", b"x", b"1e3"])
def test_length_that_is_no_number_is_refused(length: bytes):
    assert ask(OPEN, headers=[(b"content-length", length)]).status == 413


def test_every_answer_says_that_it_is_no_page_to_guess_and_to_frame():
    for answer in (ask(OPEN), ask(OPEN, headers=[(b"host", b"x")]), ask(GUARDED)):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "SAMEORIGIN"
    assert ask(OPEN).headers["a"] == "b"


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/info/", [(b"authorization", f"Bearer {TOKEN}".encode())]),
        ("/info/", [(b"Authorization", f"bearer {TOKEN}".encode())]),
        ("/info/", [(b"cookie", f"a=b; {COOKIE}={TOKEN}".encode())]),
        (f"/{TOKEN}/info/", []),
    ],
)
def test_token_is_taken_from_header_cookie_and_path(path: str, headers: list[tuple[bytes, bytes]]):
    answer = ask(GUARDED, path, headers)
    assert answer.status == 200
    assert answer.behind.scopes[0]["path"] == "/info/"
    assert TOKEN not in repr(answer.behind.scopes[0]["raw_path"])


@pytest.mark.parametrize(
    ("path", "headers", "query"),
    [
        ("/info/", [], ""),
        ("/info/", [(b"authorization", b"Bearer x")], ""),
        ("/info/", [(b"authorization", f"Basic {TOKEN}".encode())], ""),
        ("/info/", [(b"cookie", f"{COOKIE}={TOKEN[:-1]}".encode())], ""),
        ("/info/", [(b"cookie", b"\xff;;=")], ""),
        (f"/{TOKEN}x/info/", [], ""),
        (f"//{TOKEN}/info/", [], ""),
        ("/info/", [], "token=x"),
        ("/info/", [], "token="),
    ],
)
def test_without_the_token_nothing_goes_through(path: str, headers: list[tuple[bytes, bytes]], query: str):
    answer = ask(GUARDED, path, headers, query=query)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.detail.startswith("token: found none or another one, wanted the one that the server showed")
    assert not answer.behind.scopes


@pytest.mark.parametrize(
    ("path", "query", "location"),
    [
        ("/ohif/", f"token={TOKEN}", "/ohif/"),
        ("/ohif/", f"a=1&token={TOKEN}&b=x%26y", "/ohif/?a=1&b=x%26y"),
        ("//evil.test/", f"token={TOKEN}", "/evil.test/"),
        ("/\\evil.test/", f"token={TOKEN}", "/%5Cevil.test/"),
        ("/a\r\nSet-Cookie: b", f"token={TOKEN}", "/a%0D%0ASet-Cookie%3A%20b"),
    ],
)
def test_token_in_the_query_becomes_a_cookie(path: str, query: str, location: str):
    answer = ask(GUARDED, path, query=query)
    assert (answer.status, answer.headers["location"]) == (303, location)
    assert answer.headers["set-cookie"] == f"{COOKIE}={TOKEN}; Path=/; HttpOnly; SameSite=Strict"
    assert not answer.behind.scopes


def test_only_http_goes_through_and_the_start_of_the_server():
    behind, messages = Behind(), []

    async def send(message: Any) -> None:
        messages.append(message)

    for kind in ("websocket", "lifespan"):
        asyncio.run(Gate(behind, OPEN, lambda method, path: LIMIT)({"type": kind, "headers": [HOST]}, None, send))
    assert messages == [{"type": "websocket.close", "code": 1008}]
    assert [scope["type"] for scope in behind.scopes] == ["lifespan"]
