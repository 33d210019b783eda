"""Knows no route and no model: the one door every request passes, outermost of all.

In this order: Host, Origin, size of the header, API key, content type, number of requests, size
of the body, depth of its JSON. A refused Host or Origin gets 403 with an empty body: to a page
that reached this port by its own name (DNS rebinding), or sent a form here, nothing is said.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from localrun.errors import BusyError
from localrun.server import errors
from localrun.server.errors import Refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

MAX_BODY_BYTES = 32 * 1024 * 1024
MAX_HEADER_BYTES = 64 * 1024
MAX_HEADER_FIELDS = 100
MAX_JSON_DEPTH = 64
# Far more than a conversation that fits any context. To parse more holds up everybody.
MAX_JSON_CONTAINERS = 250_000
MAX_JSON_VALUES = 1_000_000
# Answers under way or waiting their turn; one more is told to come back.
MAX_REQUESTS = 64
# From here on a body is measured off the event loop.
_LONG_BODY = 64 * 1024
_PIECE_BYTES = 256 * 1024

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
OPEN_PATH = "/health"
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What a user may open or close.

    api_key: asked of every request but ``/health``; None or empty asks for none.
    origins: web origins that may call, written exactly as a browser sends them.
    hosts: further values of the Host header; one without a port means ours.
    docs: serve ``/docs`` and ``/openapi.json``.
    """

    api_key: str | None = None
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    docs: bool = False


class Guards:
    """ASGI middleware. The port it compares Host with is the one the connection came in by."""

    def __init__(self, app: App, options: ServerOptions) -> None:
        self._app = app
        self._key = options.api_key.encode() if options.api_key else None
        self._origins = frozenset(origin.encode() for origin in options.origins)
        self._hosts = options.hosts
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            # Nothing here speaks WebSocket; closing before accepting answers 403.
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Headers = scope["headers"]
        origins = _values(headers, b"origin")
        if not self._host_is_ours(scope) or not self._origins.issuperset(origins):
            await _forbid(send)
            return
        if origins:
            send = _with_origin(send, origins[0])
            if scope["method"] == "OPTIONS" and _values(headers, b"access-control-request-method"):
                await _preflight(headers, send)
                return
        if refusal := self._refusal(scope):
            await _refused(scope, refusal)(scope, receive, send)
            return
        if scope["method"] in _READING:
            await self._app(scope, receive, send)
            return
        if self._requests >= MAX_REQUESTS:
            busy = BusyError(f"{MAX_REQUESTS} requests are under way")
            await errors.response_of(scope["path"], busy)(scope, receive, send)
            return
        self._requests += 1
        try:
            await self._with_body(scope, receive, send)
        finally:
            self._requests -= 1

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        if body is None:
            return
        if refusal := await _judge_body(body):
            await _refused(scope, refusal)(scope, receive, send)
            return
        replay = _replay(bytes(body), receive)
        # Nobody holds a second copy of a long body while it is answered.
        del body
        await self._app(_as_json(scope), replay, send)

    def _host_is_ours(self, scope: Scope) -> bool:
        """One Host, in origin form, that names this port as the user's own programs name it.

        Beside the loopback names that is the very address the connection came in by: a page that
        was rebound here sends its own name, never an address.
        """
        values = _values(scope["headers"], b"host")
        if len(values) != 1 or not scope["path"].startswith("/") or not scope.get("server"):
            return False
        address, port = scope["server"]
        address = f"[{address}]" if ":" in address else address
        given = values[0].decode("latin-1").lower()
        allowed = {_with_port(name, port) for name in (*LOOPBACK_NAMES, address)}
        allowed.update(_with_port(name.lower(), port) for name in self._hosts)
        if port in (80, None):
            given = _with_port(given, port)
        return given in allowed

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers: Headers = scope["headers"]
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > MAX_HEADER_FIELDS or size > MAX_HEADER_BYTES:
            return Refusal(
                431,
                f"the header has {len(headers)} fields and {size} bytes: the limits are "
                f"{MAX_HEADER_FIELDS} and {MAX_HEADER_BYTES}",
                code="header_too_large",
            )
        if scope["path"] != OPEN_PATH and not self._key_is_right(headers):
            return Refusal(
                401,
                "the API key is missing or wrong: send it as `Authorization: Bearer KEY`",
                code="invalid_api_key",
            )
        if scope["method"] in _READING:
            return None
        if not _is_json(headers):
            return Refusal(415, "send the body as content-type: application/json", code="not_json")
        declared = _values(headers, b"content-length")
        if declared and int(declared[0]) > MAX_BODY_BYTES:
            return _too_large()
        return None

    def _key_is_right(self, headers: Headers) -> bool:
        if self._key is None:
            return True
        # A list, not any(): every value is compared to its end.
        given = presented_keys(headers)
        return True in [hmac.compare_digest(value, self._key) for value in given]


def _as_json(scope: Scope) -> Scope:
    """The scope of a body whose kind nobody said, with its kind."""
    headers: Headers = scope["headers"]
    if _values(headers, b"content-type"):
        return scope
    # Whoever was told of the scope before still looks at the same record.
    scope["headers"] = [*headers, (b"content-type", b"application/json")]
    return scope


