"""Row N11: which addresses a pull may ask, and who sees the token."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localrun.errors import ConfigError, DownloadError
from localrun.ref import HubRef
from localrun.store.download import fetch
from localrun.store.download_stream import Patience
from localrun.store.hub import resolve
from localrun.store.hub_address import endpoint
from localrun.store.progress import NoProgress
from tests.hub_stub import Fault, HubStub, noise

REF = HubRef("org", "repo")
PUBLIC = "93.184.215.14"


def resolver(*addresses: str) -> Callable[[str, int], tuple[str, ...]]:
    return lambda host, port: addresses


REFUSED = {
    "file": "file:///etc/passwd",
    "ftp": "ftp://example.com/x",
    "no scheme": "//example.com/x",
    "plain http": "http://example.com/x",
    "http to the hub itself": "http://huggingface.co/x",
    "metadata service": "https://169.254.169.254/latest/meta-data/",
    "metadata service, plain": "http://169.254.169.254/latest/meta-data/",
    "loopback": "https://127.0.0.1/x",
    "loopback, plain": "http://127.0.0.1/x",
    "loopback, IPv6": "https://[::1]/x",
    "mapped loopback": "https://[::ffff:127.0.0.1]/x",
    "mapped private": "https://[::ffff:10.0.0.1]/x",
    "6to4 of a private address": "https://[2002:0a00:0001::1]/x",
    "NAT64 of loopback": "https://[64:ff9b::7f00:1]/x",
    "localhost": "https://localhost/x",
    "localhost with a dot": "https://localhost./x",
    "below localhost": "https://a.localhost/x",
    "hexadecimal": "https://0x7f.1/x",
    "one number": "https://2130706433/x",
    "short": "https://127.1/x",
    "octal": "https://0177.0.0.1/x",
    "private 10": "https://10.1.2.3/x",
    "private 192": "https://192.168.1.1/x",
    "private 172": "https://172.16.0.1/x",
    "shared 100.64": "https://100.64.0.1/x",
    "unspecified": "https://0.0.0.0/x",
    "unique local IPv6": "https://[fd00::1]/x",
    "link-local IPv6": "https://[fe80::1]/x",
    "multicast": "https://224.0.0.1/x",
    "user name": "https://huggingface.co@evil.example/x",
    "user name of the hub": "https://a:b@huggingface.co/x",
    "backslash": "https://huggingface.co\\@evil.example/x",
    "no host": "https:///x",
    "odd port": "https://huggingface.co:99999/x",
    "space in host": "https://hugging face.co/x",
    "unicode dots": "https://127。0。0。1/x",
}


@pytest.mark.parametrize("url", REFUSED.values(), ids=REFUSED)
def test_addresses_a_hub_may_not_lead_to(url: str) -> None:
    with pytest.raises(DownloadError, match="the hub leads to"):
        endpoint("https://huggingface.co").check(url, resolver(PUBLIC))


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fe80::1%1"]
)
def test_names_that_resolve_into_the_house_are_refused(address: str) -> None:
    hub = endpoint("https://huggingface.co")

    with pytest.raises(DownloadError, match="not a public address"):
        hub.check("https://cdn.example/x", resolver(PUBLIC, address))


def test_public_https_addresses_are_asked_without_the_token() -> None:
    hub = endpoint("https://huggingface.co")
    hub.check("https://cas-bridge.xethub.hf.co/x?sig=1", resolver(PUBLIC))

    assert not hub.sends_token_to("https://cas-bridge.xethub.hf.co/x")
    assert not hub.sends_token_to("https://huggingface.co:444/x")
    assert not hub.sends_token_to("http://huggingface.co/x")
    assert hub.sends_token_to("https://HuggingFace.co/x")


def test_a_configured_private_hub_is_the_users_own_choice() -> None:
    hub = endpoint("https://hub.corp.example")

    hub.check("https://hub.corp.example/org/repo", resolver("10.0.0.1"))
    with pytest.raises(DownloadError):
        hub.check("https://other.corp.example/x", resolver("10.0.0.1"))


@pytest.mark.parametrize(
    "url",
    [
        "http://huggingface.co",
        "http://10.0.0.1",
        "http://[::ffff:127.0.0.1]:1",
        "http://0x7f.1",
        "file:///models",
        "huggingface.co",
        "https://user:secret@huggingface.co",
        "https://huggingface.co/?x=1",
        "https://",
        "http://localhost:port",
    ],
)
def test_endpoints_that_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="HF_ENDPOINT") as caught:
        endpoint(url)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "url", ["https://huggingface.co", "http://127.0.0.1:8080", "http://localhost", "http://[::1]:1"]
)
def test_endpoints_that_are_accepted(url: str) -> None:
    assert endpoint(url).url == url


@pytest.fixture
def connects(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every address a socket is connected to."""
    seen: list[Any] = []
    real = socket.socket.connect

    def spy(self: socket.socket, address: Any) -> None:
        seen.append(address)
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", spy)
    return seen


