"""Knows no process: one request's events between the reader that brings them and its consumer.

A slow consumer holds up nobody: while it is busy, events melt into one with the same text, so a
mailbox never holds more than one event, whatever the length of the queue would have been.
"""

from __future__ import annotations

import asyncio

from localrun.engine.request import TokenEvent
from localrun.errors import LocalrunError


class Mailbox:
    """``put`` and ``fail`` never wait; ``take`` waits for something to give. One event loop."""

    def __init__(self) -> None:
        self._ready = asyncio.Event()
        self._texts: list[str] = []
        self._tokens: list[int] = []
        self._last: TokenEvent | None = None
        self._prefilled: int | None = None
        self._error: LocalrunError | None = None

    def put(self, event: TokenEvent) -> None:
        self._texts.append(event.text)
        self._tokens.extend(event.tokens)
        if event.prefilled is not None:
            self._prefilled = event.prefilled
        self._last = event
        self._ready.set()

    def fail(self, error: LocalrunError) -> None:
        """What ``take`` raises once the events before it are taken."""
        self._error = error
        self._ready.set()

    async def take(self) -> TokenEvent:
        """All that has arrived since the last call, as one event.

        Raises:
            LocalrunError: what ``fail`` was given.
        """
        await self._ready.wait()
        last = self._last
        if last is None:
            assert self._error is not None
            raise self._error
        event = TokenEvent(
            id=last.id,
            text="".join(self._texts),
            tokens=tuple(self._tokens),
            prefilled=self._prefilled,
            finish=last.finish,
            timings=last.timings,
            error=last.error,
        )
        self._last = self._prefilled = None
        self._texts.clear()
        self._tokens.clear()
        if self._error is None:
            self._ready.clear()
        return event
