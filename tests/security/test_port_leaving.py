"""Row N8 of the threat table, in every dialect: clients that leave at any point leave nothing."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any, Final

import psutil
import pytest

from localrun.chat.messages import ReplyEvent
from localrun.server.app import create_app
from localrun.server.record import CLIENT_CLOSED_REQUEST
from tests.fake_chat import FakeChat, FakeModels
from tests.security.port_routes import examples
from tests.served import exchange, served, status

PATHS: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/api/chat",
    "/api/generate",
    "/completion",
    "/infill",
)
# The events that come before the answer stops, and what of it the client waits for before it goes.
POINTS: Final[dict[str, tuple[tuple[ReplyEvent, ...], bytes]]] = {
    "before the first event": ((), b""),
    "in prefill": ((ReplyEvent(prefilled=1),), b""),
    "after the first text": ((ReplyEvent(text="lo"),), b"lo"),
    "after many": ((ReplyEvent(text="a"),) * 20 + (ReplyEvent(text="lo"),), b"lo"),
}
CYCLES: Final = 200


def posted(port: int, path: str, stream: bool, model: str = "fake") -> bytes:
    text = json.dumps(examples(model)[path] | {"stream": stream})
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(text)}\r\n\r\n{text}"
    ).encode()


async def leave(port: int, chat: FakeChat, path: str, stream: bool, seen: bytes) -> None:
    chat.started.clear()
    chat.ended.clear()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(posted(port, path, stream, chat.name))
    async with asyncio.timeout(5):
        await chat.started.wait()
        if stream and seen:
            await reader.readuntil(seen)
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        await chat.ended.wait()


async def test_two_hundred_clients_of_all_dialects_leave_nothing_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chats = {
        f"silent-{at}": FakeChat(events, endless=True, name=f"silent-{at}")
        for at, (events, _) in enumerate(POINTS.values())
    }
    ways = [
        (path, chat, stream, seen)
        for path in PATHS
        for chat, (_, seen) in zip(chats.values(), POINTS.values(), strict=True)
        for stream in (True, False)
    ]
    leaving = [*ways] * -(-CYCLES // len(ways))
    process = psutil.Process()
    with caplog.at_level(logging.INFO, "localrun.server.requests"):
        async with served(create_app(FakeModels(fake=FakeChat(), **chats))) as port:
            for path in PATHS:
                assert status(await exchange(port, posted(port, path, False))) == 200
            tasks, files = len(asyncio.all_tasks()), process.num_fds()
            for path, chat, stream, seen in leaving:
                await leave(port, chat, path, stream, seen)
            async with asyncio.timeout(5):
                while len(asyncio.all_tasks()) > tasks or process.num_fds() > files:
                    await asyncio.sleep(0)
            for path in PATHS:
                assert status(await exchange(port, posted(port, path, False))) == 200

    logged = [facts["status"] for facts in _facts(caplog)]
    assert [chat.running for chat in chats.values()] == [0] * len(chats)
    # Every one that left is told as that, and no normal end is.
    assert logged == [200] * len(PATHS) + [CLIENT_CLOSED_REQUEST] * len(leaving) + [200] * len(
        PATHS
    )


def _facts(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record)["facts"] for record in caplog.records if "facts" in vars(record)]
