"""Knows neither templates nor HTTP: what an engine is asked for, and what it answers.

All values here cross the process boundary as JSON (``frames.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn. ``temperature`` 0 is greedy and ignores the rest.

    ``seed`` None draws a fresh one; the same seed on the same logits gives the same tokens.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """``max_tokens`` None generates until an end token or the context is full.

    ``stop`` strings end generation and are not part of the text. ``ignore_end`` generates on past
    end tokens, for measuring. Control tokens are no part of the text but where their names stand in
    ``marks``, by which a reader tells reasoning and channels apart.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_end: bool = False
    marks: tuple[str, ...] = ()


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"  # an end token or a stop string
    LENGTH = "length"  # max_tokens, or the context is full
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Timings:
    """Exact counts and wall times of one request.

    ``cached_tokens`` of the prompt were in the cache already; ``prefill_s`` covers the others,
    up to the first sampled token; ``decode_s`` covers the ``generated_tokens`` after the first.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    prefill_s: float
    decode_s: float

    @property
    def prefill_tps(self) -> float:
        fresh = self.prompt_tokens - self.cached_tokens
        return fresh / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_tps(self) -> float:
        steps = self.generated_tokens - 1
        return steps / self.decode_s if steps > 0 and self.decode_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One step of a generation's stream.

    A stream is any number of events with ``prefilled`` (prompt tokens done so far), then events
    with ``text``, whole UTF-8 and never part of a stop string, then exactly one last event with
    ``finish`` and ``timings``. ``error`` is set with ``FinishReason.ERROR``.
    ``tokens`` are the ids sampled since the last event.
    """

    id: str
    text: str = ""
    tokens: tuple[int, ...] = ()
    prefilled: int | None = None
    finish: FinishReason | None = None
    timings: Timings | None = None
    error: str | None = None
