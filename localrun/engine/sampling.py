"""Knows no text: from a row of logits to the next token.

The order is that of llama.cpp's default chain, so that its users' settings mean the same here
(common/common.h, ``common_params_sampling::samplers``,
https://github.com/ggml-org/llama.cpp/blob/master/common/common.h):
repetition penalty over the last 64 tokens, prompt included → top-k → top-p → min-p → temperature
→ draw. Top-p and min-p look at probabilities before temperature, renormalised over what top-k
left. Both keep a prefix of the candidates in descending order, so the shorter prefix decides.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from localrun.engine.request import SamplingParams
from localrun.engine.rows import topk
from localrun.engine.runner import Logits

PENALTY_WINDOW: Final = 64
# How far below the largest logit to look for top-p's candidates before looking further.
_REACHES: Final = (4.0, 12.0, math.inf)

# Below it the largest logit alone has any weight, and divisions would overflow.
_COLDEST: Final = 1e-6

Candidates = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Token ids and their logits."""


class NotFiniteError(Exception):
    """The row's largest logit is NaN or infinite. Never leaves the engine."""


class Sampler:
    """Draws the tokens of one generation. One random number a token, so a seed fixes them all."""

    __slots__ = ("_params", "_random", "_recent")

    def __init__(self, params: SamplingParams, prompt: Iterable[int]) -> None:
        """``params`` are within the ranges of ``limits.check_sampling``."""
        self._params = params
        self._random = np.random.Generator(np.random.PCG64(params.seed))
        self._recent = deque(prompt, maxlen=PENALTY_WINDOW)

    def sample(self, logits: Logits, row: int) -> int:
        """The next token's id.

        Raises:
            NotFiniteError: the row holds NaN or +inf, or nothing but -inf.
        """
        # One pass over the row: NaN and +inf, where there are any, are what argmax finds.
        token = logits.argmax(row)
        if not math.isfinite(logits.numpy()[row, token]):
            raise NotFiniteError
        if self._params.temperature > 0:
            token = self._draw(logits, row)
        self._recent.append(token)
        return token

    def _draw(self, logits: Logits, row: int) -> int:
        params = self._params
        values = logits.numpy()[row]
        some = 0 < params.top_k < values.size
        if params.repeat_penalty != 1.0 and self._recent:
            values = _penalized(values, self._recent, params.repeat_penalty)
            candidates = topk(values, params.top_k) if some else _of_all(values, params)
        else:
            candidates = logits.topk(row, params.top_k) if some else _of_all(values, params)
        ids, kept = _cut(candidates, params) if some else candidates
        weights = np.exp((kept - kept.max()) / np.float32(max(params.temperature, _COLDEST)))
        cumulative = np.cumsum(weights, dtype=np.float64)
        at = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(ids[min(int(at), ids.size - 1)])


def _penalized(
    values: NDArray[np.float32], recent: Iterable[int], penalty: float
) -> NDArray[np.float32]:
    """A copy in which every recent token's logit is divided by ``penalty``, or multiplied below 0
    (https://arxiv.org/abs/1909.05858, section 4.1, with the usual mending of the sign)."""
    values = values.copy()
    ids = np.fromiter(set(recent), dtype=np.int64)
    seen = values[ids]
    values[ids] = np.where(seen > 0, seen / penalty, seen * penalty)
    return values


def _of_all(values: NDArray[np.float32], params: SamplingParams) -> Candidates:
    """Top-p and min-p over the whole row ``[vocab]``, sorting no more of it than they keep."""
    if params.top_p >= 1.0 and params.min_p <= 0.0:
        return np.arange(values.size), values
    top = float(values.max())
    weights = np.exp(values - np.float32(top))
    total = float(weights.sum(dtype=np.float64))
    depth = math.inf if params.min_p <= 0.0 else -math.log(params.min_p)
    for reach in _REACHES:
        ids = np.flatnonzero(values >= top - min(reach, depth))
        if reach >= depth or weights[ids].sum(dtype=np.float64) >= params.top_p * total:
            break
    largest = values[ids]
    order = np.argsort(-largest, kind="stable")
    kept = order[: _kept(largest[order], params, total)]
    return ids[kept], largest[kept]


def _cut(candidates: Candidates, params: SamplingParams) -> Candidates:
    """Top-p and min-p over what top-k left, largest first."""
    ids, largest = candidates
    total = float(np.exp(largest - largest[0]).sum(dtype=np.float64))
    kept = _kept(largest, params, total)
    return ids[:kept], largest[:kept]


def _kept(largest: NDArray[np.float32], params: SamplingParams, total: float) -> int:
    """How many of ``largest`` (descending) stay; ``total`` is the sum of exp(logit - maximum).

    At least one. All of them where nothing cuts yet.
    """
    kept = largest.size
    if params.top_p < 1.0:
        mass = np.cumsum(np.exp(largest - largest[0]), dtype=np.float64)
        kept = min(kept, int(np.searchsorted(mass, params.top_p * total)) + 1)
    if params.min_p > 0.0:
        floor = largest[0] + math.log(params.min_p)
        kept = min(kept, int(np.searchsorted(-largest, -floor, side="right")))
    return max(1, kept)
