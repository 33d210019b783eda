"""Knows no runner but its sizes: the one place where a request's ranges are checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, get_args

from localrun.engine.request import (
    EmbeddingRequest,
    GenerationRequest,
    Grammar,
    GrammarKind,
    Priority,
    SamplingParams,
)
from localrun.engine.runner import Pooling
from localrun.errors import ContextLengthError, GrammarError, RequestError

MAX_WAITING: Final = 64
MAX_STOPS: Final = 64
MAX_STOP_CHARACTERS: Final = 1024
MAX_SEED: Final = 2**64 - 1
MAX_BIASES: Final = 1024
MAX_BIAS: Final = 100.0
MAX_LOGPROBS: Final = 20
MAX_BREAKERS: Final = 64
# llama.cpp looks at so many bytes of a breaker.
MAX_BREAKER_BYTES: Final = 40
MAX_GRAMMAR_BYTES: Final = 1024 * 1024
MAX_NAME_CHARACTERS: Final = 1024
MAX_TEXTS: Final = 2048
# Field, least and most. Temperatures above 10 and penalties outside these differ from noise by
# nothing a person could see.
_NUMBERS: Final = (
    ("temperature", 0.0, 10.0),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("typical_p", 0.0, 1.0),
    ("repeat_penalty", 0.1, 10.0),
    ("frequency_penalty", -10.0, 10.0),
    ("presence_penalty", -10.0, 10.0),
    ("dry_multiplier", 0.0, 100.0),
    ("dry_base", 1.0, 100.0),
    ("xtc_probability", 0.0, 1.0),
    ("xtc_threshold", 0.0, 1.0),
)
_COUNTS: Final = (
    ("top_k", 0),
    ("penalty_window", -1),
    ("dry_window", -1),
    ("dry_allowed_length", 1),
)


def check_sampling(sampling: SamplingParams) -> None:
    """Accept finite values in their ranges; ``top_k`` 0 and any ``top_k`` above the vocabulary
    mean all of it. Token ids are for ``check``, which knows the vocabulary.

    Raises:
        RequestError: naming the field, its value and its range.
    """
    for field, least, most in _NUMBERS:
        value = getattr(sampling, field)
        if not _is_number(value) or not least <= value <= most:
            raise RequestError(
                f"{field} {_shown(value)} is not a number from {least:g} to {most:g}", field=field
            )
    for field, least_count in _COUNTS:
        _check_count(field, getattr(sampling, field), least_count)
    seed, logprobs = sampling.seed, sampling.logprobs
    if seed is not None and not (_is_count(seed, 0) and seed <= MAX_SEED):
        raise RequestError(
            f"seed {_shown(seed)} is not a whole number from 0 to 2^64 - 1", field="seed"
        )
    if logprobs is not None and not (_is_count(logprobs, 0) and logprobs <= MAX_LOGPROBS):
        raise RequestError(
            f"logprobs {_shown(logprobs)} is not a whole number from 0 to {MAX_LOGPROBS}",
            field="logprobs",
        )
    _check_biases(sampling.logit_bias)
    _check_strings("dry_breakers", sampling.dry_breakers, MAX_BREAKERS)
    for breaker in sampling.dry_breakers:
        if _size(breaker) > MAX_BREAKER_BYTES:
            raise RequestError(
                f"dry_breakers: a string of {_size(breaker)} bytes, "
                f"1 to {MAX_BREAKER_BYTES} are allowed",
                field="dry_breakers",
            )


def check(request: GenerationRequest, *, n_ctx: int, vocabulary_size: int) -> None:
    """Refuse what cannot be served, before it waits in a queue.

    Raises:
        RequestError: naming the field.
        ContextLengthError: the prompt leaves no room for one token.
    """
    check_sampling(request.sampling)
    if any(token >= vocabulary_size for token, _ in request.sampling.logit_bias):
        raise RequestError(
            f"logit_bias: token ids are 0 to {vocabulary_size - 1}", field="logit_bias"
        )
    if request.max_tokens is not None:
        _check_count("max_tokens", request.max_tokens, 1)
    _check_count("min_indent", request.min_indent, 0)
    _check_strings("stop", request.stop, MAX_STOPS)
    for stop in request.stop:
        if len(stop) > MAX_STOP_CHARACTERS:
            raise RequestError(
                f"stop: a string of {len(stop)} characters, 1 to {MAX_STOP_CHARACTERS} are allowed",
                field="stop",
            )
    if request.grammar is not None:
        _check_grammar(request.grammar)
    _check_name("owner", request.owner)
    _check_whose(request)
    if not request.prompt:
        raise RequestError("prompt is empty: there is nothing to go on from", field="prompt")
    if len(request.prompt) >= n_ctx:
        raise ContextLengthError(len(request.prompt), n_ctx)
    if min(request.prompt) < 0 or max(request.prompt) >= vocabulary_size:
        raise RequestError(f"prompt: token ids are 0 to {vocabulary_size - 1}", field="prompt")


def check_embedding(request: EmbeddingRequest, *, longest: int, vocabulary_size: int) -> None:
    """Refuse what no embedding can be made of; ``longest`` is how many tokens a text may have.

    Whether ``dimensions`` are too many only the model's width tells.

    Raises:
        RequestError: naming the field.
        ContextLengthError: a text is too long.
    """
    if not 1 <= len(request.texts) <= MAX_TEXTS:
        raise RequestError(
            f"input: {len(request.texts)} texts, 1 to {MAX_TEXTS} are allowed", field="input"
        )
    if request.dimensions is not None:
        _check_count("dimensions", request.dimensions, 1)
    if request.pooling is not None and request.pooling not in get_args(Pooling):
        raise RequestError(
            f"pooling {_shown(request.pooling)} is none of {_listed(Pooling)}", field="pooling"
        )
    _check_whose(request)
    for at, text in enumerate(request.texts):
        if not text:
            raise RequestError(f"input: text {at} is empty", field="input")
        if len(text) > longest:
            raise ContextLengthError(len(text), longest)
        if min(text) < 0 or max(text) >= vocabulary_size:
            raise RequestError(
                f"input: token ids of text {at} are not 0 to {vocabulary_size - 1}", field="input"
            )


def _check_biases(biases: Sequence[tuple[int, float]]) -> None:
    if len(biases) > MAX_BIASES:
        raise RequestError(
            f"logit_bias: {len(biases)} entries, at most {MAX_BIASES} are allowed",
            field="logit_bias",
        )
    for token, bias in biases:
        if not _is_count(token, 0):
            raise RequestError(f"logit_bias: {_shown(token)} is not a token id", field="logit_bias")
        if not _is_number(bias) or not -MAX_BIAS <= bias <= MAX_BIAS:
            raise RequestError(
                f"logit_bias {_shown(bias)} of token {token} is not a number "
                f"from -{MAX_BIAS:g}, which forbids it, to {MAX_BIAS:g}",
                field="logit_bias",
            )


def _check_strings(field: str, strings: Sequence[str], most: int) -> None:
    if len(strings) > most:
        raise RequestError(
            f"{field}: {len(strings)} strings, at most {most} are allowed", field=field
        )
    for string in strings:
        if not isinstance(string, str):
            raise RequestError(f"{field}: {_shown(string)} is not a string", field=field)
        if not string:
            raise RequestError(f"{field}: an empty string says nothing", field=field)


def _check_grammar(grammar: Grammar) -> None:
    if grammar.kind not in get_args(GrammarKind):
        raise RequestError(
            f"grammar {_shown(grammar.kind)} is none of {_listed(GrammarKind)}", field="grammar"
        )
    size = _size(grammar.source)
    if size > MAX_GRAMMAR_BYTES:
        # Without a field: clients have several names for it, and who asked knows which it was.
        raise GrammarError("grammar", f"{size} bytes, at most {MAX_GRAMMAR_BYTES} are allowed")


def _check_whose(request: GenerationRequest | EmbeddingRequest) -> None:
    _check_name("client", request.client)
    if request.priority not in get_args(Priority):
        raise RequestError(
            f"priority {_shown(request.priority)} is none of {_listed(Priority)}", field="priority"
        )


def _check_name(field: str, name: str) -> None:
    if len(name) > MAX_NAME_CHARACTERS:
        raise RequestError(
            f"{field}: a name of {len(name)} characters, at most {MAX_NAME_CHARACTERS} are allowed",
            field=field,
        )


def _check_count(field: str, value: object, least: int) -> None:
    if not _is_count(value, least):
        raise RequestError(
            f"{field} {_shown(value)} is not a whole number of at least {least}", field=field
        )


def _is_number(value: object) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool)
    return isinstance(value, float) and math.isfinite(value)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _size(text: str) -> int:
    """Bytes of UTF-8, half a surrogate pair among them."""
    return len(text.encode("utf-8", "surrogatepass"))


def _shown(value: object) -> str:
    """Enough of a value to know it again. Python writes no number of thousands of digits."""
    if isinstance(value, int) and abs(value) > MAX_SEED:
        return f"of {value.bit_length()} bits"
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"


def _listed(literal: object) -> str:
    return ", ".join(map(repr, get_args(literal)))
