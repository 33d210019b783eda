"""Knows no logits but to lower some: DRY, a penalty on going on with what was said before.

The meaning is llama.cpp's (``llama_sampler_dry_apply``,
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-sampler.cpp; the idea:
https://github.com/oobabooga/text-generation-webui/pull/5677): where the last n tokens, n at least
``dry_allowed_length``, stand elsewhere in the window, the token that followed there loses
``dry_multiplier * dry_base ** (n - dry_allowed_length)``; n is the longest such, and never reaches
back past a sequence breaker. Tokens that hold a breaker themselves lose nothing.

Breakers are looked for in the bytes of the text, so one that several tokens make up together is
found however it was cut into tokens. llama.cpp finds such a one only where what follows its first
token is what its tokenizer makes of the rest. Breakers within one token mean the same in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from localrun.engine.request import SamplingParams

# Natural logarithm of the largest float32: llama.cpp caps the exponent by it.
_LARGEST_LOG: Final = 88.7228391
# And the product is capped here, so that a logit stays finite.
_LARGEST: Final = 1e37
_UNKNOWN: Final = -1


class Dry:
    """The repetitions of one timeline's end, carried on token by token.

    ``_ends`` are the places before the last where the last token stands too, ``_runs`` how many
    tokens up to there equal the timeline's last ones. A step costs one comparison of the window
    with the new token, and work for each place where it stands.
    """

    __slots__ = (
        "_breakers",
        "_ends",
        "_longest_exponent",
        "_params",
        "_runs",
        "_scratch",
        "_size",
        "_timeline",
        "_window",
    )

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], tokens: Sequence[bytes]
    ) -> None:
        """``tokens[i]`` are the bytes of token ``i``; an id past them has none."""
        self._params = params
        self._window = params.dry_window if params.dry_window > 0 else None
        recent = prompt if self._window is None else prompt[-self._window :]
        self._size = len(recent)
        self._timeline = np.zeros(self._size + 1024, dtype=np.int32)
        self._timeline[: self._size] = recent
        # One place more than tokens: place i + 1 is for the run that ends at token i.
        self._scratch = np.zeros(self._timeline.size + 1, dtype=np.int32)
        self._ends, self._runs = _repetitions(recent)
        self._breakers = _Breakers(params.dry_breakers, recent, tokens)
        base = math.log(params.dry_base)
        self._longest_exponent = int(_LARGEST_LOG / base) if base > 1e-6 else 0

    @staticmethod
    def wanted(params: SamplingParams) -> bool:
        return params.dry_multiplier > 0 and params.dry_window != 0

    def record(self, token: int) -> None:
        """``token`` is the latest."""
        at = self._size
        if at == self._timeline.size:
            self._timeline = np.resize(self._timeline, 2 * at)
            self._scratch = np.zeros(2 * at + 1, dtype=np.int32)
        first = 0 if self._window is None else max(0, at + 1 - self._window)
        ends = np.flatnonzero(self._timeline[first:at] == token) + first
        self._scratch[self._ends + 1] = self._runs
        runs = self._scratch[ends] + 1
        self._scratch[self._ends + 1] = 0
        self._ends, self._runs = ends, runs
        self._timeline[at] = token
        self._size = at + 1
        self._breakers.record(token, at)

    def apply(self, values: NDArray[np.float32]) -> None:
        """Lower what would go on with a repetition in ``values`` ``[vocab]``, in place."""
        params = self._params
        held = self._size if self._window is None else min(self._size, self._window)
        limit = min(held, self._size - 1 - self._breakers.latest)
        if limit < params.dry_allowed_length or not self._ends.size:
            return
        first = self._size - held
        lengths = np.minimum(self._runs, np.minimum(limit, self._ends - first + 1))
        long = np.flatnonzero(lengths >= params.dry_allowed_length)
        if not long.size:
            return
        followers = self._timeline[self._ends[long] + 1]
        counted = ~self._breakers.within(followers, values.size)
        followers, lengths = followers[counted], lengths[long[counted]]
        # Of several runs that one token follows, the longest is written last and stays.
        order = np.argsort(lengths, kind="stable")
        followers = followers[order]
        values[followers] = values[followers] - self._amounts(lengths[order])

    def _amounts(self, lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        params = self._params
        exponents = lengths - params.dry_allowed_length
        if self._longest_exponent > 0:
            exponents = np.minimum(exponents, self._longest_exponent)
        amounts = params.dry_multiplier * params.dry_base ** exponents.astype(np.float64)
        return np.minimum(amounts, _LARGEST).astype(np.float32)


class _Breakers:
    """Where in a timeline's text a sequence breaker ended last: ``latest`` is that token's index,
    -1 if there was none."""

    __slots__ = ("_breakers", "_known", "_longest", "_tail", "_tokens", "latest")

    def __init__(
        self, breakers: Sequence[str], recent: Sequence[int], tokens: Sequence[bytes]
    ) -> None:
        self._tokens = tokens
        self._breakers = tuple(breaker.encode("utf-8", "surrogatepass") for breaker in breakers)
        self._longest = max(map(len, self._breakers), default=1)
        # Which tokens hold a breaker, looked up when first asked.
        self._known: NDArray[np.int8] = np.empty(0, dtype=np.int8)
        text = b"".join(map(self._bytes, recent))
        ends = [text.rfind(breaker) + len(breaker) for breaker in self._breakers if breaker in text]
        self.latest = self._token_at(max(ends), len(text), recent) if ends else -1
        self._tail = self._end_of(text)

    def record(self, token: int, index: int) -> None:
        """``token`` is the timeline's latest, at ``index``."""
        text = self._tail + self._bytes(token)
        before = len(self._tail)
        if any(
            text.find(breaker, max(0, before - len(breaker) + 1)) >= 0 for breaker in self._breakers
        ):
            self.latest = index
        self._tail = self._end_of(text)

    def within(self, tokens: NDArray[np.int32], vocabulary: int) -> NDArray[np.bool_]:
        """Which of ``tokens`` hold a breaker by themselves."""
        if not self._known.size:
            self._known = np.full(vocabulary, _UNKNOWN, dtype=np.int8)
        for token in set(tokens[self._known[tokens] == _UNKNOWN].tolist()):
            text = self._bytes(token)
            self._known[token] = any(breaker in text for breaker in self._breakers)
        return self._known[tokens].astype(np.bool_)

    def _bytes(self, token: int) -> bytes:
        return self._tokens[token] if token < len(self._tokens) else b""

    def _token_at(self, end: int, start: int, recent: Sequence[int]) -> int:
        """The token that holds the byte before ``end`` of a text of ``start`` bytes."""
        index = len(recent)
        while start >= end:
            index -= 1
            start -= len(self._bytes(recent[index]))
        return index

    def _end_of(self, text: bytes) -> bytes:
        """The bytes that a breaker may begin with."""
        return text[max(0, len(text) - self._longest + 1) :]


def _repetitions(tokens: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Where the last token stands before the end, ascending, and how many tokens up to there equal
    the last ones: the Z function of the reversed tokens
    (https://en.wikipedia.org/wiki/Z-algorithm), so the time is linear in them."""
    size = len(tokens)
    back = tokens[::-1]
    runs = [0] * size
    left = right = 0
    for at in range(1, size):
        run = min(right - at, runs[at - left]) if at < right else 0
        while at + run < size and back[run] == back[at + run]:
            run += 1
        runs[at] = run
        if at + run > right:
            left, right = at, at + run
    lengths = np.array(runs[::-1], dtype=np.int32)
    ends = np.flatnonzero(lengths)
    return ends, lengths[ends]