@pytest.mark.parametrize("target", ["file", "metadata service, plain", "hexadecimal", "user name"])
@pytest.mark.parametrize("place", ["api", "m-Q4_0.gguf"])
def test_a_redirect_to_a_forbidden_address_is_not_followed(
    tmp_path: Path, connects: list[Any], target: str, place: str
) -> None:
    with HubStub() as hub:
        hub.add("org/repo", {"m-Q4_0.gguf": b"weights"})
        hub.fault(place, Fault("redirect", to=REFUSED[target], times=None))
        settings = hub.settings(tmp_path)

        with pytest.raises(DownloadError):
            fetch(resolve(REF, settings), settings, NoProgress())

        port = int(hub.endpoint.rpartition(":")[2])
        assert {address[:2] for address in connects} == {("127.0.0.1", port)}


def test_the_token_goes_to_the_hub_and_never_along_a_redirect(tmp_path: Path) -> None:
    data = noise(5000)
    with HubStub() as hub, HubStub() as storage:
        hub.add("org/repo", {"m-Q4_0.gguf": data})
        commit = storage.add("org/repo", {"m-Q4_0.gguf": data})
        to = f"{storage.endpoint}/org/repo/resolve/{commit}/m-Q4_0.gguf"
        hub.fault("m-Q4_0.gguf", Fault("redirect", to=to))
        settings = hub.settings(tmp_path, HF_TOKEN="hf_planted")

        done = fetch(resolve(REF, settings), settings, NoProgress())

        assert done.weights[0].path is not None
        assert done.weights[0].path.read_bytes() == data
        assert {one.headers.get("authorization") for one in hub.asked} == {"Bearer hf_planted"}
        assert len(storage.asked) == 1
        assert "hf_planted" not in repr(storage.asked)


def test_the_token_does_not_follow_a_redirected_listing(tmp_path: Path) -> None:
    with HubStub() as hub, HubStub() as other:
        other.add("org/repo", {"m-Q4_0.gguf": b"weights"})
        hub.fault("api", Fault("redirect", to=f"{other.endpoint}/api/models/org/repo"))
        settings = hub.settings(tmp_path, HF_TOKEN="hf_planted")

        resolve(REF, settings)

        assert len(other.asked) == 1
        assert "hf_planted" not in repr(other.asked)


def test_redirects_end(tmp_path: Path) -> None:
    with HubStub() as hub:
        commit = hub.add("org/repo", {"m-Q4_0.gguf": b"weights"})
        to = f"/org/repo/resolve/{commit}/m-Q4_0.gguf"
        hub.fault("m-Q4_0.gguf", Fault("redirect", to=to, times=None))
        settings = hub.settings(tmp_path)

        with pytest.raises(DownloadError, match="more than 5 redirects"):
            fetch(resolve(REF, settings), settings, NoProgress(), patience=Patience())
