"""Knows no chance: which tokens a request's rules leave of a row, and with which logits.

The order is that of llama.cpp's default chain, so that its users' settings mean the same here
(``common_sampler_init`` and ``common_params_sampling::samplers``,
https://github.com/ggml-org/llama.cpp/blob/master/common/sampling.cpp):

logit bias → repetition, frequency and presence penalties → DRY → grammar mask → top-k → typical →
top-p → min-p → XTC (→ temperature → draw: ``sampler.py``).

Three things differ. The mask stands before the cuts, so these share out what the grammar allows;
llama.cpp draws without its grammar first, keeps a token that fits, and only else draws again in
this order. Since all before the cuts changes each token by itself, their order among one another
is that of no meaning. Temperature 0 takes the most likely token of what bias, penalties, DRY and
mask leave, without looking at the cuts, of which XTC would forbid it. And a window of -1 is all
tokens, where llama.cpp's server means the size of its context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from localrun.engine.request import SamplingParams
from localrun.engine.rows import topk
from localrun.engine.runner import Logits
from localrun.engine.sampling.cuts import top_p, typical, xtc
from localrun.engine.sampling.dry import Dry
from localrun.engine.sampling.masks import Candidates, Mask, allows, left_of
from localrun.engine.sampling.penalties import Bias, Penalties


class NotFiniteError(Exception):
    """The row's largest logit is NaN or infinite. Never leaves the engine."""


class NothingLeftError(Exception):
    """Mask and bans together allow no token at all. Never leaves the engine.

    Its text is what a client may read.
    """

    def __init__(self) -> None:
        super().__init__("the grammar and logit_bias together leave no token to go on with")


class Chain:
    """The rules of one request and what they remember of its timeline."""

    __slots__ = ("_changes", "_params", "_records")

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], tokens: Sequence[bytes]
    ) -> None:
        """``params`` are within the ranges of ``limits.py``; ``tokens`` as in ``Dry``."""
        self._params = params
        # What changes a row of logits in place, in order, and what wants to hear of each token.
        self._changes: list[Callable[[NDArray[np.float32]], None]] = []
        self._records: list[Callable[[int], None]] = []
        if params.logit_bias:
            self._changes.append(Bias(params.logit_bias).apply)
        if Penalties.wanted(params):
            penalties = Penalties(params, prompt)
            self._changes.append(penalties.apply)
            self._records.append(penalties.record)
        if Dry.wanted(params):
            dry = Dry(params, prompt, tokens)
            self._changes.append(dry.apply)
            self._records.append(dry.record)

    def record(self, token: int) -> None:
        """``token`` is the timeline's latest."""
        for record in self._records:
            record(token)

    def likeliest(self, logits: Logits, row: int, allowed: Mask | None) -> int:
        """The token with the largest logit of what bias, penalties, DRY and mask leave; of equals
        the lowest id.

        Raises:
            NotFiniteError: the row holds NaN or +inf, or nothing but -inf.
            NothingLeftError: no token is left.
        """
        token = _finite_argmax(logits, row)
        if not self._changes and (allowed is None or allows(allowed, token)):
            return token
        ids, values = self._masked(logits, row, allowed)
        at = int(values.argmax()) if values.size else 0
        if not values.size or values[at] == -math.inf:
            raise NothingLeftError
        return at if ids is None else int(ids[at])

    def candidates(
        self, logits: Logits, row: int, allowed: Mask | None, chance: float
    ) -> Candidates:
        """What is left to draw from, at least one; logits are those before temperature.

        ``chance`` from 0 to 1 decides whether XTC happens.

        Raises:
            NotFiniteError: the row holds NaN or +inf, or nothing but -inf.
            NothingLeftError: no token is left.
        """
        _finite_argmax(logits, row)
        params = self._params
        plain = not self._changes and allowed is None
        # Largest first wherever top-k is on, also where fewer are left: a mask that forbids none
        # of the likeliest changes no draw.
        some = 0 < params.top_k < logits.numpy().shape[1]
        ids: NDArray[np.int64] | None
        if plain and some:
            ids, values = logits.topk(row, params.top_k)
        else:
            ids, values = self._masked(logits, row, allowed)
            if some:
                places, values = topk(values, params.top_k)
                ids = places if ids is None else ids[places]
        if not plain and (not values.size or values.max() == -math.inf):
            raise NothingLeftError
        return _cut(ids, values, params, chance)

    def _masked(self, logits: Logits, row: int, allowed: Mask | None) -> Candidates:
        values = logits.numpy()[row]
        if self._changes:
            values = values.copy()
            for change in self._changes:
                change(values)
        return (None, values) if allowed is None else left_of(values, allowed)


def _finite_argmax(logits: Logits, row: int) -> int:
    # One pass over the row: NaN and +inf, where there are any, are what argmax finds.
    token = logits.argmax(row)
    if not math.isfinite(logits.numpy()[row, token]):
        raise NotFiniteError
    return token


def _cut(
    ids: NDArray[np.int64] | None,
    values: NDArray[np.float32],
    params: SamplingParams,
    chance: float,
) -> Candidates:
    if params.typical_p < 1:
        stay = typical(values, params.typical_p)
        ids, values = stay if ids is None else ids[stay], values[stay]
    if params.top_p < 1 or params.min_p > 0:
        stay = top_p(values, params.top_p, params.min_p)
        ids, values = stay if ids is None else ids[stay], values[stay]
    if params.xtc_probability > 0 and chance <= params.xtc_probability:
        stay = xtc(values, params.xtc_threshold)
        ids, values = stay if ids is None else ids[stay], values[stay]
    return ids, values
