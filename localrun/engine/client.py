"""Knows no process: what the port, the chat screen and the terminal ask an engine for."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from localrun.engine.request import EmbeddingRequest, GenerationRequest, TokenEvent
from localrun.engine.runner import FillInMiddle, Pooling, RunnerStats


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a loaded engine says of itself. ``bos`` and ``eos`` are the texts templates use.

    ``longest_token`` is in bytes: a text has at least as many tokens as it is longer than that,
    unless an encoder reads it, whose unknown words of any length are one.
    ``generates`` and ``embeds`` are what it can be asked for, ``pooling`` how embeddings are made,
    ``longest_text`` how many tokens a text may have for one.
    """

    ref: str
    backend: str
    architecture: str
    n_ctx: int
    bos: str
    eos: str
    add_bos: bool
    chat_template: str | None
    vocabulary_size: int = 0
    longest_token: int = 0
    bos_id: int | None = None
    fim: FillInMiddle | None = None
    generates: bool = True
    embeds: bool = False
    pooling: Pooling | None = None
    longest_text: int = 0


class EngineClient(Protocol):
    """An engine in this process or in a child."""

    @property
    def info(self) -> EngineInfo: ...

    async def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]: ...

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes that each token stands for; of control tokens their names.

        Raises:
            RequestError: one is no token of this model's.
        """
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent]:
        """Stream one generation. Closing the generator early cancels it within one step.

        Raises:
            ContextLengthError: the prompt does not fit.
            EngineCrashedError: the engine's process ended.
        """
        ...

    async def embed(self, request: EmbeddingRequest) -> list[list[float]]:
        """One vector a text, in single precision. A caller that is cancelled ends the work.

        Raises:
            RequestError, ContextLengthError: a field or a text has too much of something; the
                model makes no embeddings.
            EngineError: the runner failed.
            EngineCrashedError: the engine's process ended.
        """
        ...

    async def stats(self) -> RunnerStats:
        """Counters and memory of the runner."""
        ...

    async def close(self) -> None: ...
