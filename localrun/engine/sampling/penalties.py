"""Knows neither a prompt's text nor a model: what changes the logits of tokens seen before, and
what a request wants changed of tokens by name.

The formulas are llama.cpp's (``llama_sampler_penalties_apply`` and
``llama_sampler_logit_bias_apply``,
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-sampler.cpp), with one difference: a
bias of -100 forbids its token, at any temperature, where llama.cpp adds -100.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from localrun.engine.request import SamplingParams

FORBIDDEN: Final = -100.0


class Bias:
    """``logit_bias`` as arrays; entries of one token add up."""

    __slots__ = ("_amounts", "_ids")

    def __init__(self, entries: Sequence[tuple[int, float]]) -> None:
        amounts: dict[int, float] = {}
        for token, bias in entries:
            amount = -np.inf if bias <= FORBIDDEN else bias
            amounts[token] = amounts.get(token, 0.0) + amount
        self._ids = np.array(list(amounts), dtype=np.int64)
        self._amounts = np.array(list(amounts.values()), dtype=np.float32)

    def apply(self, values: NDArray[np.float32]) -> None:
        """Add to ``values`` ``[vocab]``, in place."""
        values[self._ids] += self._amounts


class Penalties:
    """Repetition, frequency and presence penalties over the last ``penalty_window`` tokens.

    ids and counts of the tokens in the window fill the heads of two arrays, so that a step costs
    no walk over the window.
    """

    __slots__ = (
        "_counts",
        "_frequency",
        "_ids",
        "_places",
        "_presence",
        "_recent",
        "_repetition",
        "_window",
    )

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        self._repetition = np.float32(params.repeat_penalty)
        self._frequency = np.float32(params.frequency_penalty)
        self._presence = np.float32(params.presence_penalty)
        self._window = params.penalty_window
        recent = prompt if self._window < 0 else prompt[-self._window :]
        ids, counts = np.unique(np.asarray(recent, dtype=np.int64), return_counts=True)
        self._ids = ids
        self._counts = counts.astype(np.float32)
        self._places = {token: at for at, token in enumerate(ids.tolist())}
        # Nothing leaves a window without an end.
        self._recent = deque(recent if self._window > 0 else ())

    @staticmethod
    def wanted(params: SamplingParams) -> bool:
        neutral = (params.repeat_penalty, params.frequency_penalty, params.presence_penalty)
        return params.penalty_window != 0 and neutral != (1.0, 0.0, 0.0)

    def record(self, token: int) -> None:
        """``token`` is the latest; the oldest may leave the window."""
        if self._window > 0:
            if len(self._recent) == self._window:
                self._forget(self._recent.popleft())
            self._recent.append(token)
        at = self._places.get(token)
        if at is None:
            at = self._places[token] = len(self._places)
            if at == self._ids.size:
                self._ids = np.resize(self._ids, 2 * at + 16)
                self._counts = np.resize(self._counts, 2 * at + 16)
            self._ids[at], self._counts[at] = token, 0
        self._counts[at] += 1

    def apply(self, values: NDArray[np.float32]) -> None:
        """Lower what was seen in ``values`` ``[vocab]``, in place.

        A positive logit is divided by the repetition penalty, another multiplied
        (https://arxiv.org/abs/1909.05858, section 4.1, with the usual mending of the sign); then
        the frequency penalty is subtracted once for each time the token was seen, and the presence
        penalty once.
        """
        size = len(self._places)
        ids, counts = self._ids[:size], self._counts[:size]
        seen = values[ids]
        if self._repetition != 1:
            seen = np.where(seen > 0, seen / self._repetition, seen * self._repetition)
        values[ids] = seen - (counts * self._frequency + self._presence)

    def _forget(self, token: int) -> None:
        at = self._places[token]
        self._counts[at] -= 1
        if self._counts[at] > 0:
            return
        # The last entry takes the place of the one that goes.
        del self._places[token]
        last = len(self._places)
        if at != last:
            moved = int(self._ids[last])
            self._ids[at], self._counts[at] = moved, self._counts[last]
            self._places[moved] = at
