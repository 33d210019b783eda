"""A client that leaves ends its generation; a server that stops says so on every stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from localrun.chat.messages import ReplyEvent, ServedModel
from localrun.server.app import create_app
from localrun.server.provider import LoadingProvider
from tests.fake_chat import FakeChat, FakeModels
from tests.loads import unlimited
from tests.served import served

CHAT = "/v1/chat/completions"
CASES: dict[str, tuple[tuple[ReplyEvent, ...], bool, bytes]] = {
    "stream, before the first event": ((), True, b""),
    "stream, in prefill": ((ReplyEvent(prefilled=1),), True, b'"role"'),
    "stream, after some text": ((ReplyEvent(text="lo"),), True, b'"lo"'),
    "whole, before the first event": ((), False, b""),
    "whole, after some text": ((ReplyEvent(text="lo"),), False, b""),
}


async def _ask(port: int, stream: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    question: dict[str, Any] = {
        "model": "fake",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": stream,
    }
    text = json.dumps(question).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(text)}\r\n\r\n".encode()
        + text
    )
    return reader, writer


@pytest.mark.parametrize(("events", "stream", "seen"), CASES.values(), ids=CASES.keys())
async def test_a_client_that_leaves_ends_its_generation(
    events: tuple[ReplyEvent, ...], stream: bool, seen: bytes
) -> None:
    chat = FakeChat(events, endless=True)
    async with served(create_app(FakeModels(fake=chat))) as port:
        reader, writer = await _ask(port, stream)
        await chat.started.wait()
        if seen:
            await reader.readuntil(seen)
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(5):
            await chat.ended.wait()

    assert chat.running == 0


async def test_a_client_that_leaves_while_its_model_loads_does_not_start_it() -> None:
    chat, loading = FakeChat(), asyncio.Event()

    class Loading(FakeModels):
        @asynccontextmanager
        async def lease(self, name: str, *, keep_s: float | None = None) -> AsyncIterator[FakeChat]:
            loading.set()
            await asyncio.Event().wait()
            yield chat

    async with served(create_app(Loading())) as port:
        _, writer = await _ask(port, True)
        await loading.wait()
        writer.close()
        await writer.wait_closed()

    assert chat.asked == []


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_client_that_leaves_gives_its_model_back(stream: bool) -> None:
    chat = FakeChat((ReplyEvent(text="lo"),), endless=True)

    async def open_model(name: str) -> ServedModel:
        return chat

    provider = LoadingProvider(unlimited(open_model), cards=list, keep_alive_s=0.0)
    async with served(create_app(provider)) as port:
        _, staying = await _ask(port, stream)
        await chat.started.wait()
        _, leaving = await _ask(port, stream)
        async with asyncio.timeout(5):
            while chat.running < 2:
                await asyncio.sleep(0)
            for writer, others in ((leaving, 1), (staying, 0)):
                assert not chat.closed
                writer.close()
                await writer.wait_closed()
                while chat.running > others:
                    await asyncio.sleep(0)
            while not chat.closed:
                await asyncio.sleep(0)


async def test_two_hundred_clients_that_leave_leave_nothing_behind() -> None:
    chat = FakeChat((ReplyEvent(text="lo"),), endless=True)
    async with served(create_app(FakeModels(fake=chat))) as port:
        before = len(asyncio.all_tasks())
        for _ in range(20):
            streams = [await _ask(port, bool(n % 2)) for n in range(10)]
            while chat.running < 10:
                await asyncio.sleep(0)
            for _, writer in streams:
                writer.close()
                await writer.wait_closed()
            async with asyncio.timeout(5):
                while chat.running:
                    await chat.ended.wait()
                    chat.ended.clear()
        while len(asyncio.all_tasks()) > before:
            await asyncio.sleep(0)

    assert len(chat.asked) == 200


async def test_a_stopping_server_tells_each_stream_and_closes_its_models() -> None:
    chat = FakeChat((ReplyEvent(text="lo"),), endless=True)
    models = FakeModels(fake=chat)
    async with served(create_app(models)) as port:
        streaming, writer = await _ask(port, True)
        await streaming.readuntil(b'"lo"')
        whole, other = await _ask(port, False)
        while chat.running < 2:
            await asyncio.sleep(0)

    tail, answer = await streaming.read(), await whole.read()
    for each in (writer, other):
        each.close()
        await each.wait_closed()
    assert b"shutting down" in tail
    assert tail.index(b"shutting down") < tail.index(b"[DONE]")
    assert answer.startswith(b"HTTP/1.1 500")
    assert b"shutting down" in answer
    assert (chat.running, models.closed) == (0, True)


async def test_a_reader_that_stops_reading_holds_up_no_other() -> None:
    flood = FakeChat(tuple(ReplyEvent(text="x" * 1000) for _ in range(20_000)))
    quick = FakeChat()
    async with served(create_app(FakeModels(fake=flood, quick=quick))) as port:
        _, writer = await _ask(port, True)
        await flood.started.wait()
        text = json.dumps({"model": "quick", "messages": [{"role": "user", "content": "Hi"}]})
        reader, other = await asyncio.open_connection("127.0.0.1", port)
        other.write(
            f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json"
            f"\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
        )
        async with asyncio.timeout(5):
            await reader.readuntil(b"Hello")
        assert flood.running == 1
        for each in (writer, other):
            each.close()
            await each.wait_closed()
        await flood.ended.wait()
