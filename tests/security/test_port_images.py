"""Row N11 of the threat table: an address in a request is never asked for anything."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Final

import pytest

from localrun.server.app import create_app
from tests.fake_chat import FakeChat, FakeModels
from tests.security.port_routes import client_of, examples, is_told_rightly

ADDRESSES: Final = (
    "http://169.254.169.254/latest/meta-data",
    "https://example.com/x.png",
    "http://0x7f.1/x.png",
    "http://2130706433/x.png",
    "http://[::ffff:127.0.0.1]/x.png",
    "http://user:secret@127.0.0.1/x.png",
    "HTTP://localhost/x.png",
    "//localhost/x.png",
    "file:///etc/passwd",
    "/etc/passwd",
    "ftp://localhost/x.png",
    "gopher://localhost/x",
    " http://localhost/x.png",
    "data:text/html,<script>",
    "data:image/png;base64,aGk=",
)


def _turn(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, *parts]}]}


def _input(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"input": [{"type": "message", "role": "user", "content": [*parts]}]}


def _image(url: str) -> str:
    """What is said of an image that has this address."""
    far_off = not url.startswith("data:")
    return "URLs are never fetched" if far_off else "takes no images: it has no projector"


def _bare_image(url: str) -> str:
    """The same where an image may be base64 alone: these letters are."""
    return _image("data:" if url == "/etc/passwd" else url)


def _far_off(url: str) -> str:
    """Of an address that is told as one, whatever it is."""
    return "URLs are never fetched"


def _no_text(url: str) -> str:
    return "takes text parts only"


def _no_document(url: str) -> str:
    return "a document comes as text"


def _message(document: Any) -> str:
    error = document["error"]
    return str(error if isinstance(error, str) else error["message"])


Body = Callable[[str], dict[str, Any]]
# Each place where a client of some dialect puts an image, a sound, a file, or their address, and
# what is said of it.
PLACES: Final[dict[str, tuple[str, Body, Callable[[str], str]]]] = {
    "openai's image": (
        "/v1/chat/completions",
        lambda url: _turn({"type": "image_url", "image_url": {"url": url}}),
        _image,
    ),
    "openai's image, short": (
        "/v1/chat/completions",
        lambda url: _turn({"type": "image_url", "image_url": url}),
        _image,
    ),
    "openai's sound": (
        "/v1/chat/completions",
        lambda url: _turn({"type": "input_audio", "input_audio": {"data": url, "format": "wav"}}),
        _no_text,
    ),
    "openai's file": (
        "/v1/chat/completions",
        lambda url: _turn({"type": "file", "file": {"file_data": url}}),
        _no_text,
    ),
    "a template's image": (
        "/apply-template",
        lambda url: _turn({"type": "image_url", "image_url": {"url": url}}),
        _image,
    ),
    "responses' image": (
        "/v1/responses",
        lambda url: _input({"type": "input_image", "image_url": url}),
        _image,
    ),
    "responses' file": (
        "/v1/responses",
        lambda url: _input({"type": "input_file", "file_url": url}),
        _no_text,
    ),
    "anthropic's image": (
        "/v1/messages",
        lambda url: _turn({"type": "image", "source": {"type": "url", "url": url}}),
        _far_off,
    ),
    "anthropic's document": (
        "/v1/messages",
        lambda url: _turn({"type": "document", "source": {"type": "url", "url": url}}),
        _no_document,
    ),
    "anthropic's count": (
        "/v1/messages/count_tokens",
        lambda url: _turn({"type": "image", "source": {"type": "url", "url": url}}),
        _far_off,
    ),
    "ollama's image": (
        "/api/chat",
        lambda url: {"messages": [{"role": "user", "content": "x", "images": [url]}]},
        _bare_image,
    ),
    "ollama's image of a prompt": ("/api/generate", lambda url: {"images": [url]}, _bare_image),
    "llama.cpp's image": (
        "/completion",
        lambda url: {"prompt": {"prompt_string": "x", "multimodal_data": [url]}},
        _bare_image,
    ),
}


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Whatever the process tries to connect to or look up."""
    seen: list[object] = []

    def refuse(*args: object, **kwargs: object) -> None:
        seen.append(args)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return seen


@pytest.mark.parametrize(("path", "of", "said"), PLACES.values(), ids=PLACES.keys())
async def test_no_address_in_a_request_is_fetched(
    connections: list[object], path: str, of: Body, said: Callable[[str], str]
) -> None:
    chat = FakeChat()
    async with client_of(create_app(FakeModels(fake=chat))) as client:
        for url in ADDRESSES:
            response = await client.post(path, json=examples("fake")[path] | of(url))
            assert response.status_code == 400, (url, response.text[:200])
            assert is_told_rightly(path, response.json())
            assert said(url) in _message(response.json()), url
            assert "secret@" not in response.text

    assert connections == []
    assert chat.asked == []


async def test_the_spy_sees_what_is_asked_for(connections: list[object]) -> None:
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("127.0.0.1", 1))

    assert len(connections) == 1
