"""Row N9 of the threat table: prompts that no context holds are soon refused and hold up nobody."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, Final

import pytest

from tests.engine_child import importable, plan
from tests.ported import Model, Port, ported
from tests.security.port_routes import examples
from tests.served import body, exchange, status

__all__ = ["importable"]
pytestmark = pytest.mark.usefixtures("importable")

MODEL: Final = "mock:echo"
N_CTX: Final = 4096
WORDS: Final = "ab cd\n" * 1_700_000
OVER: Final = "x" * (N_CTX + 1)
# Where the text of a route's example stands.
FIELDS: Final = {
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
    "/v1/responses": "input",
    "/api/generate": "prompt",
    "/api/embed": "input",
    "/completion": "prompt",
}
# What a path is asked for else.
FURTHER: Final[dict[str, dict[str, Any]]] = {"/api/embed": {"truncate": False}}
# Ollama's way: a text to embed is cut where the client does not say otherwise.
CUT: Final = {"/api/embed": "input", "/api/embeddings": "prompt"}
TALKING: Final = ("/v1/chat/completions", "/v1/messages", "/api/chat", "/v1/responses")


def long_bodies() -> dict[str, tuple[str, dict[str, Any]]]:
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for size, text in (("ten megabytes", WORDS), ("one more than fits", OVER)):
        for path, field in FIELDS.items():
            found[f"{size} to {path}"] = path, {field: text, **FURTHER.get(path, {})}
        for path in TALKING[:3]:
            found[f"{size} to {path}"] = path, {"messages": [{"role": "user", "content": text}]}
    for path in TALKING:
        turns = [{"role": "user", "content": "x"}] * 100_000
        field = "input" if path == "/v1/responses" else "messages"
        found[f"100,000 turns to {path}"] = path, {field: turns}
    return found


def cut_bodies() -> dict[str, tuple[str, dict[str, Any]]]:
    return {f"ten megabytes cut by {path}": (path, {name: WORDS}) for path, name in CUT.items()}


def code_of(path: str, document: Any) -> str | None:
    """What tells a program that the context is too short, in the path's dialect."""
    error = document["error"]
    if path.startswith("/api/") or path == "/v1/messages":
        text = error if isinstance(error, str) else error["message"]
        said = "the context holds" in text or "prompt is too long" in text
        return "context_length_exceeded" if said else None
    code: str | None = error["code"]
    return code


async def probing(port: Port, waited: list[float]) -> None:
    request = f"GET /health HTTP/1.1\r\nHost: localhost:{port.number}\r\n\r\n".encode()
    while True:
        began = time.perf_counter()
        assert status(await exchange(port.number, request)) == 200
        waited.append(time.perf_counter() - began)
        # Some 500 a second at most: more would measure what probes do to each other.
        await asyncio.sleep(0.002)


async def test_what_no_context_holds_is_refused_within_a_second_and_holds_up_nobody() -> None:
    waited: list[float] = []
    late: dict[str, float] = {}
    async with ported({MODEL: Model(plan(MODEL, n_ctx=N_CTX))}) as port:
        # Loaded, as a model is whose users would notice.
        assert await port.said(MODEL, "Hi") == "Hi"
        for name, (path, fields) in (long_bodies() | cut_bodies()).items():
            text = json.dumps(examples(MODEL)[path] | fields).encode()
            request = (
                f"POST {path} HTTP/1.1\r\nHost: localhost:{port.number}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
            ).encode() + text
            # Only now: what the client takes to write its request is no delay of the server's.
            probe = asyncio.create_task(probing(port, waited))
            before = len(waited)
            while len(waited) < before + 3:
                await asyncio.sleep(0)
            began = time.perf_counter()
            answer = await exchange(port.number, request)
            late[name] = time.perf_counter() - began
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)
            if name in cut_bodies():
                assert status(answer) == 200, (name, body(answer)[:200])
                continue
            assert status(answer) == 400, (name, body(answer)[:200])
            assert code_of(path, json.loads(body(answer))) == "context_length_exceeded", name
        assert await port.said(MODEL, "after") == "after"

    waited.sort()
    assert max(late.values()) <= 1, late
    assert len(waited) >= 100
    assert waited[len(waited) * 99 // 100] <= 0.1
