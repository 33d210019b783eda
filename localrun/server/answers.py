"""Knows no dialect: work that ends when its client leaves, and streams that end when we stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from starlette.responses import Response

from localrun.chat.messages import ReplyEvent
from localrun.engine.request import FinishReason
from localrun.errors import EngineError, ServerError
from localrun.server.guards import Receive, Scope, Send
from localrun.server.protocol import ChunkWriter
from localrun.server.record import RequestRecord
from localrun.server.ticks import Silence, ticking

# Clients and proxies give up on a stream that is silent for a minute and more.
QUIET_S: Final = 10.0
# A comment of server-sent events, which no client takes for an answer's part.
# https://html.spec.whatwg.org/multipage/server-sent-events.html#authoring-notes
WAITING: Final = b": waiting\n\n"

Result = TypeVar("Result")


class ClientGone(Exception):
    """The client closed its connection: nobody reads an answer."""


async def while_connected(
    receive: Receive, stopping: asyncio.Event, work: Coroutine[Any, Any, Result]
) -> Result:
    """Run ``work`` unless its client leaves or the server stops; then it is cancelled, and over.

    Raises:
        ClientGone: the client left.
        ServerError: the server is stopping.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    stop = asyncio.ensure_future(stopping.wait())
    everyone: tuple[asyncio.Future[Any], ...] = (task, gone, stop)
    try:
        await asyncio.wait(everyone, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGone
        raise ServerError("the server is shutting down", hint="send the request again later")
    finally:
        for each in everyone:
            each.cancel()
        # Only when the generation has really ended may its request count as over.
        await asyncio.gather(*everyone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Reply:
    """A reply whose first event is waited for before anything is sent.

    So an error that comes instead of it still has its own status. ``record`` sees every event.
    """

    def __init__(self, events: AsyncIterator[ReplyEvent], record: RequestRecord) -> None:
        self._events = events
        self._record = record
        self._first: asyncio.Future[ReplyEvent | None] | None = None

    async def begin(self, within_s: float | None = None) -> None:
        """Wait for the first event, at most ``within_s``; then an error comes with the others."""
        first = asyncio.ensure_future(anext(self._events, None))
        self._first = first
        await asyncio.wait((first,), timeout=within_s)
        if first.done():
            first.result()
            self._record.stage = "running"

    def __aiter__(self) -> AsyncIterator[ReplyEvent]:
        return self

    async def __anext__(self) -> ReplyEvent:
        if self._first is not None:
            first, self._first = self._first, None
            event = await first
            if event is None:
                raise StopAsyncIteration
        else:
            event = await anext(self._events)
        self._record.take(event)
        return event

    async def aclose(self) -> None:
        """Cancel what still runs."""
        if self._first is not None:
            self._first.cancel()
            await asyncio.gather(self._first, return_exceptions=True)
        if isinstance(self._events, AsyncGenerator):
            await self._events.aclose()


class Closing(Protocol):
    def aclose(self) -> Awaitable[object]: ...


class EventStream(Response):
    """A stream of whole events made from a reply, or from anything else that goes on until closed.

    The reply is closed at its end, when the client leaves, and when the server stops (after
    ``goodbye``). The next event is asked for only when the connection has taken the last one.
    ``waiting`` is sent whenever nothing else was for ``QUIET_S``: a model loads, a long prompt is
    read; where it is empty, nothing is.
    """

    def __init__(
        self,
        reply: Closing,
        events: AsyncGenerator[bytes],
        *,
        stopping: asyncio.Event,
        goodbye: bytes,
        waiting: bytes = b"",
        media_type: str = "text/event-stream",
    ) -> None:
        super().__init__(
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"}, media_type=media_type
        )
        del self.headers["content-length"]
        self._reply = reply
        self._events = events
        self._stopping = stopping
        self._goodbye = goodbye
        self._waiting = waiting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._reply), aclosing(self._events):
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            chunks: ChunkWriter | None = scope.get(ChunkWriter.SCOPE_KEY)
            last = b""
            try:
                await while_connected(receive, self._stopping, self._pump(send, chunks))
            except ClientGone:
                return
            except ServerError:
                last = self._goodbye
            await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _pump(self, send: Send, chunks: ChunkWriter | None) -> None:
        if chunks is None or not chunks.usable:
            await self._pump_through(send)
        elif not self._waiting:
            async for event in self._events:
                if chunks.write(event):
                    await chunks.drain()
        else:
            silence = Silence(QUIET_S, partial(chunks.write, self._waiting))
            try:
                async for event in self._events:
                    silence.heard()
                    if chunks.write(event):
                        await chunks.drain()
            finally:
                silence.stop()

    async def _pump_through(self, send: Send) -> None:
        """Through all the layers."""
        async with aclosing(ticking(self._events, QUIET_S)) as events:
            async for event in events:
                body = self._waiting if event is None else event
                if body:
                    await send({"type": "http.response.body", "body": body, "more_body": True})


def unfinished() -> EngineError:
    """Of a generation that told no last event."""
    return EngineError("the generation ended without a last event")


def finish_of(event: ReplyEvent) -> FinishReason:
    """Why an answer ended.

    Raises:
        LocalrunError: by an error.
    """
    assert event.finish is not None
    if event.finish is FinishReason.ERROR:
        raise event.error or EngineError("the generation failed")
    return event.finish
