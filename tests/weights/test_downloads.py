# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import multiprocessing
import os
import re
import shutil
import signal
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
from huggingface_hub.utils import close_session

from tools.errors import CheckpointError, ConfigValueError, DownloadError
from tools.files import write_json
from tools.weights import downloads, partial_files
from tools.weights.downloads import download

CONTENT = bytes(range(256)) * 40
OTHER = CONTENT[::-1]
HALF = len(CONTENT) // 2
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_URL = "https://huggingface.co/owner/repo/resolve/main/folder/a.bin"
HANG_UP = 0
DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


@dataclass
class Drop:
    """End the connection after so many bytes of the body; politely or not."""

    bytes: int
    reset: bool = False


@dataclass
class Site:
    """What the server gives, and what it was asked for."""

    content: bytes = CONTENT
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"v1"'})
    has_ranges: bool = True
    has_length: bool = True
    content_range: str = "bytes {start}-{last}/{total}"
    faults: list[int | Drop | None] = field(default_factory=list)  # of the next requests; a number is a status
    redirects: dict[str, str] = field(default_factory=dict)
    redirect_headers: dict[str, str] = field(default_factory=dict)
    stall: threading.Event | None = None  # to wait for in the middle of the body
    log: list[SimpleNamespace] = field(default_factory=list)
    url: str = ""

    @property
    def sent_bytes(self) -> list[int]:
        return [request.sent_bytes for request in self.log if request.method == "GET"]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_CONNECT(self):
        self.do_GET()

    def do_GET(self):
        site = self.server.site
        request = SimpleNamespace(method=self.command, path=self.path, headers=self.headers, sent_bytes=0)
        site.log.append(request)
        fault = site.faults.pop(0) if site.faults else None
        if fault == HANG_UP:
            return None
        if isinstance(fault, int):
            return self.send_error(fault)
        if target := site.redirects.get(self.path):
            return self.answer(302, {"Location": target, "Content-Length": "0"} | site.redirect_headers)
        start, total = 0, len(site.content)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        validators = (None, site.headers.get("ETag"), site.headers.get("Last-Modified"))
        if asked and site.has_ranges and self.headers.get("If-Range") in validators:
            start = int(asked[1])
            if start >= total:
                return self.answer(416, {"Content-Length": "0"})
        headers = dict(site.headers)
        if site.has_length:
            headers["Content-Length"] = str(total - start)
        if start:
            headers["Content-Range"] = site.content_range.format(start=start, last=total - 1, total=total)
        body = site.content[start : start + fault.bytes] if fault else site.content[start:]
        request.sent_bytes = len(body)
        self.answer(206 if start else 200, headers)
        if self.command == "HEAD":
            return None
        self.wfile.write(body[: len(body) // 2])
        if site.stall:
            site.stall.wait(20)
        with contextlib.suppress(OSError):  # the client may be gone
            self.wfile.write(body[len(body) // 2 :])
        if fault and fault.reset:  # no lingering: the other side gets "connection reset by peer"
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
        return None

    def answer(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@contextlib.contextmanager
def serve(**settings):
    site = Site(**settings)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.site = site
    site.url = f"http://127.0.0.1:{server.server_address[1]}/a.bin"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        if site.stall:
            site.stall.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def site():
    with serve() as site:
        yield site


@pytest.fixture
def path(tmp_path):
    return tmp_path / "models" / "a.bin"


@pytest.fixture(autouse=True)
def naps(monkeypatch, tmp_path):
    """Clear the environment of proxies and hubs; return the delays, which are not slept."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "hf_endpoint", "hf_token"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    naps: list[float] = []
    monkeypatch.setattr(downloads, "time", SimpleNamespace(sleep=naps.append))
    return naps


def list_names(path):
    return sorted(file.name for file in path.parent.iterdir())


def abort(site, path, **options):
    """Let a download end with half of the file."""
    delays, downloads.RETRY_DELAYS_S = downloads.RETRY_DELAYS_S, ()
    site.faults.append(Drop(HALF))
    try:
        with pytest.raises(DownloadError):
            download(site.url, path, **options)
    finally:
        downloads.RETRY_DELAYS_S = delays
    assert path.with_name(".a.bin.part").read_bytes() == site.content[:HALF]
    site.log.clear()


# --- whole files


def test_a_file_is_downloaded_with_its_folder(site, path):
    assert download(site.url, path, size_bytes=len(CONTENT), hash_val=SHA256) == path
    assert path.read_bytes() == CONTENT
    assert list_names(path) == ["a.bin"]  # no part, no note, no lock
    assert "voxseg" in site.log[0].headers["User-Agent"]
    assert "Range" not in site.log[0].headers


def test_the_path_may_be_text_and_start_at_the_home_folder(site, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download(site.url, "~/b.bin") == tmp_path / "b.bin"
    assert (tmp_path / "b.bin").read_bytes() == CONTENT


def test_a_file_is_as_readable_as_any_other(site, path):
    download(site.url, path)
    other = path.with_name("other")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_a_file_without_a_told_length_is_downloaded(site, path):
    site.has_length = False
    download(site.url, path)
    assert path.read_bytes() == CONTENT


def test_redirects_are_followed(site, path):
    with serve() as first:
        first.redirects["/a.bin"] = site.url
        download(first.url, path, hash_val=SHA256)
    assert path.read_bytes() == CONTENT
    assert site.sent_bytes == [len(CONTENT)]


def test_a_redirect_to_a_local_file_is_refused(site, path, tmp_path):
    (tmp_path / "secret").write_bytes(CONTENT)
    site.redirects["/a.bin"] = (tmp_path / "secret").as_uri()
    with pytest.raises(DownloadError, match="HTTP status 302"):
        download(site.url, path)
    assert list_names(path) == []


@pytest.mark.parametrize("kind", ["md5", "sha1", "sha256", "sha512"])
def test_each_hash_is_verified(site, path, kind):
    right, wrong = (hashlib.new(kind, content).hexdigest() for content in (CONTENT, OTHER))
    with pytest.raises(DownloadError, match=f"found {kind} {right}, wanted {kind} {wrong}; download http.*put it at"):
        download(site.url, path, hash_val=wrong, hash_type=kind)
    assert list_names(path) == []
    assert len(site.log) == 1  # nothing was continued, so the same would come again
    download(site.url, path, hash_val=right.upper(), hash_type=kind)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("options", "subject"),
    [({"hash_type": "crc32"}, "hash_type"), ({"hash_val": "abc"}, "hash_val"), ({"hash_val": "x" * 64}, "hash_val")],
)
def test_an_unusable_hash_is_told_before_anything_is_downloaded(site, path, options, subject):
    with pytest.raises(ConfigValueError) as caught:
        download(site.url, path, **options)
    assert caught.value.subject == subject
    assert not site.log


@pytest.mark.parametrize("has_length", [True, False])
def test_a_file_of_another_size_is_refused(site, path, has_length):
    site.has_length = has_length
    with pytest.raises(DownloadError, match=rf"found {len(CONTENT)} bytes, wanted {HALF} bytes"):
        download(site.url, path, size_bytes=HALF)
    assert not path.exists()


def test_an_empty_answer_is_refused(site, path):
    site.content = b""
    with pytest.raises(DownloadError, match="found an empty answer"):
        download(site.url, path)
    assert list_names(path) == []


def test_a_web_page_is_refused(site, path):
    site.content = b"\n<!DOCTYPE html><title>Log in</title>"
    site.headers = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(
        DownloadError, match=r"found a web page, wanted the file; open http://\S+ in a browser, a login"
    ):
        download(site.url, path)
    assert list_names(path) == []


@pytest.mark.parametrize(("content", "kind"), [(CONTENT, "text/html"), (b"<html>", "application/octet-stream")])
def test_what_only_resembles_a_web_page_is_taken(site, path, content, kind):
    site.content, site.headers = content, {"Content-Type": kind}
    download(site.url, path)
    assert path.read_bytes() == content


# --- files that are there already


@pytest.mark.parametrize("known", [{}, {"size_bytes": len(CONTENT)}, {"hash_val": SHA256}])
def test_a_right_file_is_taken_without_network(path, known):
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    assert download("http://127.0.0.1:9/a.bin", path, **known) == path
    assert download(HUB_URL, path, **known) == path


@pytest.mark.parametrize(
    ("known", "found", "wanted"),
    [
        ({"size_bytes": 5}, f"{len(CONTENT)} bytes", "5 bytes"),
        ({"hash_val": "0" * 64}, f"sha256 {SHA256}", f"sha256 {'0' * 64}"),
    ],
)
def test_a_wrong_file_is_left_and_told(site, path, known, found, wanted):
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    with pytest.raises(DownloadError, match="delete or move it and run the same command again") as caught:
        download(site.url, path, **known)
    assert (caught.value.subject, caught.value.found, caught.value.wanted) == (str(path), found, wanted)
    assert path.read_bytes() == CONTENT
    assert not site.log


def test_a_folder_in_the_place_of_the_file_is_told(site, path):
    path.mkdir(parents=True)
    with pytest.raises(DownloadError, match="found a folder"):
        download(site.url, path)


# --- a look into the file


@pytest.mark.parametrize("exists", [False, True])
def test_the_check_sees_the_whole_file(site, path, exists):
    path.parent.mkdir()
    if exists:
        path.write_bytes(CONTENT)
    seen = []
    download(site.url, path, check=lambda file: seen.append((file.read_bytes(), path.exists())))
    assert seen == [(CONTENT, exists)]


def test_a_refused_file_does_not_get_the_name(site, path):
    def refuse(file):
        raise CheckpointError(file, "3 tensors", "5 tensors", "take another")

    with pytest.raises(CheckpointError):
        download(site.url, path, check=refuse)
    assert list_names(path) == []
    path.write_bytes(CONTENT)
    with pytest.raises(CheckpointError):
        download(site.url, path, check=refuse)
    assert path.read_bytes() == CONTENT  # who put it there may delete it


def test_an_interrupted_check_does_not_cost_the_download(site, path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(site.url, path, check=interrupt)
    assert list_names(path) == [".a.bin.part", ".a.bin.part.json"]
    download(site.url, path)
    assert path.read_bytes() == CONTENT
    assert site.sent_bytes == [len(CONTENT)]


def test_the_file_is_on_the_disk_before_it_gets_its_name(site, path, monkeypatch):
    synced = []

    def sync(number, original=os.fsync):
        synced.append((os.fstat(number).st_size, path.exists()))
        original(number)

    monkeypatch.setattr(os, "fsync", sync)
    download(site.url, path)
    assert synced[-1] == (len(CONTENT), False)


# --- broken downloads


@pytest.mark.parametrize("reset", [False, True])
def test_a_dropped_connection_is_continued(site, path, reset, naps):
    site.faults = [Drop(HALF, reset)]
    download(site.url, path)
    assert path.read_bytes() == CONTENT
    second = site.log[1]
    start = int(second.headers["Range"].removeprefix("bytes=").removesuffix("-"))
    assert second.headers["If-Range"] == '"v1"'
    assert second.sent_bytes == len(CONTENT) - start
    assert start == HALF if not reset else start <= HALF
    assert len(naps) == 1


def test_an_aborted_download_is_continued_by_the_next_call(site, path):
    abort(site, path)
    download(site.url, path, hash_val=SHA256)
    assert path.read_bytes() == CONTENT
    assert site.sent_bytes == [len(CONTENT) - HALF]
    assert site.log[0].headers["Range"] == f"bytes={HALF}-"
    assert list_names(path) == ["a.bin"]


@pytest.mark.costs(processes=1)
def test_a_killed_download_is_continued_by_the_next_call(site, path):
    site.stall = threading.Event()
    process = multiprocessing.get_context("fork").Process(target=download, args=(site.url, path))
    process.start()
    part = path.with_name(".a.bin.part")
    wait_until(lambda: part.exists() and part.stat().st_size == HALF)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    site.stall.set()
    site.log.clear()
    download(site.url, path)
    assert path.read_bytes() == CONTENT
    assert site.sent_bytes == [len(CONTENT) - HALF]


def test_many_drops_are_survived_while_bytes_arrive(site, path):
    site.faults = [Drop(len(CONTENT) // 20)] * (2 * len(downloads.RETRY_DELAYS_S) + 2)
    download(site.url, path)
    assert path.read_bytes() == CONTENT


def test_a_file_that_the_server_always_truncates_is_given_up(site, path, naps):
    site.has_ranges = False
    site.faults = [Drop(HALF)] * 20
    with pytest.raises(DownloadError, match=f"a connection that ended after {HALF} of {len(CONTENT)} bytes"):
        download(site.url, path)
    assert not path.exists()
    assert naps == [1, 2, 4, 8]
    assert len(site.log) == 1 + len(naps)


def test_a_known_size_tells_a_truncated_file_where_the_server_does_not(site, path):
    site.has_length = False
    site.faults = [Drop(HALF)]
    download(site.url, path, size_bytes=len(CONTENT))
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("headers", [{}, {"Content-Range": f"bytes {HALF}-{len(CONTENT) - 1}/{len(CONTENT)}"}])
def test_a_server_without_ranges_sends_all_again(site, path, headers):
    site.has_ranges = False
    site.headers |= headers
    abort(site, path)
    with pytest.raises(DownloadError, match="found sha256"):
        download(site.url, path, hash_val="0" * 64)
    assert site.sent_bytes == [len(CONTENT)]  # not continued, so not once more
    site.faults = [Drop(HALF)]
    download(site.url, path, hash_val=SHA256)
    assert path.read_bytes() == CONTENT
    assert site.sent_bytes == [len(CONTENT), HALF, len(CONTENT)]


@pytest.mark.parametrize("validator", ["ETag", "Last-Modified"])
def test_a_file_that_changed_meanwhile_is_downloaded_from_the_start(site, path, validator):
    old, new = ('"v1"', '"v2"') if validator == "ETag" else (DATE, DATE.replace("2015", "2016"))
    site.headers = {validator: old}
    abort(site, path)
    site.content, site.headers = OTHER, {validator: new}
    download(site.url, path)
    assert path.read_bytes() == OTHER
    assert site.log[0].headers["If-Range"] == old


def test_a_weak_validator_is_not_relied_on(site, path):
    site.headers = {"ETag": 'W/"v1"'}
    abort(site, path)
    download(site.url, path)
    assert site.sent_bytes == [len(CONTENT)]
    path.unlink()
    site.headers = {"ETag": 'W/"v1"', "Last-Modified": DATE}
    abort(site, path)
    download(site.url, path)
    assert site.log[0].headers["If-Range"] == DATE
    assert site.sent_bytes == [len(CONTENT) - HALF]


def test_without_validator_only_a_known_hash_allows_to_continue(site, path):
    site.headers = {}
    abort(site, path)
    download(site.url, path, hash_val=SHA256)
    assert site.sent_bytes == [len(CONTENT) - HALF]
    path.unlink()
    abort(site, path)
    site.content = OTHER
    download(site.url, path)
    assert path.read_bytes() == OTHER


def test_a_continued_file_with_a_wrong_hash_is_downloaded_once_more(site, path):
    site.headers = {}
    abort(site, path)
    site.content = OTHER
    download(site.url, path, hash_val=hashlib.sha256(OTHER).hexdigest())
    assert path.read_bytes() == OTHER
    assert site.sent_bytes == [len(CONTENT) - HALF, len(CONTENT)]


def test_a_wrong_hash_is_not_downloaded_for_ever(site, path):
    abort(site, path)
    site.faults = [None, Drop(HALF)]  # the second attempt is continued too
    with pytest.raises(DownloadError, match="found sha256"):
        download(site.url, path, hash_val="0" * 64)
    assert site.sent_bytes == [len(CONTENT) - HALF, HALF, len(CONTENT) - HALF]
    assert list_names(path) == []


@pytest.mark.parametrize("total_bytes", [len(CONTENT), None])
@pytest.mark.parametrize("lie", ["bytes 7-{last}/{total}", "bytes {start}-{last}/*", ""])
def test_another_range_than_wanted_is_not_appended(site, path, lie, total_bytes):
    abort(site, path)
    write_json(path.with_name(".a.bin.part.json"), {"url": site.url, "validator": '"v1"', "total_bytes": total_bytes})
    site.content_range = lie
    download(site.url, path)
    assert path.read_bytes() == CONTENT
    assert "Range" not in site.log[1].headers


@pytest.mark.parametrize("total_bytes", [len(CONTENT), None])
def test_the_rest_of_a_file_of_another_size_is_refused(site, path, total_bytes):
    abort(site, path)
    write_json(path.with_name(".a.bin.part.json"), {"url": site.url, "validator": '"v1"', "total_bytes": total_bytes})
    site.content_range = "bytes {start}-{last}/9999"
    if total_bytes is None:  # only what arrives shows that the server is wrong
        with pytest.raises(DownloadError, match=f"found {len(CONTENT)} bytes, wanted 9999 bytes"):
            download(site.url, path)
        assert list_names(path) == []
    download(site.url, path)
    assert path.read_bytes() == CONTENT


def test_a_file_that_became_shorter_is_downloaded_from_the_start(site, path):
    abort(site, path)
    site.content = OTHER[: HALF - 1]  # the range is outside of it: status 416
    download(site.url, path)
    assert path.read_bytes() == site.content
    assert "Range" not in site.log[1].headers


def test_a_part_from_another_address_is_not_continued(site, path):
    abort(site, path)
    with serve(content=OTHER) as other:  # with the same ETag
        download(other.url, path)
    assert path.read_bytes() == OTHER


@pytest.mark.parametrize("note", ["", "{", "[]", "{}", "null"])
def test_a_damaged_note_means_from_the_start(site, path, note):
    abort(site, path)
    path.with_name(".a.bin.part.json").write_text(note)
    download(site.url, path)
    assert path.read_bytes() == CONTENT
    assert site.sent_bytes == [len(CONTENT)]


def test_another_file_in_between_does_not_cost_what_has_arrived(site, path):
    abort(site, path)
    site.content, site.headers = OTHER[:-1], {"ETag": '"v2"'}
    with pytest.raises(DownloadError, match=f"found {len(CONTENT) - 1} bytes, wanted {len(CONTENT)} bytes"):
        download(site.url, path, size_bytes=len(CONTENT))
    site.content, site.headers = CONTENT, {"ETag": '"v1"'}
    site.log.clear()
    download(site.url, path)
    assert site.sent_bytes == [len(CONTENT) - HALF]


def test_a_web_page_in_between_does_not_cost_what_has_arrived(site, path):
    abort(site, path)
    site.content, site.headers = b"<html>Accept our terms</html>", {"Content-Type": "text/html"}
    with pytest.raises(DownloadError, match="a web page"):
        download(site.url, path)
    site.content, site.headers = CONTENT, {"ETag": '"v1"'}
    site.log.clear()
    download(site.url, path)
    assert site.sent_bytes == [len(CONTENT) - HALF]


# --- servers that do not answer


@pytest.mark.parametrize("status", [404, 403, 401, 410])
def test_a_refusing_server_is_not_asked_again(site, path, status):
    site.faults = [status]
    with pytest.raises(DownloadError, match=rf"{site.url}: found HTTP status {status} \w+.*") as caught:
        download(site.url, path)
    assert f"download {site.url} in a browser on a machine with network, put it at {path}" in caught.value.remedy
    assert "--mirror" in caught.value.remedy
    assert "HTTPS_PROXY" in caught.value.remedy
    assert len(site.log) == 1
    assert list_names(path) == []


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_busy_server_is_asked_again(site, path, status, naps):
    site.faults = [status, status]
    download(site.url, path)
    assert path.read_bytes() == CONTENT
    assert naps == [1, 2]


def test_a_server_that_hangs_up_is_asked_again(site, path, naps):
    site.faults = [HANG_UP]
    download(site.url, path)
    assert path.read_bytes() == CONTENT
    assert naps == [1]
    site.faults = [HANG_UP] * 20
    with pytest.raises(DownloadError, match=r"found no answer \(Remote end closed connection"):
        download(site.url, path.with_name("b.bin"))


def test_a_server_that_stays_busy_is_given_up(site, path):
    site.faults = [503] * 20
    with pytest.raises(DownloadError, match="found HTTP status 503 Service Unavailable"):
        download(site.url, path)
    assert len(site.log) == 1 + len(downloads.RETRY_DELAYS_S)


def find_dead_url():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/a.bin"


def test_nobody_listening_is_told_at_once(path, naps):
    url = find_dead_url()
    with pytest.raises(DownloadError, match=rf"{url}: found no connection \(Connection refused\), wanted the file"):
        download(url, path)
    assert naps == []


def test_an_unknown_host_is_told_at_once(path, monkeypatch, naps):
    def look_up(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(DownloadError, match=r"found no connection \(Name or service not known\)"):
        download("https://weights.invalid/a.bin", path)
    assert naps == []


def test_a_network_that_fails_after_some_bytes_is_waited_for(site, path, monkeypatch):
    asked = []

    def connect(address, *args, original=socket.create_connection, **options):
        asked.append(address)
        if len(asked) in (2, 3):
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        return original(address, *args, **options)

    site.faults = [Drop(HALF)]
    monkeypatch.setattr(socket, "create_connection", connect)
    download(site.url, path)
    assert path.read_bytes() == CONTENT
    assert len(asked) == 4


def test_a_silent_server_is_given_up(site, path, monkeypatch):
    site.stall, site.has_ranges = threading.Event(), False
    monkeypatch.setattr(downloads, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(downloads, "RETRY_DELAYS_S", (0,))
    with pytest.raises(DownloadError, match=r"a transfer that broke off \(nothing for 0.1 s\)"):
        download(site.url, path)
    assert not path.exists()


# --- addresses


@pytest.mark.parametrize(
    "url", ["ftp://host/a", "a.bin", "", "http:///a", "http://[::1/a", "http://u:secret@host:port/a", "u:secret@host/a"]
)
@pytest.mark.parametrize("as_mirror", [False, True])
def test_other_addresses_are_refused(path, url, as_mirror):
    if as_mirror and "://" not in url:
        return  # a folder, or none
    with pytest.raises(ConfigValueError, match=r"http://, https:// or file:///") as caught:
        download("http://host/a" if as_mirror else url, path, mirror=url if as_mirror else None)
    assert "secret" not in str(caught.value)


def test_an_address_with_a_blank_is_refused(site, path):
    with pytest.raises(ConfigValueError, match="an address that cannot be used"):
        download(f"{site.url} b", path)


def test_a_password_is_used_but_not_shown(site, path, caplog):
    url = site.url.replace("http://", "http://me:se%20cret@")
    with serve() as elsewhere:
        site.redirects["/a.bin"] = elsewhere.url
        elsewhere.faults = [503, Drop(HALF), 404]
        with pytest.raises(DownloadError) as caught:
            download(url, path)
        assert elsewhere.log[0].headers["Authorization"] is None
    assert site.log[0].headers["Authorization"] == "Basic bWU6c2UgY3JldA=="
    told = str(caught.value) + caplog.text + path.with_name(".a.bin.part.json").read_text()
    assert site.url in told
    assert not re.search("me:|se%20cret|se cret", told)


def test_a_local_file_is_copied(tmp_path, path):
    source = tmp_path / "a b.bin"
    source.write_bytes(CONTENT)
    download(source.as_uri(), path, hash_val=SHA256, size_bytes=len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert list_names(path) == ["a.bin"]
    with pytest.raises(DownloadError, match=r"c.bin: found no such file \(.*\), wanted the file; copy the right file"):
        download((tmp_path / "c.bin").as_uri(), path.with_name("c.bin"))


@pytest.mark.parametrize("as_url", [False, True])
def test_a_mirror_may_be_a_folder(tmp_path, path, as_url):
    mirror = tmp_path / "mir ror"
    mirror.mkdir()
    (mirror / "a b.bin").write_bytes(CONTENT)
    place = mirror.as_uri() if as_url else str(mirror)
    download("http://weights.invalid/folder/a%20b.bin?x=1", path, mirror=place, hash_val=SHA256)
    assert path.read_bytes() == CONTENT
    with pytest.raises(DownloadError, match="found no such file"):
        download("http://weights.invalid/c.bin", path.with_name("c.bin"), mirror=place)
    with pytest.raises(DownloadError, match="found sha256"):
        download("http://weights.invalid/a%20b.bin", path.with_name("d"), mirror=place, hash_val="0" * 64)
    assert list_names(path) == ["a.bin"]


def test_a_mirror_may_be_relative_to_the_working_folder(tmp_path, path, monkeypatch):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    monkeypatch.chdir(tmp_path)
    download("http://weights.invalid/a.bin", path, mirror=".")
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("url", ["http://weights.invalid/folder/a.bin", HUB_URL])
def test_a_mirror_may_be_a_url_and_replaces_the_hub_too(site, path, url):
    download(url, path, mirror=site.url.replace("/a.bin", "/pub/?key=1"), hash_val=SHA256)
    assert path.read_bytes() == CONTENT
    assert [request.path for request in site.log] == ["/pub/a.bin?key=1"]


def test_a_url_without_file_name_is_nothing_in_a_mirror(tmp_path, path):
    with pytest.raises(DownloadError, match="Is a directory"):
        download("http://weights.invalid/", path, mirror=str(tmp_path))


# --- proxies: a server that gets whole URLs


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
def test_the_proxy_of_the_environment_is_used(site, path, monkeypatch, name):
    monkeypatch.setenv(name, site.url.removesuffix("/a.bin"))
    download("http://weights.invalid/a.bin", path)
    assert path.read_bytes() == CONTENT
    assert site.log[0].path == "http://weights.invalid/a.bin"


def test_https_goes_through_a_tunnel(site, path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", site.url.removesuffix("/a.bin"))
    site.faults = [407]
    with pytest.raises(DownloadError, match=r"no connection .*407"):
        download("https://weights.invalid/a.bin", path)
    assert [(request.method, request.path) for request in site.log] == [("CONNECT", "weights.invalid:443")]


def test_hosts_without_proxy_are_asked_directly(site, path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", find_dead_url())
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    download(site.url, path)
    assert path.read_bytes() == CONTENT


# --- Hugging Face


@pytest.fixture
def hub(monkeypatch, site):
    """A hub that tells about a file and redirects to `site`, as the real one does to its storage."""
    with serve() as hub:
        hub.redirects["/owner/repo/resolve/main/folder/a.bin"] = site.url
        hub.redirects[f"/owner/repo/resolve/{COMMIT}/folder/a.bin"] = site.url
        hub.redirect_headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Etag": f'"{SHA256}"',
            "X-Linked-Size": str(len(CONTENT)),
        }
        monkeypatch.setenv("HF_ENDPOINT", hub.url.removesuffix("/a.bin") + "/")
        yield hub


def put_into_cache(tmp_path, content, commit=COMMIT):
    """Lay a file where `huggingface_hub` 2.4 does: its content among those that repositories share, linked twice."""
    repository = tmp_path / "hub" / "models--owner--repo"
    shared = tmp_path / "hub/blobs/ff" / ("f" * 64)  # a hash too, but no SHA-256
    for folder in (repository / "refs", repository / "blobs", repository / f"snapshots/{commit}/folder", shared.parent):
        folder.mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    shared.write_bytes(content)
    (repository / "blobs" / SHA256).symlink_to(shared)
    (repository / f"snapshots/{commit}/folder/a.bin").symlink_to(f"../../../blobs/{SHA256}")


def test_a_file_of_the_hub_is_downloaded(hub, site, path):
    download(HUB_URL, path)
    assert path.read_bytes() == CONTENT
    assert list_names(path) == ["a.bin"]
    assert [request.method for request in hub.log] == ["HEAD", "GET"]
    assert site.sent_bytes == [len(CONTENT)]


def test_the_token_goes_to_the_hub_only(hub, site, path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    download(HUB_URL, path)
    assert [request.headers["Authorization"] for request in hub.log] == ["Bearer hf_secret"] * 2
    assert site.log[0].headers["Authorization"] is None


def test_what_the_hub_tells_is_verified(hub, site, path):
    site.content = OTHER
    with pytest.raises(DownloadError, match=f"found sha256 .*, wanted sha256 {SHA256}"):
        download(HUB_URL, path)
    site.content = CONTENT[:-1]
    with pytest.raises(DownloadError, match=f"found {len(CONTENT) - 1} bytes, wanted {len(CONTENT)} bytes"):
        download(HUB_URL, path)
    assert list_names(path) == []


def test_the_hash_of_the_caller_comes_before_that_of_the_hub(hub, site, path):
    site.content = OTHER
    download(HUB_URL, path, hash_val=hashlib.md5(OTHER).hexdigest(), hash_type="md5")
    assert path.read_bytes() == OTHER


def test_quoted_names_of_the_hub_are_quoted_once(hub, site, path):
    address = "/owner/repo/resolve/refs%2Fpr%2F1/a%20b.bin"
    hub.redirects[address] = site.url
    download(f"https://huggingface.co{address}?download=true", path)
    assert {request.path for request in hub.log} == {address}


def test_a_small_file_of_the_hub_has_no_sha256(hub, path):
    hub.redirect_headers["X-Linked-Etag"] = f'"{COMMIT}"'
    download(HUB_URL, path)
    assert path.read_bytes() == CONTENT


def test_a_broken_download_from_the_hub_is_continued(hub, site, path):
    site.faults = [Drop(HALF)]
    download(HUB_URL, path)
    assert path.read_bytes() == CONTENT
    assert site.sent_bytes == [HALF, len(CONTENT) - HALF]


def test_a_busy_hub_is_asked_again(hub, path):
    hub.faults = [503]
    download(HUB_URL, path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusing_hub_is_told(hub, path, status):
    hub.faults = [status]
    address = re.escape(os.environ["HF_ENDPOINT"] + "owner/repo/resolve/main/folder/a.bin")
    with pytest.raises(DownloadError, match=rf"{address}: found HTTP status {status} .*put it at {path}"):
        download(HUB_URL, path)
    assert list_names(path) == []


def test_an_unreachable_hub_is_told(path, monkeypatch, naps):
    monkeypatch.setenv("HF_ENDPOINT", find_dead_url().removesuffix("/a.bin"))
    with pytest.raises(DownloadError, match=r"found no connection \(Connection refused\)"):
        download(HUB_URL, path)
    assert naps == []


def test_no_name_of_a_repository_is_told(hub, path):
    with pytest.raises(ConfigValueError, match=r"found 'owner/re--po'"):
        download(HUB_URL.replace("repo", "re--po"), path)


def test_the_hub_is_asked_through_the_proxy(site, path, monkeypatch):
    close_session()  # the package keeps its connections, and the proxies with them
    monkeypatch.setenv("HTTP_PROXY", site.url.removesuffix("/a.bin"))
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    site.headers["X-Repo-Commit"] = COMMIT
    try:
        download(HUB_URL, path)
    finally:
        close_session()
    address = "http://hub.invalid/owner/repo/resolve/main/folder/a.bin"
    assert [(request.method, request.path) for request in site.log] == [("HEAD", address), ("GET", address)]
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_file_in_the_cache_of_the_hub_is_copied(hub, site, path, tmp_path, revision):
    put_into_cache(tmp_path, CONTENT)
    download(HUB_URL.replace("main", revision), path)
    assert path.read_bytes() == CONTENT
    assert not path.is_symlink()
    assert not site.log


@pytest.mark.parametrize("offline", [False, True])
def test_a_file_in_the_cache_of_the_hub_needs_no_network(path, tmp_path, monkeypatch, offline):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("HF_ENDPOINT", find_dead_url().removesuffix("/a.bin"))
    put_into_cache(tmp_path, CONTENT)
    download(HUB_URL, path)
    assert path.read_bytes() == CONTENT


def test_an_old_file_in_the_cache_of_the_hub_is_not_copied(hub, site, path, tmp_path):
    put_into_cache(tmp_path, OTHER, commit=COMMIT[::-1])
    download(HUB_URL, path)
    assert path.read_bytes() == CONTENT


def test_a_damaged_file_in_the_cache_of_the_hub_is_refused(hub, path, tmp_path):
    put_into_cache(tmp_path, OTHER)
    with pytest.raises(DownloadError, match=f"wanted sha256 {SHA256}"):
        download(HUB_URL, path)
    assert list_names(path) == []


def test_the_offline_mode_of_the_hub_is_respected(hub, path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        download(HUB_URL, path)
    assert not hub.log


# --- several at once


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.costs(processes=2)
@pytest.mark.parametrize("kind", [threading.Thread, multiprocessing.get_context("fork").Process])
def test_the_second_of_two_downloads_waits_for_the_first(site, path, kind):
    site.stall = threading.Event()
    first, second = (kind(target=download, args=(site.url, path), kwargs={"hash_val": SHA256}) for _ in range(2))
    first.start()
    wait_until(lambda: site.log)
    second.start()
    time.sleep(0.2)  # time enough to do harm
    assert second.is_alive()
    site.stall.set()
    first.join()
    second.join()
    assert path.read_bytes() == CONTENT
    assert site.sent_bytes == [len(CONTENT)]
    assert list_names(path) == ["a.bin"]


@pytest.mark.parametrize("has_part", [True, False])
def test_the_second_of_two_downloads_takes_over_when_the_first_fails(site, path, has_part):
    site.stall = threading.Event()
    site.faults = [Drop(HALF), 404] if has_part else []
    known = {} if has_part else {"hash_val": "0" * 64}  # the first removes the part for which the second waits
    first = threading.Thread(target=try_to_download, args=(site.url, path), kwargs=known)
    second = threading.Thread(target=try_to_download, args=(site.url, path))
    first.start()
    wait_until(lambda: site.log)
    second.start()
    time.sleep(0.1)
    site.stall.set()
    first.join()
    second.join()
    assert path.read_bytes() == CONTENT
    assert site.sent_bytes == ([HALF, 0, len(CONTENT) - HALF] if has_part else [len(CONTENT)] * 2)
    assert list_names(path) == ["a.bin"]


def try_to_download(url, path, **options):
    with contextlib.suppress(DownloadError):
        download(url, path, **options)


def test_a_file_system_without_locks_is_no_obstacle(site, path, monkeypatch, caplog):
    def fail(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(partial_files.fcntl, "flock", fail)
    download(site.url, path)
    assert path.read_bytes() == CONTENT
    assert "no locks" in caplog.text


# --- the disk


def test_a_file_larger_than_the_disk_is_not_begun(site, path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=HALF - 1))
    with pytest.raises(DownloadError, match=f"found {HALF - 1} bytes free, wanted {len(CONTENT)} bytes; make room"):
        download(site.url, path)
    assert list_names(path) == []


def test_only_the_missing_bytes_need_room(site, path, monkeypatch):
    abort(site, path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=HALF))
    download(site.url, path)
    assert path.read_bytes() == CONTENT


def limit_writes(monkeypatch, write):
    """Let `write` say how many bytes of a part are written, from their number and that of all before."""

    class PartFile(io.FileIO):
        def write(self, data):
            return super().write(data[: write(len(data), self.tell())])

    def open_file(self, mode="r", *args, original=Path.open, **options):
        return (
            PartFile(self, mode) if self.suffix == ".part" and mode == "ab" else original(self, mode, *args, **options)
        )

    monkeypatch.setattr(Path, "open", open_file)


def test_a_disk_that_becomes_full_is_told(site, path, monkeypatch):
    def write(_, before):
        if before >= HALF:
            raise OSError(errno.ENOSPC, "No space left on device")
        return HALF - before

    limit_writes(monkeypatch, write)
    with pytest.raises(DownloadError, match=rf"found \d+ bytes free, wanted {len(CONTENT)} bytes; make room"):
        download(site.url, path)
    monkeypatch.undo()
    site.log.clear()
    download(site.url, path)  # there is room again
    assert path.read_bytes() == CONTENT
    assert site.sent_bytes == [len(CONTENT) - HALF]


def test_writing_in_pieces_loses_nothing(site, path, monkeypatch):
    limit_writes(monkeypatch, lambda size_bytes, _: min(size_bytes, 1000))
    download(site.url, path)
    assert path.read_bytes() == CONTENT
    assert site.sent_bytes == [len(CONTENT)]


def test_a_folder_that_cannot_be_made_is_told(site, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"found no access .*permissions"):
        download(site.url, tmp_path / "file" / "a.bin")
    assert not site.log
