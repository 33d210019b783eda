"""Knows no process: frames to and from a socket, on an event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from localrun.engine.process import frames
from localrun.errors import EngineError

# More than the events of any step take; a longer frame comes in parts.
_BUFFER_BYTES: Final = 256 * 1024


class Channel(asyncio.BufferedProtocol):
    """Frames come to ``on_frame`` as they arrive; ``on_end`` is told once that no more can come,
    with the damage where the other side sent what is none.

    What ``on_frame`` raises of EngineError, LookupError, TypeError or ValueError counts as damage.
    """

    def __init__(
        self, on_frame: Callable[[frames.Frame], None], on_end: Callable[[Exception | None], None]
    ) -> None:
        self._on_frame = on_frame
        self._on_end = on_end
        self._frames = frames.FrameBuffer()
        # Kept: what asyncio would make for each read costs more than the reading.
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._transport: asyncio.Transport
        self._damage: Exception | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._writing = asyncio.Lock()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self, here: socket.socket) -> None:
        """Take over a connected socket."""
        await asyncio.get_running_loop().create_connection(lambda: self, sock=here)

    def send(self, frame: frames.Frame) -> None:
        """Send at once or as soon as it goes. On a channel that has ended it is nothing.

        Raises:
            EngineError: the frame is too large.
        """
        data = frames.pack(frame)
        if not self._transport.is_closing():
            self._transport.write(data)

    async def send_in_turn(self, frame: frames.Frame) -> None:
        """``send``, but not while the other side is behind: one large frame waits at a time.

        Raises:
            EngineError: the frame is too large.
        """
        if self._writable.is_set() and not self._writing.locked():
            self.send(frame)
            return
        async with self._writing:
            await self._writable.wait()
            self.send(frame)

    def close(self) -> None:
        """End once everything is sent."""
        self._transport.close()

    def abort(self) -> None:
        """End now."""
        self._transport.abort()

    # asyncio.BufferedProtocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, _: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for frame in self._frames.feed(bytes(self._buffer[:nbytes])):
                self._on_frame(frame)
        except (EngineError, LookupError, TypeError, ValueError) as damage:
            self._damage = damage
            self._transport.abort()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, _: Exception | None) -> None:
        # Who waits for its turn finds the channel closed.
        self._writable.set()
        self.ended.set_result(None)
        self._on_end(self._damage)