def _is_json(headers: Headers) -> bool:
    """Whether the body is said to be JSON, or nothing is said by what is no browser: a page's
    request always has an Origin or the marks of ``fetch``, and litellm's has no type."""
    kinds = _values(headers, b"content-type")
    if not kinds:
        return not any(name == b"origin" or name.startswith(b"sec-fetch-") for name, _ in headers)
    return len(kinds) == 1 and kinds[0].partition(b";")[0].strip().lower() == b"application/json"


def presented_keys(headers: Headers) -> list[bytes]:
    """The API keys that a request was sent with, right or wrong."""
    given = [
        value[len(b"bearer ") :].strip()
        for value in _values(headers, b"authorization")
        if value.lower().startswith(b"bearer ")
    ]
    return given + _values(headers, b"x-api-key")


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


def _with_port(name: str, port: int | None) -> str:
    """``name:port``, unless the name has a port already."""
    has_port = ":" in name.rpartition("]")[2]
    return name if has_port else f"{name}:{80 if port is None else port}"


async def _forbid(send: Send) -> None:
    empty = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 403, "headers": empty})
    await send({"type": "http.response.body", "body": b""})


def _with_origin(send: Send, origin: bytes) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            extra = [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        await send(message)

    return sending


async def _preflight(headers: Headers, send: Send) -> None:
    answer = [(b"access-control-allow-methods", b"GET, POST"), (b"access-control-max-age", b"600")]
    answer += [
        (b"access-control-allow-headers", value)
        for value in _values(headers, b"access-control-request-headers")[:1]
    ]
    await send({"type": "http.response.start", "status": 204, "headers": answer})
    await send({"type": "http.response.body", "body": b""})


def _refused(scope: Scope, refusal: Refusal) -> App:
    headers = {401: {"www-authenticate": "Bearer"}, 413: {"connection": "close"}}
    return errors.response(scope["path"], refusal, headers=headers.get(refusal.status))


def _too_large() -> Refusal:
    return Refusal(
        413,
        f"the body is larger than {MAX_BODY_BYTES} bytes",
        code="body_too_large",
    )


async def _read(receive: Receive) -> bytearray | None:
    """The body, or its first bytes once it is too large; None when the client went away."""
    body = bytearray()
    while len(body) <= MAX_BODY_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return body


async def _judge_body(body: bytearray) -> Refusal | None:
    if len(body) > MAX_BODY_BYTES:
        return _too_large()
    if len(body) < _LONG_BODY:
        return _judge_json(body)
    return await asyncio.to_thread(_judge_json, body)


def _judge_json(body: bytearray) -> Refusal | None:
    """Refuse what no parser should be given: they recurse, and hold all threads to their end."""
    extent = json_extent(body)
    if extent.depth > MAX_JSON_DEPTH:
        return Refusal(
            400,
            f"the JSON is nested {extent.depth} deep: the limit is {MAX_JSON_DEPTH}",
            code="json_too_deep",
        )
    if extent.containers > MAX_JSON_CONTAINERS or extent.values > MAX_JSON_VALUES:
        return Refusal(
            400,
            f"the JSON has {extent.containers} objects and lists and {extent.values} values: the "
            f"limits are {MAX_JSON_CONTAINERS} and {MAX_JSON_VALUES}",
            code="json_too_large",
        )
    return None


@dataclass(frozen=True, slots=True)
class JsonExtent:
    """``depth``: the deepest nesting; ``values``: commas and opening brackets, about as many."""

    depth: int
    containers: int
    values: int


# An unclosed string reaches to the end: one pass, whatever the body.
_STRING = re.compile(rb'"[^"]*"?')
_NOT_MARKS = bytes(byte for byte in range(256) if byte not in b"[]{},")
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def json_extent(body: bytes | bytearray) -> JsonExtent:
    """What is outside strings, without parsing; piece by piece, so that others have turns."""
    depth = deepest = containers = commas = 0
    inside = False
    for piece in _pieces(body):
        text = piece.replace(rb"\\", b"").replace(rb"\"", b"")
        if inside:
            _, quote, text = text.partition(b'"')
            if not quote:
                continue
        inside = text.count(b'"') % 2 == 1
        marks = _STRING.sub(b"", text).translate(None, _NOT_MARKS)
        commas += marks.count(b",")
        brackets = marks.translate(None, b",")
        containers += brackets.count(b"[") + brackets.count(b"{")
        depths = list(accumulate(map(_STEP.__getitem__, brackets), initial=depth))
        depth, deepest = depths[-1], max(deepest, max(depths))
    return JsonExtent(deepest, containers, commas + containers)


def _pieces(body: bytes | bytearray) -> Iterator[bytes]:
    """Pieces that begin outside of escapes."""
    start = 0
    while start < len(body):
        piece = bytes(body[start : start + _PIECE_BYTES])
        # An odd number of backslashes escapes what comes next.
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:
            piece = bytes(body[start : start + _PIECE_BYTES + 1])
        yield piece
        start += len(piece)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body that was read, once; then whatever comes, which is the disconnect."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving() -> Message:
        return waiting.pop() if waiting else await receive()

    return receiving
