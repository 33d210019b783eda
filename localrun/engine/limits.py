"""Knows no runner but its sizes: the one place where a request's ranges are checked."""

from __future__ import annotations

import math
from typing import Final

from localrun.engine.request import GenerationRequest, SamplingParams
from localrun.errors import ContextLengthError, RequestError

MAX_WAITING: Final = 64
MAX_STOPS: Final = 64
MAX_STOP_CHARACTERS: Final = 1024
MAX_SEED: Final = 2**64 - 1
# Field, least and most. Temperatures above 10 and penalties outside these differ from noise by
# nothing a person could see.
_RANGES: Final = (
    ("temperature", 0.0, 10.0),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("repeat_penalty", 0.1, 10.0),
)


def check_sampling(sampling: SamplingParams) -> None:
    """Accept finite values in their ranges; ``top_k`` 0 and any ``top_k`` above the vocabulary
    mean all of it.

    Raises:
        RequestError: naming the field, its value and its range.
    """
    for field, least, most in _RANGES:
        value = getattr(sampling, field)
        if not _is_number(value) or not least <= value <= most:
            raise RequestError(f"{field} {value!r} is not a number from {least:g} to {most:g}")
    if not _is_count(sampling.top_k, 0):
        raise RequestError(f"top_k {sampling.top_k!r} is not a whole number of at least 0")
    seed = sampling.seed
    if seed is not None and not (_is_count(seed, 0) and seed <= MAX_SEED):
        raise RequestError(f"seed {seed!r} is not a whole number from 0 to 2^64 - 1")


def check(request: GenerationRequest, *, n_ctx: int, vocabulary_size: int) -> None:
    """Refuse what cannot be served, before it waits in a queue.

    Raises:
        RequestError: naming the field.
        ContextLengthError: the prompt leaves no room for one token.
    """
    check_sampling(request.sampling)
    if request.max_tokens is not None and not _is_count(request.max_tokens, 1):
        raise RequestError(f"max_tokens {request.max_tokens!r} is not a whole number of at least 1")
    if len(request.stop) > MAX_STOPS:
        raise RequestError(f"stop: {len(request.stop)} strings, at most {MAX_STOPS} are allowed")
    for stop in request.stop:
        if not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
            raise RequestError(
                f"stop: a string of {len(stop)} characters, 1 to {MAX_STOP_CHARACTERS} are allowed"
            )
    if not request.prompt:
        raise RequestError("prompt is empty: there is nothing to go on from")
    if len(request.prompt) >= n_ctx:
        raise ContextLengthError(len(request.prompt), n_ctx)
    if min(request.prompt) < 0 or max(request.prompt) >= vocabulary_size:
        raise RequestError(f"prompt: token ids are 0 to {vocabulary_size - 1}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
