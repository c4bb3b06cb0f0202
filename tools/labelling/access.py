# SPDX-License-Identifier: Apache-2.0
"""Who may talk to the server: under which names it answers, to pages of which sites, and with which token.

A page of any site can send requests to 127.0.0.1 from the browser of whoever opens it, and a name that its owner lets
point to 127.0.0.1 makes them requests of the same site. So the name in `Host` and the site in `Origin` are checked on
this machine too.
"""

from __future__ import annotations

import importlib
import ipaddress
import re
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from tools.errors import ConfigValueError, RequestError

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
HOST_HEADER = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?", re.IGNORECASE)
HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,252}[a-z0-9])?", re.IGNORECASE)
# 16 characters of `secrets.token_urlsafe` are 96 bits; these alone stand in an address and in a cookie as they are
TOKEN = re.compile(r"[A-Za-z0-9_-]{16,200}")
TOKEN_BYTES = 24
TOKEN_VARIABLE = "LABEL_TOKEN"


@dataclass(frozen=True)
class Access:
    """What a request must have.

    Args:
        hosts: names and addresses of the server in small letters, IPv6 without brackets.
        hostnames: those of them that a proxy in front of the server has.
        token: what every request must give, None: nothing.
    """

    hosts: frozenset[str]
    hostnames: frozenset[str] = frozenset()
    token: str | None = None

    def check_host(self, headers: Sequence[str]) -> None:
        """Raise `RequestError` unless the request is for this server, by its one `Host` header."""
        match = HOST_HEADER.fullmatch(headers[0]) if len(headers) == 1 else None
        if match is None or match[1].strip("[]").lower() not in self.hosts:
            found = ", ".join(map(repr, headers)) or "none"
            wanted = " or ".join(sorted(self.hosts))
            raise RequestError("Host", found, wanted, "start the server with --hostname NAME if it has another name")

    def check_origin(self, method: str, host: str, origins: Sequence[str], site: str | None, mode: str | None) -> None:
        """Raise `RequestError` for what a page of another site sends; links to this server may be followed.

        Args:
            method: of the request.
            host: its `Host` header.
            origins: its `Origin` headers; browsers send one with all but plain GET requests.
            site: its `Sec-Fetch-Site` header.
            mode: its `Sec-Fetch-Mode` header.
        """
        wanted, remedy = "a page of this server or no page", "use 3D Slicer, or OHIF of this server"
        for origin in origins:
            parts = urlsplit(origin)
            same = parts.netloc.lower() == host.lower() or (parts.hostname or "") in self.hostnames
            if parts.scheme not in ("http", "https") or not same:
                raise RequestError("Origin", repr(origin), wanted, remedy)
        followed_link = method == "GET" and mode == "navigate"
        if site not in (None, "same-origin", "none") and not followed_link:
            raise RequestError("Sec-Fetch-Site", repr(site), wanted, remedy)

    def accepts(self, token: str | None) -> bool:
        """Tell whether this is the token, in a time that does not depend on how much of it is right."""
        if self.token is None:
            return True
        return token is not None and secrets.compare_digest(token.encode(), self.token.encode())


def is_local(host: str) -> bool:
    """Tell whether a server that listens at `host` answers this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_access(host: str, hostname: str | Sequence[str] | None = None, token: str | None = None) -> Access:
    """Return what requests to a server must have, with a new token where it listens beyond this machine.

    Args:
        host: where the server listens.
        hostname: further names of the server, separated by commas.
        token: chosen by the user, asked for on this machine too.

    Raises:
        ConfigValueError: if a name is none, or the token can be guessed.
    """
    entries = hostname if isinstance(hostname, (list, tuple)) else str(hostname or "").split(",")
    names = frozenset(name for entry in entries if (name := str(entry).strip().lower()))
    for name in names:
        if not HOSTNAME.fullmatch(name):
            raise ConfigValueError("--hostname", repr(name), "a name, without http:// and port", "correct it")
    if token is not None and not TOKEN.fullmatch(token):
        found = f"{len(token)} characters"
        wanted = "16 to 200 letters, digits, - and _"
        raise ConfigValueError(TOKEN_VARIABLE, found, wanted, "choose one, or leave it out to get a new one")
    hosts = {host.lower()} | names
    if is_local(host):
        hosts |= LOCAL_HOSTS
    else:
        hosts |= LOCAL_HOSTS | _list_own_hosts() if _is_wildcard(host) else frozenset()
        token = token or secrets.token_urlsafe(TOKEN_BYTES)
    return Access(frozenset(hosts), names, token)


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _list_own_hosts() -> frozenset[str]:
    """Return the name of this machine and the addresses of its network interfaces."""
    psutil = importlib.import_module("psutil")  # comes with MONAI Label
    addresses = [entry.address for entries in psutil.net_if_addrs().values() for entry in entries]
    hosts = {socket.gethostname().lower()}
    for address in addresses:
        try:
            hosts.add(str(ipaddress.ip_address(address.partition("%")[0])))  # fe80::1%eth0
        except ValueError:  # the address of the hardware
            continue
    return frozenset(hosts)
