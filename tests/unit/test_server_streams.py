"""Streams of every dialect: a sign of life where nothing can be told yet, and an end that is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from localrun.chat.messages import ReplyEvent
from localrun.errors import ContextLengthError
from localrun.server.answers import WAITING
from localrun.server.app import create_app
from tests.fake_chat import FakeChat, FakeModels, ending
from tests.served import served
from tests.unit.test_server_chat import client_of

MESSAGES = [{"role": "user", "content": "Hi"}]
COMMENTED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": MESSAGES}),
    "completions": ("/v1/completions", {"prompt": "Hi"}),
    "llama.cpp": ("/completion", {"prompt": "Hi"}),
    "infill": ("/infill", {"input_prefix": "a", "input_suffix": "b"}),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "responses": ("/v1/responses", {"input": "Hi"}),
    "messages": ("/v1/messages", {"messages": MESSAGES, "max_tokens": 9}),
    "ollama chat": ("/api/chat", {"messages": MESSAGES}),
    "ollama generate": ("/api/generate", {"prompt": "Hi"}),
}
commented = pytest.mark.parametrize(("path", "fields"), COMMENTED.values(), ids=COMMENTED.keys())
VERSIONS = ["1.1", "1.0"]


@dataclass
class Hesitant(FakeChat):
    """Says nothing between two texts until it is told to."""

    spoken: asyncio.Event = field(default_factory=asyncio.Event)

    async def _say(self) -> AsyncGenerator[ReplyEvent]:
        yield ReplyEvent(text="Hel")
        await self.spoken.wait()
        yield ReplyEvent(text="lo")
        yield ending()


@asynccontextmanager
async def asked(
    models: FakeModels, path: str, fields: dict[str, Any], version: str = "1.1"
) -> AsyncIterator[asyncio.StreamReader]:
    """What a server sends that was asked for a stream, and then closes the connection."""
    async with served(create_app(models)) as port:
        text = json.dumps({"model": "fake", "stream": True} | fields)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"POST {path} HTTP/{version}\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
        )
        async with asyncio.timeout(10):
            yield reader
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("version", VERSIONS)
@commented
async def test_silence_within_a_stream_is_broken_by_comments(
    path: str, fields: dict[str, Any], version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localrun.server.answers.QUIET_S", 0.0)
    chat = Hesitant()
    async with asked(FakeModels(fake=chat), path, fields, version) as reader:
        before = await reader.readuntil(b'"Hel"')
        await reader.readuntil(WAITING)
        await reader.readuntil(WAITING)
        chat.spoken.set()
        after = await reader.read()

    assert b"200 OK" in before
    assert b'"lo"' in after


@commented
async def test_a_stream_begins_while_its_model_still_loads(
    path: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localrun.server.answers.QUIET_S", 0.0)
    monkeypatch.setattr("localrun.server.answering.BEGIN_S", 0.0)
    chat, loaded = FakeChat(), asyncio.Event()

    class Loading(FakeModels):
        @asynccontextmanager
        async def lease(self, name: str, *, keep_s: float | None = None) -> AsyncIterator[FakeChat]:
            await loaded.wait()
            yield chat

    async with asked(Loading(), path, fields) as reader:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(WAITING)
        assert chat.running == 0
        loaded.set()
        answer = await reader.read()

    assert b"text/event-stream" in head
    assert answer.index(b'"Hel"') < answer.index(b'"lo"')


@commented
async def test_an_error_after_a_stream_has_begun_is_its_last_event(
    path: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localrun.server.answering.BEGIN_S", 0.0)
    loaded = asyncio.Event()

    class Loading(FakeModels):
        @asynccontextmanager
        async def lease(self, name: str, *, keep_s: float | None = None) -> AsyncIterator[FakeChat]:
            await loaded.wait()
            yield FakeChat(error=ContextLengthError(5000, 4096))

    async with asked(Loading(), path, fields) as reader:
        await reader.readuntil(b"\r\n\r\n")
        loaded.set()
        answer = await reader.read()

    assert b'"context_length_exceeded"' in answer


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("path", "fields"), OTHERS.values(), ids=OTHERS.keys())
async def test_dialects_with_words_of_their_own_or_without_comments_have_none(
    path: str, fields: dict[str, Any], version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localrun.server.answers.QUIET_S", 0.0)
    chat = Hesitant()
    async with asked(FakeModels(fake=chat), path, fields, version) as reader:
        before = await reader.readuntil(b'"Hel"')
        for _ in range(100):
            await asyncio.sleep(0)
        chat.spoken.set()
        after = await reader.read()

    assert WAITING not in before + after
    assert b'"lo"' in after


@pytest.mark.parametrize("events", [(), (ReplyEvent(text="Hel"),)], ids=["none", "some text"])
@pytest.mark.parametrize(
    ("path", "fields"), (COMMENTED | OTHERS).values(), ids=(COMMENTED | OTHERS).keys()
)
async def test_events_that_end_without_a_last_one_are_an_error(
    path: str, fields: dict[str, Any], events: tuple[ReplyEvent, ...]
) -> None:
    async with client_of(create_app(FakeModels(fake=FakeChat(events)))) as client:
        body = {"model": "fake", "stream": True} | fields
        sent = (await client.post(path, json=body)).text

    assert sent.count("without a last event") == 1
