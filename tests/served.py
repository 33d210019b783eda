"""An application on a real loopback port, for tests that speak over a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from localrun.server.app import ServedApp
from localrun.server.serving import StoppingServer, listen, server_config


@asynccontextmanager
async def served(app: ServedApp, *, api_key: str | None = None) -> AsyncIterator[int]:
    """The port on which ``app`` is served until the block ends."""
    listener = listen("127.0.0.1", 0, api_key=api_key)
    server = StoppingServer(server_config(app), app)
    port: int = listener.getsockname()[1]
    with listener:
        running = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0)
        try:
            yield port
        finally:
            server.should_exit = True
            await running


async def exchange(port: int, data: bytes) -> bytes:
    """Send bytes, and read until the server closes or a whole response is here."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == LENGTH), 0
        )
        return head + await reader.readexactly(length)
    finally:
        writer.close()
        await writer.wait_closed()


LENGTH = b"content-length:"


def status(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])


def body(response: bytes) -> bytes:
    return response.partition(b"\r\n\r\n")[2]
