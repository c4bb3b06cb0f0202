# SPDX-License-Identifier: Apache-2.0
"""Downloads of public files: continued where they broke off, verified before they get their name, or explained."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import itertools
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

# 0.15 s beside the 1.5 s of torch, which this package imports anyway: not worth a late import
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import build_hf_headers

from tools import __version__
from tools.errors import ConfigValueError, DownloadError
from tools.weights.partial_files import PartialFile, explain_disk_errors

TIMEOUT_S = 30.0  # without a byte
RETRY_DELAYS_S = (1.0, 2.0, 4.0, 8.0)  # one more failure in a row, without a new byte, is the last
CHUNK_BYTES = 1 << 20
HASH_TYPES = ("md5", "sha1", "sha256", "sha512")

_AGAIN = "run the same command again"
_HUB_URL = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/resolve/([^/?#]+)/([^?#]+)")
_HINTS = {401: "a login is needed", 403: "a login or an accepted licence may be needed", 404: "it moved or is gone"}
_Result = TypeVar("_Result")
logger = logging.getLogger(__name__)


class _TemporaryError(DownloadError):
    """The next try may succeed."""


class _UnreachableError(_TemporaryError):
    """No server answered; another try is worth it only where one has answered before."""


def download(
    url: str,
    path: str | Path,
    *,
    size_bytes: int | None = None,
    hash_val: str | None = None,
    hash_type: str = "sha256",
    mirror: str | None = None,
    check: Callable[[Path], None] | None = None,
) -> Path:
    """Download `url` to `path`, unless the right file is there already; nothing wrong ever gets that name.

    Proxies are those of the environment (HTTPS_PROXY, NO_PROXY). A broken download is continued, by this call and
    by the next one, from `.<name>.part` beside `path`. Files of Hugging Face come with the token, cache, endpoint
    and offline mode of `huggingface_hub`; without `hash_val`, the SHA-256 that the hub tells is verified.

    Args:
        url: an http, https or file URL.
        path: the file to make; missing parent folders are made.
        size_bytes: the size of the right file, if known.
        hash_val: the hash of the right file in hexadecimal digits, if known.
        hash_type: one of `HASH_TYPES`.
        mirror: a folder, or the file or http(s) URL of one, that holds the file under the last name in `url`;
            `url` itself is then not asked.
        check: called with the complete file, before it gets its name or where it is already; raises to refuse it.

    Returns:
        The path, with `~` expanded.

    Raises:
        ConfigValueError: if `url`, `mirror`, `hash_val` or `hash_type` cannot be used.
        DownloadError: if the file cannot be had, or is not the one wanted.
    """
    path = Path(path).expanduser()
    place, headers = _choose_place(url, mirror)
    order = _Order(place, path, size_bytes, (hash_val or "").strip().lower(), hash_type, headers)
    hub_file = None if mirror else _HUB_URL.match(url)
    with explain_disk_errors(path):
        if not path.exists():
            with PartialFile(path) as part:
                if not path.exists():  # nor made by another process, for which this one waited
                    if hub_file:
                        order = _persist(partial(_ask_hub, order, *map(unquote, hub_file.groups())), part)
                    _fill(part, order, check)
                    part.publish()
                    return path
        order.verify(path, path, f"delete or move it and {_AGAIN}")
        if check:
            check(path)
    return path


@dataclass(frozen=True)
class _Order:
    """Which file to get, from an address without user and password, and where to put it."""

    place: str
    path: Path
    size_bytes: int | None
    hash_val: str  # empty if not known
    hash_type: str
    headers: dict[str, str] = field(default_factory=dict)  # secrets, for the first server only

    def __post_init__(self) -> None:
        if self.hash_type not in HASH_TYPES:
            raise ConfigValueError("hash_type", repr(self.hash_type), f"one of {', '.join(HASH_TYPES)}", "correct it")
        digits = 2 * hashlib.new(self.hash_type, usedforsecurity=False).digest_size
        if self.hash_val and not re.fullmatch(f"[0-9a-f]{{{digits}}}", self.hash_val):
            wanted = f"{digits} hexadecimal digits for {self.hash_type}"
            raise ConfigValueError("hash_val", repr(self.hash_val), wanted, "correct it or its hash_type")

    def complete(self, size_bytes: int | None, tag: str | None) -> _Order:
        """Add what the hub knows and the caller did not; its tag of a large file is the SHA-256, of others a SHA-1."""
        order = self if self.size_bytes is not None else replace(self, size_bytes=size_bytes)
        if self.hash_val or not tag or not re.fullmatch("[0-9a-f]{64}", tag):
            return order
        return replace(order, hash_val=tag, hash_type="sha256")

    def verify(self, file: Path, subject: object, remedy: str) -> None:
        """Compare a file with what is known of the right one."""
        if not file.is_file():
            raise DownloadError(subject, "a folder", "a file or nothing", remedy)
        size_bytes = file.stat().st_size
        if self.size_bytes is not None and size_bytes != self.size_bytes:
            raise DownloadError(subject, f"{size_bytes} bytes", f"{self.size_bytes} bytes", remedy)
        if self.hash_val:
            with file.open("rb") as opened:
                make_hash = partial(hashlib.new, self.hash_type, usedforsecurity=False)
                value = hashlib.file_digest(opened, make_hash).hexdigest()
            if value != self.hash_val:
                raise DownloadError(subject, f"{self.hash_type} {value}", f"{self.hash_type} {self.hash_val}", remedy)

    @property
    def remedy(self) -> str:
        """What a person can do instead."""
        put = f"put it at {self.path} and {_AGAIN}"
        if self.place.startswith("file:"):
            return f"copy the right file there, or {put}"
        where = "in a browser on a machine with network"
        return f"download {self.place} {where}, {put}; or give --mirror; behind a proxy set HTTPS_PROXY"

    def refuse(self, found: str, wanted: str = "the file", kind: type[DownloadError] = DownloadError) -> DownloadError:
        """Return the error for something else than the file."""
        return kind(self.place, found, wanted, self.remedy)

    def refuse_status(self, status: int) -> DownloadError:
        """Return the error for an HTTP status that brings no file."""
        hint = f" ({_HINTS[status]})" if status in _HINTS else ""
        found = f"HTTP status {status} {http.client.responses.get(status, '')}".rstrip() + hint
        is_temporary = status >= 500 or status in (408, 429)  # these: too slow, and too often
        return self.refuse(found, kind=_TemporaryError if is_temporary else DownloadError)


def _fill(part: PartialFile, order: _Order, check: Callable[[Path], None] | None) -> None:
    """Bring the whole, right file into the part; where it was continued and is wrong, once more from the start."""
    for last in (False, True):
        continued = _persist(partial(_fetch, part, order), part)
        try:
            order.verify(part.file_path, order.place, order.remedy)
            if check:
                check(part.file_path)
            return
        except Exception as error:  # an interruption leaves the part, which may be right
            part.clear()
            if last or not continued or not isinstance(error, DownloadError):
                raise
            logger.warning("%s: %s after a continued download; it starts anew", error.subject, error.found)


def _persist(action: Callable[[], _Result], part: PartialFile) -> _Result:
    """Repeat what failed for the moment, until it fails again and again without a new byte."""
    farthest, failures, answered = part.measure(), 0, False
    while True:
        try:
            return action()
        except _TemporaryError as error:
            if part.measure() > farthest:
                farthest, failures = part.measure(), 0
            answered = answered or not isinstance(error, _UnreachableError)
            if not answered or failures == len(RETRY_DELAYS_S):
                raise
            logger.warning("%s: %s; next try in %g s", error.subject, error.found, RETRY_DELAYS_S[failures])
            time.sleep(RETRY_DELAYS_S[failures])
            failures += 1


def _fetch(part: PartialFile, order: _Order) -> bool:
    """Ask the server for what is missing; return whether bytes of an earlier request are part of the result."""
    validator, total_bytes = part.read_note(order.place)
    # without either, nothing could tell the rest of this file from that of another version of it
    start = part.measure() if validator or order.hash_val else 0
    if start and start == total_bytes:
        return True
    asked = {"Range": f"bytes={start}-"} if start else {}
    if start and validator:
        asked["If-Range"] = validator
    with _open(order, asked) as response:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        told_bytes = int(span[2]) if span and int(span[1]) == start else None
        if start and response.status == 206 and told_bytes and total_bytes in (None, told_bytes):
            _receive(part, order, response, told_bytes)
        elif response.status in (200, None):  # from the start; files have no status
            start, length = 0, getattr(response, "length", response.headers.get("Content-Length"))
            _receive(part, order, response, order.size_bytes if length is None else int(length), anew=True)
        elif start and response.status in (206, 416):  # another rest than wanted, or none
            part.clear()
            return _fetch(part, order)
        else:
            raise order.refuse_status(response.status)
    return start > 0


def _receive(part: PartialFile, order: _Order, response: Any, total_bytes: int | None, anew: bool = False) -> None:
    """Add what a server sends to the part, all of it."""
    chunks = _read(response, order)
    first = next(chunks, b"")
    _refuse_other_content(order, response.headers.get_content_type(), first, total_bytes)
    if anew:
        tag = response.headers.get("ETag", "")  # a weak one, W/"...", does not promise the same bytes
        part.begin(order.place, tag if tag.startswith('"') else response.headers.get("Last-Modified"), total_bytes)
    part.append(itertools.chain([first], chunks), total_bytes)
    size_bytes = part.measure()
    if total_bytes is not None and size_bytes < total_bytes:
        found = f"a connection that ended after {size_bytes} of {total_bytes} bytes"
        raise order.refuse(found, kind=_TemporaryError)
    if total_bytes is not None and size_bytes > total_bytes:
        part.clear()
        raise order.refuse(f"{size_bytes} bytes", f"{total_bytes} bytes")


def _refuse_other_content(order: _Order, content_type: str, first: bytes, total_bytes: int | None) -> None:
    """Raise if an answer is not the file, before anything is overwritten with it."""
    if content_type == "text/html" and first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        remedy = f"open {order.place} in a browser, a login or a redirect may be needed; put the file at {order.path}"
        raise DownloadError(order.place, "a web page", "the file", f"{remedy} and {_AGAIN}")
    if not first and not total_bytes:
        raise order.refuse("an empty answer")
    if total_bytes is not None and order.size_bytes not in (None, total_bytes):
        raise order.refuse(f"{total_bytes} bytes", f"{order.size_bytes} bytes")


def _open(order: _Order, asked: dict[str, str]) -> Any:
    """Send a request and return the response, whatever its status."""
    headers = {"User-Agent": f"voxseg/{__version__}", **asked}
    try:
        request = urllib.request.Request(order.place, headers=headers)
        for name, value in order.headers.items():
            request.add_unredirected_header(name, value)
        return urllib.request.build_opener().open(request, timeout=TIMEOUT_S)  # a new one knows a changed environment
    except urllib.error.HTTPError as error:
        return error
    except urllib.error.URLError as error:
        found = "no such file" if order.place.startswith("file:") else "no connection"
        raise order.refuse(f"{found} ({_describe(error)})", kind=_UnreachableError) from error
    except (http.client.InvalidURL, ValueError) as error:
        found = f"an address that cannot be used ({_describe(error)})"
        raise ConfigValueError(order.place, found, "http or https", "correct it, or that of the proxy") from error
    except (OSError, http.client.HTTPException) as error:
        raise order.refuse(f"no answer ({_describe(error)})", kind=_TemporaryError) from error


def _read(response: Any, order: _Order) -> Iterator[bytes]:
    try:
        while chunk := response.read1(CHUNK_BYTES):  # what there is: more would be lost with the connection
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise order.refuse(f"a transfer that broke off ({_describe(error)})", kind=_TemporaryError) from error


def _ask_hub(order: _Order, repo_id: str, revision: str, filename: str) -> _Order:
    """Return the order as the hub, or its cache on this machine, can fill it.

    Only the metadata come through the package: `hf_hub_download` of 2.4 starts anew after every aborted download.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None  # the package reads it only when imported
    try:
        order = replace(order, place=hf_hub_url(repo_id, filename, revision=revision, endpoint=endpoint))
    except HFValidationError as error:
        raise ConfigValueError(order.place, repr(repo_id), "the name of a repository", "correct it") from error
    try:
        found = get_hf_file_metadata(order.place, endpoint=endpoint)
    except (HTTPError, OSError) as error:
        if cached := _find_cached(order, repo_id, revision, filename):
            logger.warning("%s: not to be had (%s), so it is taken from the cache", order.place, _describe(error))
            return cached
        if isinstance(error, HfHubHTTPError):
            raise order.refuse_status(error.response.status_code) from error
        raise order.refuse(f"no connection ({_describe(error)})", kind=_UnreachableError) from error
    if found.commit_hash and (cached := _find_cached(order, repo_id, found.commit_hash, filename)):
        return cached
    token = build_hf_headers().get("authorization")
    order = replace(order, headers={"Authorization": token} if token else {})
    return order.complete(found.size, found.etag)


