"""A ChatModel and its provider without an engine: what a server test needs said is said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

from localrun.chat.choices import merged
from localrun.chat.messages import Message, ReplyEvent, ReplyOptions, ServedModel
from localrun.engine.request import FinishReason, Timings
from localrun.errors import LocalrunError, ModelNotFoundError
from localrun.server.app import ModelCard

TIMINGS = Timings(
    prompt_tokens=10, cached_tokens=4, generated_tokens=3, prefill_s=0.5, decode_s=0.25
)


def ending(reason: FinishReason = FinishReason.STOP) -> ReplyEvent:
    return ReplyEvent(prompt_tokens=10, finish=reason, timings=TIMINGS)


@dataclass
class FakeChat:
    """Says ``events``; raises ``error`` first, or waits for ever after them with ``endless``."""

    events: Sequence[ReplyEvent] = (ReplyEvent(text="Hel"), ReplyEvent(text="lo"), ending())
    error: LocalrunError | None = None
    endless: bool = False
    name: str = "fake"
    backend: str = "none"
    n_ctx: int = 100
    asked: list[tuple[Sequence[Message], ReplyOptions]] = field(default_factory=list)
    running: int = 0
    started: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False

    async def reply(
        self, messages: Sequence[Message], options: ReplyOptions
    ) -> AsyncGenerator[ReplyEvent]:
        self.asked.append((messages, options))
        self.running += 1
        self.started.set()
        try:
            if self.error is not None:
                raise self.error
            for event in self.events:
                yield event
            if self.endless:
                await asyncio.Event().wait()
        finally:
            self.running -= 1
            self.ended.set()

    async def replies(
        self, messages: Sequence[Message], options: ReplyOptions, n: int
    ) -> AsyncGenerator[ReplyEvent]:
        streams = [self.reply(messages, options) for _ in range(n)]
        async with aclosing(merged(streams)) as events:
            async for choice, event in events:
                yield replace(event, choice=choice)

    async def close(self) -> None:
        self.closed = True


class FakeModels:
    """A ModelProvider of ready models."""

    def __init__(self, **models: FakeChat) -> None:
        self._models = models
        self.closed = False

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[ServedModel]:
        if name not in self._models:
            raise ModelNotFoundError(f"no model is called {name!r}", nearest=("fake",))
        yield self._models[name]

    def names(self) -> Sequence[ModelCard]:
        return [ModelCard(id=name, created=1_700_000_000) for name in self._models]

    async def close(self) -> None:
        self.closed = True
