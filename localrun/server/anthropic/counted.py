"""Knows no wire: an answer whose first event tells how long its prompt is.

Anthropic's streams begin with that number, and Claude Code shows by it how full its context is.
A prompt that is read at once tells it by itself; one that waits its turn, or is long in reading, is
counted meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

from localrun.chat.messages import Message, ReplyEvent, ReplyOptions, ServedModel
from localrun.server.answering import Ask

COUNT_AFTER_S: Final = 2.0


def counted(messages: Sequence[Message], options: ReplyOptions) -> Ask:
    """An answer to a conversation; every first event has ``prompt_tokens``."""

    async def ask(model: ServedModel) -> AsyncGenerator[ReplyEvent]:
        async with aclosing(model.reply(messages, options)) as events:
            first = asyncio.ensure_future(anext(events, None))
            try:
                await asyncio.wait((first,), timeout=COUNT_AFTER_S)
                if not _tells(first):
                    _, tokens = await model.prompt(messages, options)
                    yield ReplyEvent(prefilled=0, prompt_tokens=len(tokens))
                event = await first
            finally:
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
            if event is not None:
                yield event
            async for event in events:
                yield event

    return ask


def _tells(first: asyncio.Future[ReplyEvent | None]) -> bool:
    """Whether the event is here and has the number. Raises what came instead of it."""
    if not first.done():
        return False
    event = first.result()
    return event is None or event.prompt_tokens is not None
