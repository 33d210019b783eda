"""Knows neither templates nor HTTP: what an engine is asked for, and what it answers.

All values here cross the process boundary as JSON (``process/fields.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, Literal

from localrun.engine.runner import Pooling
from localrun.errors import LocalrunError, RequestError

MAX_CHOICES: Final = 16


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn; a default leaves its rule out but for the first four.

    ``temperature`` 0 takes the most likely token of what penalties, DRY, ``logit_bias`` and a
    grammar leave. ``seed`` None draws a fresh one; the same seed on the same logits gives the same
    tokens. Names and meanings are llama.cpp's; ``penalty_window`` and ``dry_window`` are the last
    tokens looked at, prompt included, -1 all of them. ``logprobs`` is how many alternatives are
    told with each token, 0 only the token's own, None nothing.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None
    typical_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_window: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_window: int = -1
    dry_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None


GrammarKind = Literal["json_schema", "regex", "choice", "gbnf", "lark"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the text must be.

    ``source`` is JSON for ``json_schema`` (a schema) and ``choice`` (a list of strings), the
    notation itself for the others.
    """

    kind: GrammarKind
    source: str


Priority = Literal["interactive", "normal", "background"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """``max_tokens`` None generates until an end token or the context is full.

    ``stop`` strings end generation and are not part of the text. ``ignore_end`` generates on past
    end tokens, for measuring. Control tokens are no part of the text but where their names stand in
    ``marks``, by which a reader tells reasoning and channels apart.

    ``owner`` parts those who may not learn of each other: nothing cached for one serves another.
    ``client`` is who takes turns with other clients: names alike up to a ``/`` have one turn, which
    they share out. ``draft`` False forbids speculation.

    ``max_prefill_s`` ends a request whose prompt is not read by then, without a text; what was
    read stays cached. ``max_decode_s`` counts from the first token and ends a text that has a line
    break by then, as llama.cpp's ``t_max_predict_ms`` does. ``min_indent`` ends a text before a
    line that is indented by less, as its ``n_indent``. All three are for completions while somebody
    types.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_end: bool = False
    marks: tuple[str, ...] = ()
    grammar: Grammar | None = None
    owner: str = ""
    client: str = ""
    priority: Priority = "normal"
    draft: bool = True
    max_prefill_s: float | None = None
    max_decode_s: float | None = None
    min_indent: int = 0


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """One vector a text.

    ``pooling`` None is the model's own; ``dimensions`` keeps the first so many of a vector (for
    models trained to allow it) before it is normalised to length 1.
    """

    id: str
    texts: tuple[tuple[int, ...], ...]
    pooling: Pooling | None = None
    normalize: bool = True
    dimensions: int | None = None
    client: str = ""
    priority: Priority = "normal"


def choices(request: GenerationRequest, n: int) -> tuple[GenerationRequest, ...]:
    """``n`` requests for one prompt, which is computed once; each seed is the one before plus 1.

    Raises:
        RequestError: ``n`` is not 1 to ``MAX_CHOICES``.
    """
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_CHOICES:
        raise RequestError(f"n {n!r} is not a whole number from 1 to {MAX_CHOICES}")
    return tuple(_choice(request, at) for at in range(n))


def _choice(request: GenerationRequest, at: int) -> GenerationRequest:
    seed = request.sampling.seed
    sampling = request.sampling
    if seed is not None:
        sampling = replace(sampling, seed=(seed + at) % 2**64)
    return replace(request, id=f"{request.id}#{at}" if at else request.id, sampling=sampling)


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"  # an end token or a stop string
    LENGTH = "length"  # max_tokens, or the context is full
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Timings:
    """Exact counts and wall times of one request.

    ``cached_tokens`` of the prompt were in the cache already; ``queued_s`` passed before its work
    began; ``prefill_s`` covers the others, up to the first sampled token; ``decode_s`` covers the
    ``generated_tokens`` after the first. Of the ``drafted_tokens`` that speculation proposed,
    ``accepted_tokens`` were what the model said.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    prefill_s: float
    decode_s: float
    queued_s: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def prefill_tps(self) -> float:
        fresh = self.prompt_tokens - self.cached_tokens
        return fresh / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_tps(self) -> float:
        steps = self.generated_tokens - 1
        return steps / self.decode_s if steps > 0 and self.decode_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, the bytes it stands for, and the logarithm of its probability before any rule of
    ``SamplingParams``; ``top`` holds the alternatives as (id, bytes, logprob), likeliest first."""

    token: int
    text: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One step of a generation's stream.

    A stream is any number of events with ``prefilled`` (prompt tokens done so far), then events
    with ``text``, whole UTF-8 and never part of a stop string, then exactly one last event with
    ``finish`` and ``timings``. ``error`` is set with ``FinishReason.ERROR``.
    ``tokens`` are the ids sampled since the last event, ``logprobs`` theirs where asked for;
    ``stopped`` is the stop string that ended it.
    """

    id: str
    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prefilled: int | None = None
    finish: FinishReason | None = None
    stopped: str | None = None
    timings: Timings | None = None
    error: LocalrunError | None = None
