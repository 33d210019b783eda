"""An EngineClient whose answers are written down, and its tokens the characters of a text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from localrun.engine.client import EngineInfo
from localrun.engine.request import FinishReason, GenerationRequest, Timings, TokenEvent
from localrun.errors import EngineCrashedError

TIMINGS = Timings(5, 0, 2, 0.1, 0.2)


@dataclass
class ScriptedClient:
    """An engine that answers with a script and remembers what it was asked."""

    chunks: list[str]
    template: str | None = None
    bos: str = "<s>"
    add_bos: bool = True
    requests: list[GenerationRequest] = field(default_factory=list)
    tokenized: list[tuple[str, bool, bool]] = field(default_factory=list)
    error: Exception | None = None
    events: list[TokenEvent] = field(default_factory=list)
    fails_at: int | None = None
    last: TokenEvent | None = None
    cancellations: int = 0
    closed: bool = False

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            "smollm2", "mock", "llama", 64, self.bos, "</s>", self.add_bos, self.template
        )

    async def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        self.tokenized.append((text, add_special, parse_special))
        return list(range(len(text)))

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        self.requests.append(request)
        at = len(self.requests) - 1
        if self.error:
            raise self.error
        for event in self.events:
            yield event
        if self.events:
            return
        try:
            yield TokenEvent(request.id, prefilled=3)
            for chunk in self.chunks:
                if at == self.fails_at:
                    raise EngineCrashedError("SIGSEGV")
                await asyncio.sleep(0)
                yield TokenEvent(request.id, text=chunk)
        except (GeneratorExit, asyncio.CancelledError):
            self.cancellations += 1
            raise
        yield self.last or TokenEvent(request.id, finish=FinishReason.STOP, timings=TIMINGS)

    async def close(self) -> None:
        self.closed = True
