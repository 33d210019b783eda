"""Knows no dialect: events of an answer, and when there have been none for a while."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from localrun.chat.messages import ReplyEvent

# What is read before whoever takes the events has come back for more.
_MOST_AHEAD: Final = 16


async def ticking(
    events: AsyncIterator[ReplyEvent], every_s: float
) -> AsyncGenerator[ReplyEvent | None]:
    """The events, and None whenever none has come for ``every_s``. Ends with them.

    One task reads for the whole answer: a task and a timer for each event would cost more than all
    else that is done for it here.
    """
    reader = _Reader(events, every_s)
    reading = asyncio.ensure_future(reader.read())
    try:
        while (came := await reader.take()) is not _ENDED:
            yield came if isinstance(came, ReplyEvent) else None
        await reading
    finally:
        reader.stop()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


class _End:
    """What comes after the last event."""


_ENDED: Final = _End()


class _Reader:
    def __init__(self, events: AsyncIterator[ReplyEvent], every_s: float) -> None:
        self._events = events
        self._every_s = every_s
        self._loop = asyncio.get_running_loop()
        self._came: deque[ReplyEvent | _End] = deque()
        self._taker: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._waits_since = self._loop.time()
        self._timer = self._loop.call_later(every_s, self._tick)

    async def read(self) -> None:
        try:
            async for event in self._events:
                self._came.append(event)
                _wake(self._taker)
                if len(self._came) >= _MOST_AHEAD:
                    self._room = self._loop.create_future()
                    await self._room
        finally:
            self._came.append(_ENDED)
            _wake(self._taker)

    async def take(self) -> ReplyEvent | _End | None:
        """The next event, or None where it does not come in time."""
        if not self._came:
            self._waits_since = self._loop.time()
            self._taker = self._loop.create_future()
            await self._taker
            self._taker = None
            if not self._came:
                return None
        _wake(self._room)
        return self._came.popleft()

    def stop(self) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        # One timer that looks back, as setting it anew at each event costs too.
        left = self._every_s
        if self._taker is not None:
            left -= self._loop.time() - self._waits_since
            if left <= 0:
                _wake(self._taker)
                left = self._every_s
        self._timer = self._loop.call_later(left, self._tick)


def _wake(sleeper: asyncio.Future[None] | None) -> None:
    if sleeper is not None and not sleeper.done():
        sleeper.set_result(None)
