# SPDX-License-Identifier: Apache-2.0
"""The server answers under its own names, to its own pages, and beyond this machine to those who have the token."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tools.errors import ConfigValueError, RequestError
from tools.labelling import access
from tools.labelling.access import LOCAL_HOSTS, Access, is_local, make_access

TOKEN = "token-of-the-test-0123456789"


@pytest.fixture(autouse=True)
def _own_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    interfaces = {"eth0": ["192.0.2.7", "02:42:ac:11:00:02", "fe80::1%eth0"], "lo": ["127.0.0.1"]}
    entries = {
        name: [SimpleNamespace(address=address) for address in addresses] for name, addresses in interfaces.items()
    }
    monkeypatch.setattr(access.importlib, "import_module", lambda name: SimpleNamespace(net_if_addrs=lambda: entries))
    monkeypatch.setattr(access.socket, "gethostname", lambda: "Workstation")


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("127.0.0.2", True), ("::1", True), ("localhost", True)]
)
def test_this_machine_needs_no_token_unless_one_is_chosen(host: str, local: bool):
    assert is_local(host) is local
    assert make_access(host) == Access(LOCAL_HOSTS | {host})
    assert make_access(host, token=TOKEN).token == TOKEN


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "workstation"])
def test_beyond_this_machine_each_start_has_a_token_of_its_own(host: str):
    first, second = make_access(host).token, make_access(host).token
    assert first is not None
    assert len(first) == 32  # 24 bytes
    assert first != second
    assert make_access(host, token=TOKEN).token == TOKEN


def test_all_addresses_of_this_machine_are_its_names_where_it_listens_on_all():
    hosts = make_access("0.0.0.0", "seg.test, Other.Test").hosts
    assert hosts == LOCAL_HOSTS | {"0.0.0.0", "192.0.2.7", "fe80::1", "workstation", "seg.test", "other.test"}
    assert make_access("192.0.2.7").hosts == {"192.0.2.7"}
    for given in ("a.test,b.test", ("a.test", "b.test"), ["a.test", " B.test", ""]):
        assert make_access("192.0.2.7", given).hostnames == {"a.test", "b.test"}


@pytest.mark.parametrize("token", ["short", "x" * 201, "with a space in it", "sign+in/base64==", ""])
def test_token_that_can_be_guessed_or_not_be_sent_is_refused(token: str):
    with pytest.raises(ConfigValueError, match=rf"LABEL_TOKEN: found {len(token)} characters, wanted 16 to 200"):
        make_access("127.0.0.1", token=token)


@pytest.mark.parametrize("hostname", ["http://seg.test", "seg.test:80", "*", "a b", "-a"])
def test_hostname_is_a_name(hostname: str):
    with pytest.raises(ConfigValueError, match="--hostname: found "):
        make_access("0.0.0.0", hostname)


@pytest.mark.parametrize("header", ["127.0.0.1", "127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000"])
def test_own_names_are_known(header: str):
    make_access("127.0.0.1").check_host([header])


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        ["evil.test"],
        ["evil.test:8000"],
        ["127.0.0.1.evil.test"],
        ["127.0.0.1:8000@evil.test"],
        ["127.0.0.1:x"],
        ["127.0.0.1/x"],
        ["192.0.2.7"],
        ["localhost."],
        ["[::2]"],
        ["127.0.0.1", "127.0.0.1"],
    ],
)
def test_foreign_names_are_refused(headers: list[str]):
    with pytest.raises(
        RequestError, match=r"Host: found .*, wanted 127.0.0.1 or ::1 or localhost; start the server with"
    ):
        make_access("127.0.0.1").check_host(headers)


HOST = "127.0.0.1:8000"


@pytest.mark.parametrize(
    ("method", "origins", "site", "mode"),
    [
        ("POST", [], None, None),  # no browser
        ("POST", [f"http://{HOST}"], "same-origin", "cors"),
        ("GET", [], "none", "navigate"),  # typed
        ("GET", [], "cross-site", "navigate"),  # a link
        ("PUT", ["https://seg.test"], None, None),  # a proxy that does not hand on its name
    ],
)
def test_own_pages_and_programs_are_served(method: str, origins: list[str], site: str | None, mode: str | None):
    make_access("127.0.0.1", "seg.test").check_origin(method, HOST, origins, site, mode)


@pytest.mark.parametrize(
    ("method", "origins", "site", "mode"),
    [
        ("GET", ["http://evil.test"], None, None),
        ("POST", ["null"], None, None),
        ("POST", ["http://127.0.0.1:9000"], None, None),
        ("POST", ["http://localhost:8000"], None, None),  # another site for a browser, whatever answers there
        ("POST", [f"file://{HOST}"], None, None),
        ("POST", [f"http://{HOST}", "http://evil.test"], None, None),
        ("GET", [], "cross-site", "no-cors"),  # <img>
        ("GET", [], "same-site", "no-cors"),  # another port of this machine
        ("POST", [], "cross-site", "navigate"),  # a form
    ],
)
def test_foreign_pages_are_refused(method: str, origins: list[str], site: str | None, mode: str | None):
    with pytest.raises(RequestError, match=r"(Origin|Sec-Fetch-Site): found .*, wanted a page of this server"):
        make_access("127.0.0.1", "seg.test").check_origin(method, HOST, origins, site, mode)


def test_only_the_whole_token_is_accepted():
    guarded = make_access("0.0.0.0", token=TOKEN)
    assert guarded.accepts(TOKEN)
    assert not any(guarded.accepts(wrong) for wrong in (None, "", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper(), "ü" * 28))
    assert make_access("127.0.0.1").accepts(None)
