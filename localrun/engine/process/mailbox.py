"""Knows no process: one request's events between the reader that brings them and its consumer.

A slow consumer holds up nobody: while it is busy, events melt into one with the same text, so a
mailbox never holds more than two, progress and text, however long the queue would have been.
"""

from __future__ import annotations

import asyncio

from localrun.engine.joined import Joined
from localrun.engine.request import TokenEvent
from localrun.errors import LocalrunError


class Mailbox:
    """``put`` and ``fail`` never wait; ``take`` waits for something to give.

    One event loop, one consumer.
    """

    __slots__ = ("_error", "_events", "_loop", "_waiting", "id")

    def __init__(self, id_: str) -> None:
        self.id = id_
        self._loop = asyncio.get_running_loop()
        self._events = Joined()
        self._error: LocalrunError | None = None
        self._waiting: asyncio.Future[None] | None = None

    def put(self, event: TokenEvent) -> None:
        self._events.add(event)
        self._wake()

    def fail(self, error: LocalrunError) -> None:
        """What ``take`` raises once the events before it are taken."""
        self._error = error
        self._wake()

    async def take(self) -> TokenEvent:
        """What has arrived since the last call, as one event: progress first, then all the rest.

        Raises:
            LocalrunError: what ``fail`` was given.
        """
        while not self._events:
            if self._error is not None:
                raise self._error
            self._waiting = self._loop.create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        return self._events.take()

    def _wake(self) -> None:
        # A consumer that was cancelled a moment ago has a future that is done.
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
