"""Knows no model and no scheduling: an EngineClient whose engine lives in a child process.

A native crash ends the requests under way with EngineCrashedError and nothing else: the next
request starts a new child. Closing really frees the memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from localrun.engine.client import EngineInfo
from localrun.engine.options import EngineOptions
from localrun.engine.process.child import Child
from localrun.engine.process.fields import ids_field, ids_of, pieces_of, stats_of
from localrun.engine.request import EmbeddingRequest, GenerationRequest, TokenEvent
from localrun.engine.runner import RunnerStats
from localrun.errors import ContextLengthError, EngineCrashedError, EngineError, LocalrunError
from localrun.plan.plan import Plan

LOAD_TIMEOUT_S = 900.0
# Long: one step may read a large model from a slow disk.
HANG_TIMEOUT_S = 300.0
# After so many crashes in a row a restart waits, twice as long each time.
FREE_RESTARTS = 3
LONGEST_PAUSE_S = 60.0
# An engine answers at once, whatever it computes; one that does not is about to be ended.
LAST_WORDS_S = 2.0
Closing = Callable[[RunnerStats], Awaitable[None]]


class EngineProcess:
    """An engine in a spawned child. Made by ``start``; belongs to one event loop."""

    def __init__(
        self,
        plan: Plan,
        *,
        loader: str,
        chat_template: str | None,
        options: EngineOptions | None = None,
        load_timeout_s: float = LOAD_TIMEOUT_S,
        hang_timeout_s: float = HANG_TIMEOUT_S,
        log: Path | None = None,
        closing: Closing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan
        self._loader = loader
        self._chat_template = chat_template
        self._options = options or EngineOptions()
        self._load_timeout_s = load_timeout_s
        self._hang_timeout_s = hang_timeout_s
        self._log = log
        self._closing = closing
        self._clock = clock
        self._child: Child | None = None
        self._dead: Child | None = None
        self._info: EngineInfo | None = None
        self._starting = asyncio.Lock()
        self._closed = False
        self._crashes = 0
        self._crashed_at = 0.0

    @classmethod
    async def start(
        cls,
        plan: Plan,
        *,
        loader: str,
        chat_template: str | None,
        options: EngineOptions | None = None,
        load_timeout_s: float = LOAD_TIMEOUT_S,
        hang_timeout_s: float = HANG_TIMEOUT_S,
        log: Path | None = None,
        closing: Closing | None = None,
    ) -> EngineProcess:
        """Spawn a child and load the plan's model in it.

        loader: ``module:function`` that takes the Plan and returns a ModelRunner.
        hang_timeout_s: an engine that has work and makes no step for so long is ended.
        log: the child's standard output and error are appended here; None discards them.
        closing: given the last counters of a child that is closed while it lives.

        Raises:
            LocalrunError: what the loader raised, by its own class.
            EngineCrashedError: the child ended while it loaded.
            EngineError: it did not load in time.
        """
        engine = cls(
            plan,
            loader=loader,
            chat_template=chat_template,
            options=options,
            load_timeout_s=load_timeout_s,
            hang_timeout_s=hang_timeout_s,
            log=log,
            closing=closing,
        )
        await engine._running()
        return engine

    @property
    def info(self) -> EngineInfo:
        assert self._info is not None, "made by start()"
        return self._info

    @property
    def pid(self) -> int | None:
        """The child's process id while one runs."""
        return self._child.pid if self._child is not None and self._child.alive else None

    async def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        """Token ids of ``text``.

        Raises:
            EngineCrashedError: the engine's process ended.
        """
        return ids_of(
            await self._ask(
                "tokenize", text=text, add_special=add_special, parse_special=parse_special
            )
        )

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token; see ``EngineClient.pieces``."""
        return pieces_of(await self._ask("pieces", tokens=ids_field(tokens)))

    async def stats(self) -> RunnerStats:
        """Counters and memory of the runner.

        Raises:
            EngineCrashedError: the engine's process ended.
        """
        return stats_of(await self._ask("stats"))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent]:
        """Stream one generation. Closing the iterator early cancels it within one step.

        Events that arrive while the consumer is busy come as one.

        Raises:
            ContextLengthError: the prompt does not fit.
            EngineCrashedError: the engine's process ended; the next call starts it again.
        """
        child = await self._running()
        # The engine would say so too, but to send it a million ids takes the loop's time.
        if len(request.prompt) >= self.info.n_ctx:
            raise ContextLengthError(len(request.prompt), self.info.n_ctx)
        call, mailbox = await child.submit(request)
        try:
            while True:
                event = await mailbox.take()
                if event.finish is not None:
                    self._crashes = 0
                yield event
                if event.finish is not None:
                    return
        except EngineCrashedError:
            self._note_crash(child)
            raise
        finally:
            child.forget(call)

    async def embed(self, request: EmbeddingRequest) -> list[list[float]]:
        """One vector a text; see ``EngineClient.embed``."""
        child = await self._running()
        try:
            vectors = await child.embed(request)
        except EngineCrashedError:
            self._note_crash(child)
            raise
        self._crashes = 0
        return vectors

    async def close(self) -> None:
        """End the child and whatever it was doing. May be called again."""
        self._closed = True
        async with self._starting:
            child, self._child = self._child, None
            if child is not None:
                try:
                    await self._told(child)
                finally:
                    await child.close()
            await self._buried()

    async def _told(self, child: Child) -> None:
        """A child that is stuck is not asked twice, and one that has crashed not started again."""
        if self._closing is None or not child.alive:
            return
        with suppress(LocalrunError, TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                stats = stats_of(await child.ask("stats"))
            await self._closing(stats)

    async def _ask(self, kind: str, **fields: Any) -> Any:
        child = await self._running()
        try:
            return await child.ask(kind, **fields)
        except EngineCrashedError:
            self._note_crash(child)
            raise

    async def _running(self) -> Child:
        async with self._starting:
            if self._closed:
                raise EngineError("the engine was closed")
            if self._child is not None:
                if self._child.alive:
                    return self._child
                # It may have died idle, with no request to notice.
                self._note_crash(self._child)
            self._wait_is_over()
            await self._buried()
            self._child = await self._spawn()
            return self._child

    async def _spawn(self) -> Child:
        child = await Child.spawn(self._log, self._hang_timeout_s)
        try:
            info = await child.load(
                self._plan.to_json(), self._loader, self._options, self._load_timeout_s
            )
        except EngineCrashedError:
            self._count_crash()
            await child.kill()
            raise
        except BaseException:
            await child.kill()
            raise
        self._info = replace(info, chat_template=self._chat_template)
        return child

    def _note_crash(self, child: Child) -> None:
        """Count a child's end once, whoever noticed it first."""
        if child is self._child:
            self._child, self._dead = None, child
            self._count_crash()

    async def _buried(self) -> None:
        """Until the process that crashed is gone, its memory is not there for another."""
        if self._dead is not None:
            await self._dead.kill()
            self._dead = None

    def _count_crash(self) -> None:
        self._crashes += 1
        self._crashed_at = self._clock()

    def _wait_is_over(self) -> None:
        if self._crashes < FREE_RESTARTS:
            return
        pause = min(LONGEST_PAUSE_S, 2.0 ** (self._crashes - FREE_RESTARTS))
        left = self._crashed_at + pause - self._clock()
        if left > 0:
            raise EngineCrashedError(
                f"the engine's process ended {self._crashes} times in a row",
                hint=f"it may be started again in {left:.0f} s; `localrun doctor` looks for causes",
            )