def _find_cached(order: _Order, repo_id: str, revision: str, filename: str) -> _Order | None:
    found = try_to_load_from_cache(repo_id, filename, revision=revision)
    if not isinstance(found, str):
        return None
    cached = Path(found).absolute()  # a link to its content, which has the hub's tag as its name
    tag = cached.readlink().name if cached.is_symlink() else None
    return replace(order, place=cached.as_uri()).complete(None, tag)


def _choose_place(url: str, mirror: str | None) -> tuple[str, dict[str, str]]:
    """Return the URL to ask, without user and password, and the header that tells those."""
    name = PurePosixPath(_split(url).path).name
    if mirror and "://" not in mirror:
        return (Path(mirror).expanduser().absolute() / PurePosixPath(unquote(name)).name).as_uri(), {}
    parts = _split(mirror or url)
    if mirror:
        parts = parts._replace(path=f"{parts.path.rstrip('/')}/{name}")
    user, _, host = parts.netloc.rpartition("@")
    headers = {"Authorization": f"Basic {base64.b64encode(unquote(user).encode()).decode()}"} if user else {}
    return parts._replace(netloc=host).geturl(), headers


def _split(url: str) -> SplitResult:
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        host = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0  # may raise
        if host or parts.scheme == "file":
            return parts
    shown = url.rpartition("@")[2]  # without user and password
    raise ConfigValueError(shown, "no address that can be used", "http://, https:// or file:///", "correct it")


def _describe(error: Exception) -> str:
    reason = getattr(error, "reason", error)  # urllib wraps what happened
    if isinstance(reason, TimeoutError):
        return f"nothing for {TIMEOUT_S:g} s"
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return " ".join(re.sub(r"^\[Errno -?\d+\] ", "", text).split())
