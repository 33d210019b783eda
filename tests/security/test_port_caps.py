"""Row N6 of the threat table: each cap at its limit, one above it, and a thousand times above."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import psutil
import pytest

from localrun.engine import limits
from localrun.server import guards
from localrun.server.app import create_app
from localrun.server.fields import (
    MAX_CHOICES,
    MAX_GUIDED_CHOICES,
    MAX_NAME_CHARS,
    MAX_STOP_CHARS,
    MAX_STOPS,
)
from localrun.server.tools import MAX_TOOLS
from tests.fake_chat import FakeChat, FakeModels
from tests.security.port_routes import client_of, examples, is_told_rightly

CHAT: Final = "/v1/chat/completions"
LATE_S: Final = 0.2
MIB: Final = 1 << 20


def _tools(count: int) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": f"f{at}"}} for at in range(count)]


def _bias(count: int) -> dict[str, float]:
    return {str(at): 1.0 for at in range(count)}


class _Raw(str):
    """JSON that is written as it is."""


def _words(count: int) -> _Raw:
    return _list('"x"', count)


def _list(value: str, count: int) -> _Raw:
    return _Raw("[" + f"{value}," * (count - 1) + value + "]")


def _deep(depth: int) -> _Raw:
    return _Raw("[" * depth + "]" * depth)


# Route, field, the value that has so much of it, and how much is allowed. Beside the field there
# are two lists, an object, and a few values.
CAPS: Final[dict[str, tuple[str, str, Callable[[int], Any], int]]] = {
    "choices": (CHAT, "n", int, MAX_CHOICES),
    "stops": (CHAT, "stop", _words, MAX_STOPS),
    "characters of a stop": (CHAT, "stop", lambda n: "x" * n, MAX_STOP_CHARS),
    "biases": (CHAT, "logit_bias", _bias, limits.MAX_BIASES),
    "a bias": (CHAT, "logit_bias", lambda n: {"1": n}, int(limits.MAX_BIAS)),
    "tools": (CHAT, "tools", _tools, MAX_TOOLS),
    "alternatives": (CHAT, "top_logprobs", int, limits.MAX_LOGPROBS),
    "a user's name": (CHAT, "user", lambda n: "x" * n, MAX_NAME_CHARS),
    "a grammar": (CHAT, "grammar", lambda n: "x" * n, limits.MAX_GRAMMAR_BYTES),
    "guided choices": (CHAT, "guided_choice", _words, MAX_GUIDED_CHOICES),
    "breakers": (CHAT, "dry_sequence_breakers", _words, limits.MAX_BREAKERS),
    "a breaker": (CHAT, "dry_sequence_breakers", lambda n: ["x" * n], limits.MAX_BREAKER_BYTES),
    "a model's name": (CHAT, "model", lambda n: "fake".ljust(n, "x"), 4096),
    "choices of a completion": ("/v1/completions", "n", int, MAX_CHOICES),
    "stops of a completion": ("/v1/completions", "stop", _words, MAX_STOPS),
    "anthropic's stops": ("/v1/messages", "stop_sequences", _words, MAX_STOPS),
    "llama.cpp's stops": ("/completion", "stop", _words, MAX_STOPS),
    "ollama's stops": (
        "/api/chat",
        "options",
        lambda n: _Raw(f'{{"stop": {_words(n)}}}'),
        limits.MAX_STOPS,
    ),
    "depth": (CHAT, "metadata", lambda n: _deep(n - 1), guards.MAX_JSON_DEPTH),
    "objects": (CHAT, "metadata", lambda n: _list("{}", n - 4), guards.MAX_JSON_CONTAINERS),
    "values": (CHAT, "metadata", lambda n: _list("1", n - 7), guards.MAX_JSON_VALUES),
}


def _body(path: str, field: str, value: Any) -> bytes:
    asked = examples("fake")[path] | {field: None}
    if field == "top_logprobs":
        asked["logprobs"] = True
    shown = value if isinstance(value, _Raw) else json.dumps(value)
    return json.dumps(asked).replace(f'"{field}": null', f'"{field}": {shown}').encode()


@pytest.mark.parametrize(("path", "field", "of", "limit"), CAPS.values(), ids=CAPS.keys())
async def test_a_cap_admits_its_limit_and_nothing_above(
    path: str, field: str, of: Callable[[int], Any], limit: int
) -> None:
    headers = {"content-type": "application/json"}
    async with client_of(create_app(FakeModels(fake=FakeChat()))) as client:
        at_limit = await client.post(path, content=_body(path, field, of(limit)), headers=headers)
        for much in (limit + 1, min(limit * 1000, guards.MAX_BODY_BYTES + 1)):
            body = _body(path, field, of(much))
            took = []
            # The machine may be busy: the quickest of three is what the server needs.
            for _ in range(3):
                began = time.perf_counter()
                refused = await client.post(path, content=body, headers=headers)
                took.append(time.perf_counter() - began)
            status = 413 if len(body) > guards.MAX_BODY_BYTES else 400
            assert refused.status_code == status, refused.text[:200]
            assert is_told_rightly(path, refused.json())
            assert len(refused.content) < 2000
            # What is longer than a mebibyte also has to be read.
            assert min(took) <= LATE_S * max(1, len(body) / MIB)

    # A name at its limit is one that no model has.
    assert at_limit.status_code == (404 if field == "model" else 200), at_limit.text[:200]


async def test_header_fields_and_their_bytes_have_caps() -> None:
    async with client_of(create_app(FakeModels(fake=FakeChat()))) as client:
        own = len(client.headers) + 1
        most = guards.MAX_HEADER_FIELDS - own
        for count, status in ((most, 200), (most + 1, 431), (1000 * most, 431)):
            headers = {f"x-{at}": "1" for at in range(count)}
            assert (await client.get("/health", headers=headers)).status_code == status, count
        for size, status in (
            (guards.MAX_HEADER_BYTES - 500, 200),
            (guards.MAX_HEADER_BYTES + 1, 431),
            (guards.MAX_HEADER_BYTES * 1000, 431),
        ):
            answer = await client.get("/health", headers={"x-long": "x" * size})
            assert answer.status_code == status, size


async def test_a_body_that_never_ends_costs_at_most_twice_its_cap() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += MIB
            yield b" " * MIB

    process = psutil.Process()
    async with client_of(create_app(FakeModels(fake=FakeChat()))) as client:
        await client.get("/health")
        before = process.memory_info().rss
        headers = {"content-type": "application/json"}
        answer = await client.post(CHAT, content=endless(), headers=headers)
        grown = process.memory_info().rss - before

    assert answer.status_code == 413
    assert grown <= 2 * guards.MAX_BODY_BYTES
    assert sent <= guards.MAX_BODY_BYTES + 2 * MIB
