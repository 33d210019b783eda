"""Knows no process: one request's events between the reader that brings them and its consumer.

A slow consumer holds up nobody: while it is busy, events melt into one with the same text, so a
mailbox never holds more than two, progress and text, however long the queue would have been.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

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
        """What has arrived since the last call, as one event: progress first, then all the rest.

        Raises:
            LocalrunError: what ``fail`` was given.
        """
        await self._ready.wait()
        last = self._last
        if last is None:
            assert self._error is not None
            raise self._error
        if self._prefilled is not None:
            progress, self._prefilled = self._prefilled, None
            if last.prefilled is not None:
                self._taken()
            return TokenEvent(last.id, prefilled=progress)
        text, tokens = "".join(self._texts), tuple(self._tokens)
        self._taken()
        return replace(last, text=text, tokens=tokens)

    def _taken(self) -> None:
        self._last = None
        self._texts.clear()
        self._tokens.clear()
        if self._error is None:
            self._ready.clear()
