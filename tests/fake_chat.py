"""A ServedModel and its provider without an engine: what a server test needs said is said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from localrun.chat.choices import merged
from localrun.chat.messages import (
    NOBODY,
    Embedded,
    Gap,
    Message,
    Prompt,
    ReplyEvent,
    ReplyOptions,
    RequestContext,
    ServedModel,
)
from localrun.engine.client import EngineInfo
from localrun.engine.request import FinishReason, Timings
from localrun.engine.runner import FillInMiddle, RunnerStats
from localrun.errors import LocalrunError, ModelNotFoundError, RequestError
from localrun.server.models import LoadedModel, ModelCard, ModelFacts, PullProgress

TIMINGS = Timings(
    prompt_tokens=10, cached_tokens=4, generated_tokens=3, prefill_s=0.5, decode_s=0.25
)
FIM = FillInMiddle(prefix=1001, suffix=1002, middle=1003, repository=1004, file=1005)
INFO = EngineInfo(
    ref="fake",
    backend="none",
    architecture="llama",
    n_ctx=100,
    bos="<s>",
    eos="</s>",
    add_bos=True,
    chat_template="{{ messages }}{{ tools }}",
    vocabulary_size=2000,
    longest_token=8,
    bos_id=1000,
    fim=FIM,
    embeds=True,
    pooling="mean",
)
FACTS = ModelFacts(
    id="fake",
    architecture="llama",
    format="gguf",
    quantization="Q4_K",
    parameters=134_500_000,
    bytes=98_000_000,
    sha256="0" * 64,
    n_ctx_train=8192,
    width=576,
    chat_template="{{ messages }}{{ tools }}",
    capabilities=frozenset({"completion", "tools", "insert"}),
    fields={"general.architecture": "llama", "llama.context_length": 8192},
)


def ending(reason: FinishReason = FinishReason.STOP) -> ReplyEvent:
    return ReplyEvent(prompt_tokens=10, finish=reason, timings=TIMINGS)


@dataclass
class FakeChat:
    """Says ``events``; raises ``error`` first, or waits for ever after them with ``endless``.

    ``asked``, ``completed``, ``filled`` and ``embedded`` are what was wanted of it. Tokens are
    bytes; a text's embedding is how often each of the letters a to d is in it.
    """

    events: Sequence[ReplyEvent] = (ReplyEvent(text="Hel"), ReplyEvent(text="lo"), ending())
    error: LocalrunError | None = None
    endless: bool = False
    name: str = "fake"
    backend: str = "none"
    n_ctx: int = 100
    info: EngineInfo = INFO
    asked: list[tuple[Sequence[Message], ReplyOptions]] = field(default_factory=list)
    completed: list[tuple[Sequence[Prompt], ReplyOptions]] = field(default_factory=list)
    filled: list[tuple[Sequence[Gap], ReplyOptions]] = field(default_factory=list)
    embedded: list[tuple[Sequence[Prompt], int | None, bool]] = field(default_factory=list)
    running: int = 0
    started: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False

    async def reply(
        self, messages: Sequence[Message], options: ReplyOptions
    ) -> AsyncGenerator[ReplyEvent]:
        self.asked.append((messages, options))
        async with aclosing(self._say()) as events:
            async for event in events:
                yield event

    async def replies(
        self, messages: Sequence[Message], options: ReplyOptions, n: int
    ) -> AsyncGenerator[ReplyEvent]:
        streams = [self.reply(messages, options) for _ in range(n)]
        async with aclosing(self._merged(streams)) as events:
            async for event in events:
                yield event

    async def completions(
        self, prompts: Sequence[Prompt], options: ReplyOptions, n: int = 1
    ) -> AsyncGenerator[ReplyEvent]:
        self.completed.append((prompts, options))
        async with aclosing(self._merged([self._say() for _ in range(len(prompts) * n)])) as said:
            async for event in said:
                yield event

    async def infill(
        self, gaps: Sequence[Gap], options: ReplyOptions, n: int = 1
    ) -> AsyncGenerator[ReplyEvent]:
        if self.info.fim is None:
            raise RequestError("this model has no fill-in-the-middle tokens", field="model")
        self.filled.append((gaps, options))
        async with aclosing(self._merged([self._say() for _ in range(len(gaps) * n)])) as said:
            async for event in said:
                yield event

    async def embed(
        self,
        texts: Sequence[Prompt],
        *,
        dimensions: int | None = None,
        truncate: bool = False,
        context: RequestContext = NOBODY,
    ) -> Embedded:
        self.embedded.append((texts, dimensions, truncate))
        if self.error is not None:
            raise self.error
        written = ["".join(map(str, text.parts)) for text in texts]
        vectors = [[float(text.count(letter)) for letter in "abcd"] for text in written]
        return Embedded([vector[:dimensions] for vector in vectors], sum(map(len, written)))

    async def prompt(
        self, messages: Sequence[Message], options: ReplyOptions
    ) -> tuple[str, list[int]]:
        if self.error is not None:
            raise self.error
        text = "".join(f"<{each.role}>{each.content}" for each in messages)
        return text, list(text.encode())

    async def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return [1000] * add_special + list(text.encode())

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        if any(not 0 <= token < 256 for token in tokens):
            raise RequestError("tokens: ids are 0 to 255", field="tokens")
        return [bytes([token]) for token in tokens]

    async def stats(self) -> RunnerStats:
        return RunnerStats(memory_bytes={"ram": 1}, bytes_read={"ram": 2}, tokens=3)

    async def close(self) -> None:
        self.closed = True

    async def _say(self) -> AsyncGenerator[ReplyEvent]:
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

    async def _merged(
        self, streams: Sequence[AsyncGenerator[ReplyEvent]]
    ) -> AsyncGenerator[ReplyEvent]:
        async with aclosing(merged(streams)) as events:
            async for choice, event in events:
                yield replace(event, choice=choice)


class FakeModels:
    """A ModelProvider of ready models. ``kept`` are the leases: which model, and how long
    after. A pull goes through ``pulling``, and raises what of it is an error."""

    def __init__(self, **models: FakeChat) -> None:
        self._models = models
        self.kept: list[tuple[str, float | None]] = []
        self.unloaded: list[str] = []
        self.pulled: list[str] = []
        self.pulling: Sequence[PullProgress | LocalrunError] = ()
        self.closed = False

    @asynccontextmanager
    async def lease(self, name: str, *, keep_s: float | None = None) -> AsyncIterator[ServedModel]:
        model = self._known(name)
        self.kept.append((name, keep_s))
        yield model

    def names(self) -> Sequence[ModelCard]:
        return [ModelCard(id=name, created=1_700_000_000, bytes=98) for name in self._models]

    def facts(self, name: str) -> ModelFacts:
        self._known(name)
        return replace(FACTS, id=name)

    def loaded(self) -> Sequence[LoadedModel]:
        return [
            LoadedModel(name, model.n_ctx, {"ram": 1000}, model.running, 300.0)
            for name, model in self._models.items()
        ]

    async def stats(self) -> dict[str, RunnerStats]:
        return {name: await model.stats() for name, model in self._models.items()}

    async def pull(self, name: str) -> AsyncGenerator[PullProgress]:
        self.pulled.append(name)
        for step in self.pulling:
            if isinstance(step, LocalrunError):
                raise step
            yield step

    async def unload(self, name: str) -> bool:
        self._known(name)
        self.unloaded.append(name)
        return True

    async def close(self) -> None:
        self.closed = True

    def _known(self, name: str) -> Any:
        if name not in self._models:
            raise ModelNotFoundError(f"no model is called {name!r}", nearest=("fake",))
        return self._models[name]
