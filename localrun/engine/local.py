"""Knows no process but this one: an Engine as the async client that the port and the screen use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress

from localrun.engine.client import EngineInfo
from localrun.engine.engine import Engine
from localrun.engine.generation import Generation
from localrun.engine.request import EmbeddingRequest, GenerationRequest, TokenEvent
from localrun.engine.runner import RunnerStats


class LocalEngineClient:
    """An EngineClient over an engine in this process, which it closes. Needs no thread of its own:
    the engine's wakes the event loop."""

    def __init__(self, engine: Engine, info: EngineInfo) -> None:
        self._engine = engine
        self._info = info

    @property
    def info(self) -> EngineInfo:
        return self._info

    async def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        """Token ids of ``text``.

        Raises:
            EngineError: the engine is closed.
        """
        return await asyncio.to_thread(
            self._engine.tokenize, text, add_special=add_special, parse_special=parse_special
        )

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token; see ``EngineClient.pieces``."""
        return self._engine.pieces(tokens)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """Stream one generation; see ``EngineClient.generate``. Submitted at the first step."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()

        def wake() -> None:
            # A loop that has been closed has no reader either.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(ready.set)

        generation = await self._submit(request, wake)
        try:
            while True:
                # Cleared before the look: what comes after the look sets it again.
                ready.clear()
                for event in generation.poll():
                    yield event
                    if event.finish is not None:
                        return
                await ready.wait()
        finally:
            generation.cancel()

    async def _submit(self, request: GenerationRequest, wake: Callable[[], None]) -> Generation:
        if request.grammar is None:
            return self._engine.submit(request, on_ready=wake)
        # Compiling takes its time; nobody else's events may wait for it.
        submitting = asyncio.ensure_future(
            asyncio.to_thread(self._engine.submit, request, on_ready=wake)
        )
        try:
            return await asyncio.shield(submitting)
        except asyncio.CancelledError:
            submitting.add_done_callback(_cancel_late)
            raise

    async def embed(self, request: EmbeddingRequest) -> list[list[float]]:
        """One vector a text; see ``EngineClient.embed``."""
        vectors = await asyncio.wrap_future(self._engine.embed(request))
        made: list[list[float]] = vectors.tolist()
        return made

    async def stats(self) -> RunnerStats:
        return self._engine.stats()

    async def close(self) -> None:
        """Close the engine without blocking the loop."""
        await asyncio.to_thread(self._engine.close)


def _cancel_late(submitting: asyncio.Future[Generation]) -> None:
    """Whoever asked for it has gone while its grammar was compiled."""
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()
