"""Knows no dialect: what comes by and by, and when there has been nothing for a while."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Final, Generic, TypeVar

Came = TypeVar("Came")

# What is read before whoever takes the events has come back for more.
_MOST_AHEAD: Final = 16


async def ticking(events: AsyncIterator[Came], every_s: float) -> AsyncGenerator[Came | None]:
    """The events, and None whenever none has come for ``every_s``. Ends with them.

    One task reads for the whole answer: a task and a timer for each event would cost more than all
    else that is done for it here.
    """
    reader = _Reader(events, every_s)
    reading = asyncio.ensure_future(reader.read())
    try:
        while not isinstance(came := await reader.take(), _End):
            yield came
        await reading
    finally:
        reader.stop()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


class _End:
    """What comes after the last event."""


_ENDED: Final = _End()


class _Reader(Generic[Came]):
    def __init__(self, events: AsyncIterator[Came], every_s: float) -> None:
        self._events = events
        self._every_s = every_s
        self._loop = asyncio.get_running_loop()
        self._came: deque[Came | _End] = deque()
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

    async def take(self) -> Came | _End | None:
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


class Silence:
    """Calls ``broken`` whenever nothing was ``heard`` for ``every_s``, until it is stopped.

    Cheaper than ``ticking`` where whoever breaks the silence need not wait for anything.
    """

    def __init__(self, every_s: float, broken: Callable[[], object]) -> None:
        self._every_s = every_s
        self._broken = broken
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._timer = self._loop.call_later(every_s, self._tick)

    def heard(self) -> None:
        self._since = self._loop.time()

    def stop(self) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        left = self._since + self._every_s - self._loop.time()
        if left <= 0:
            self._broken()
            self.heard()
            left = self._every_s
        self._timer = self._loop.call_later(left, self._tick)


def _wake(sleeper: asyncio.Future[None] | None) -> None:
    if sleeper is not None and not sleeper.done():
        sleeper.set_result(None)
