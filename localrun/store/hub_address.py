"""Knows no file and no answer: which addresses may be asked at all, and which may see the token.

The endpoint is the user's choice and trusted as far as it goes: https, or http on this machine.
Where it redirects to is a stranger's choice: https to a public address, no user name in it. Only an
endpoint on this machine may send us to this machine.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from localrun.errors import ConfigError, DownloadError

Resolver = Callable[[str, int], Iterable[str]]

_PORTS = {"http": 80, "https": 443}
# Forms such as 0x7f.1, 2130706433 and 127.1: systems read them as addresses, judges as names.
_NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9a-fA-F]*)\.?\Z")
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def resolve_host(host: str, port: int) -> Iterable[str]:
    """Ask the system; an unknown name has no addresses (a proxy may still know it)."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(str(entry[4][0]) for entry in found)


@functools.cache
def tls() -> ssl.SSLContext:
    """The certificates to believe in, read once: that takes longer than a small download."""
    import httpx2

    return httpx2.create_ssl_context()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The configured hub. ``url`` has no slash at its end."""

    url: str
    origin: tuple[str, str, int]
    local: bool

    def sends_token_to(self, url: str) -> bool:
        """True for addresses of the very host, port and scheme the user configured."""
        return _origin(urlsplit(url)) == self.origin

    def check(self, url: str, resolve: Resolver = resolve_host) -> None:
        """Judge an address before it is asked.

        Raises:
            DownloadError: naming the address and what is wrong with it.
        """
        problem = self._problem(url, resolve)
        if problem is not None:
            raise DownloadError(
                f"the hub leads to {_shown(url)}, which {problem}",
                hint="check HF_ENDPOINT, or report it to the hub's operator",
            )

    def _problem(self, url: str, resolve: Resolver) -> str | None:
        try:
            parts = urlsplit(url)
            origin = _origin(parts)
        except ValueError:
            return "is not an address"
        scheme, host, port = origin
        problem = _shape_problem(parts)
        if problem is not None:
            return problem
        if origin == self.origin:
            return None
        if scheme == "http" and not (self.local and is_loopback(host)):
            return "is not encrypted"
        if self.local:
            return None
        address = _address(host)
        if address is None and _is_localhost(host):
            return "is this machine"
        addresses = [str(address)] if address is not None else resolve(host, port)
        if any(not _is_public(text) for text in addresses):
            return "is not a public address"
        return None


def endpoint(url: str) -> Endpoint:
    """Read the configured hub address (``HF_ENDPOINT``).

    Raises:
        ConfigError: not an address, or http to another machine.
    """
    try:
        parts = urlsplit(url)
        origin = _origin(parts)
        problem = _shape_problem(parts)
    except ValueError:
        problem = "is not an address"
    if problem is None and (parts.query or parts.fragment):
        problem = "has a query"
    if problem is None and origin[0] == "http" and not is_loopback(origin[1]):
        problem = "is not encrypted"
    if problem is not None:
        raise ConfigError(
            f"HF_ENDPOINT {_shown(url)} {problem}",
            hint="use https://HOST; http:// is accepted for this machine only",
        )
    return Endpoint(url.rstrip("/"), origin, is_loopback(origin[1]))


def is_loopback(host: str) -> bool:
    """True for localhost and loopback addresses in their usual spelling."""
    address = _address(host)
    if address is None:
        return _is_localhost(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return False  # Python's own answer differs between its versions
    return address.is_loopback


def _is_localhost(host: str) -> bool:
    name = host.rstrip(".").lower()
    return name == "localhost" or name.endswith(".localhost")


def _address(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_public(text: str) -> bool:
    address = _address(text.partition("%")[0])
    if address is None:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return inner.is_global and not inner.is_multicast
        if address in ipaddress.ip_network("64:ff9b::/96"):  # IPv4 behind NAT64
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF).is_global
    return address.is_global and not address.is_multicast


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    scheme = parts.scheme.lower()
    return scheme, parts.hostname or "", parts.port or _PORTS.get(scheme, 0)


def _shape_problem(parts: SplitResult) -> str | None:
    host = parts.hostname or ""
    if parts.scheme.lower() not in _PORTS:
        return "is neither https nor http"
    if not host or not host.isascii() or not host.isprintable() or set(host) & set(" \\<>\"'"):
        return "names no host"
    if "@" in parts.netloc or "\\" in parts.geturl():
        return "holds a user name"
    if _address(host) is None and _NUMERIC.match(host):
        return "spells an address in a way that systems read differently"
    return None


def _shown(url: str) -> str:
    """For messages: without query (signed addresses are secrets), user name, or control bytes."""
    text = re.sub(r"//[^/]*@", "//", url.partition("?")[0])
    return repr(text[:200])
