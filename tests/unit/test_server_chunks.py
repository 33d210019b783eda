"""A stream's pieces on the wire: one chunk each, whatever way they take to the socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from localrun.chat.messages import ReplyEvent
from localrun.server.app import create_app
from localrun.server.guards import ServerOptions
from tests.fake_chat import FakeChat, FakeModels, ending
from tests.served import served

CHAT = "/v1/chat/completions"
FRIEND = "https://app.example"


def _question(port: int, *, version: str = "1.1", extra: str = "", **fields: Any) -> bytes:
    asked = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    text = json.dumps(asked | fields).encode()
    head = (
        f"POST {CHAT} HTTP/{version}\r\nHost: 127.0.0.1:{port}\r\n{extra}"
        f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    )
    return head.encode() + text


async def _chunks(reader: asyncio.StreamReader) -> list[bytes]:
    """The pieces of one chunked body, to its end."""
    pieces = []
    while size := int(await reader.readline(), 16):
        pieces.append(await reader.readexactly(size))
        assert await reader.readexactly(2) == b"\r\n"
    assert await reader.readexactly(2) == b"\r\n"
    return pieces


async def test_each_event_is_a_chunk_and_the_connection_serves_the_next_request() -> None:
    chat = FakeChat((ReplyEvent(text="é" * 20), ReplyEvent(text="lo"), ending()))
    async with served(create_app(FakeModels(fake=chat))) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answers = []
        for _ in range(3):
            writer.write(_question(port))
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            answers.append(await _chunks(reader))
            assert b"transfer-encoding: chunked" in head
            assert b"content-type: text/event-stream" in head
        writer.close()
        await writer.wait_closed()

    for pieces in answers:
        assert all(piece.startswith(b"data: ") and piece.endswith(b"\n\n") for piece in pieces)
        assert pieces[-1] == b"data: [DONE]\n\n"
        deltas = [json.loads(piece[6:])["choices"][0]["delta"] for piece in pieces[:-1]]
        assert deltas[1:3] == [{"content": "é" * 20}, {"content": "lo"}]


async def test_requests_sent_ahead_are_answered_one_after_the_other() -> None:
    async with served(create_app(FakeModels(fake=FakeChat()))) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_question(port) + _question(port))
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            assert (await _chunks(reader))[-1] == b"data: [DONE]\n\n"
        writer.close()
        await writer.wait_closed()


async def test_a_client_of_http_1_0_gets_the_bare_stream_and_the_end_of_the_connection() -> None:
    async with served(create_app(FakeModels(fake=FakeChat()))) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_question(port, version="1.0"))
        head, _, stream = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    events = stream.split(b"\n\n")
    assert b"chunked" not in head.lower()
    assert [event[:6] for event in events[:-1]] == [b"data: "] * (len(events) - 1)
    assert events[-2:] == [b"data: [DONE]", b""]


async def test_a_friends_stream_has_his_origin_in_its_head() -> None:
    app = create_app(FakeModels(fake=FakeChat()), ServerOptions(origins=(FRIEND,)))
    async with served(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_question(port, extra=f"Origin: {FRIEND}\r\nConnection: close\r\n"))
        head = await reader.readuntil(b"\r\n\r\n")
        pieces = await _chunks(reader)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    assert f"access-control-allow-origin: {FRIEND}".encode() in head.lower()
    assert pieces[-1] == b"data: [DONE]\n\n"


@pytest.mark.parametrize("size", [1, 15, 16, 255, 256, 100_000])
async def test_a_chunk_of_any_size_is_as_long_as_it_says(size: int) -> None:
    chat = FakeChat((ReplyEvent(text="x" * size), ending()))
    async with served(create_app(FakeModels(fake=chat))) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_question(port))
        await reader.readuntil(b"\r\n\r\n")
        pieces = await _chunks(reader)
        writer.close()
        await writer.wait_closed()

    assert json.loads(pieces[1][6:])["choices"][0]["delta"] == {"content": "x" * size}


async def test_a_client_that_reads_slowly_gets_every_piece() -> None:
    texts = [f"{n}," * 5000 for n in range(800)]
    chat = FakeChat((*(ReplyEvent(text=text) for text in texts), ending()))
    async with served(create_app(FakeModels(fake=chat))) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(_question(port))
        await reader.readuntil(b"\r\n\r\n")
        assert chat.running == 1
        pieces = await _chunks(reader)
        writer.close()
        await writer.wait_closed()

    told = [json.loads(piece[6:])["choices"][0]["delta"] for piece in pieces[1:-2]]
    assert told == [{"content": text} for text in texts]
