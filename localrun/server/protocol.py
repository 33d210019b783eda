"""Knows no route: HTTP/1.1 as uvicorn reads it, with a deadline for requests to arrive.

uvicorn waits for ever for a request that comes byte by byte, and answers some malformed Host
headers before any application sees them; both are put right here. Streams of tokens get a shorter
way to the socket (``ChunkWriter``): through the layers each would cost more than its sampling.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from localrun.server.guards import Receive, Scope, Send

RECEIPT_S = 10.0


class ChunkWriter:
    """Writes pieces of the response's body past the layers, between its start and its end, which
    take the ordinary way. One of these is in each request's scope, under ``SCOPE_KEY``."""

    SCOPE_KEY = "localrun.chunks"

    def __init__(self, protocol: DeadlineProtocol) -> None:
        self._protocol = protocol

    @property
    def usable(self) -> bool:
        """Whether the response has started and its body is sent in chunks."""
        connection = self._protocol.conn
        version = connection.their_http_version or b"1.0"
        is_head = self._protocol.scope["method"] == "HEAD"
        return connection.our_state is h11.SEND_BODY and version >= b"1.1" and not is_head

    def write(self, data: bytes) -> bool:
        """Send one piece, not empty; True where ``drain`` has to be awaited before the next.

        Only while ``usable``. To a client that has gone nothing is sent.
        """
        transport = self._protocol.transport
        if not transport.is_closing():
            # https://www.rfc-editor.org/rfc/rfc9112#name-chunked-transfer-coding
            transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return self._protocol.flow.write_paused

    async def drain(self) -> None:
        """Wait until the client has read enough of what was written, or is gone."""
        await self._protocol.flow.drain()


class DeadlineProtocol(H11Protocol):
    """One connection. A request must be here whole ``receipt_s`` seconds after its first byte."""

    receipt_s = RECEIPT_S

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._inner = self.app
        # An application that keeps records is told of what never reaches it.
        self._refused: Callable[[int], None] = getattr(self.app, "refused", lambda status: None)
        self.app = self._with_writer

    async def _with_writer(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[ChunkWriter.SCOPE_KEY] = ChunkWriter(self)
        await self._inner(scope, receive, send)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._arm()
        super().data_received(data)
        if self._is_whole():
            self._disarm()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_whole():
            self._disarm()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, and as the guards do where the Host is at fault."""
        status = 403 if "Host: header" in str(sys.exc_info()[1]) else 400
        self._refused(status)
        # An answer may be under way: then nothing more can be said on this connection.
        with contextlib.suppress(h11.LocalProtocolError):
            self.transport.write(_empty_response(self.conn, status))
        self.transport.close()

    def _is_whole(self) -> bool:
        return self.conn.their_state not in (h11.IDLE, h11.SEND_BODY)

    def _arm(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.receipt_s, self._too_late)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.abort()


def _empty_response(connection: h11.Connection, status: int) -> bytes:
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    response = h11.Response(status_code=status, headers=headers)
    return (connection.send(response) or b"") + (connection.send(h11.EndOfMessage()) or b"")
