"""Knows no text: from a row of logits to the next token.

``chain.py`` has the rules and their order. Here what they leave is drawn from, each token by its
probability at the request's temperature.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from localrun.engine.request import SamplingParams, TokenLogprob
from localrun.engine.runner import Logits
from localrun.engine.sampling.chain import Chain, NotFiniteError, NothingLeftError
from localrun.engine.sampling.logprobs import logprob
from localrun.engine.sampling.masks import Mask

__all__ = ["NotFiniteError", "NothingLeftError", "Sampler"]

# Below it the largest logit alone has any weight, and divisions would overflow.
_COLDEST: Final = 1e-6
# More weights than this are summed in blocks first: a running sum costs ten times a sum.
_BLOCK: Final = 256


class Sampler:
    """Draws the tokens of one generation.

    One random number a token, whatever rules are on, so a seed fixes them all. XTC's own chance
    comes from a second stream of the same seed: the first goes on as if it were off.
    """

    __slots__ = ("_chain", "_chances", "_params", "_random", "_tokens")

    def __init__(
        self, params: SamplingParams, prompt: Iterable[int], tokens: Sequence[bytes] = ()
    ) -> None:
        """``params`` are within the ranges of ``limits.check_sampling``.

        prompt: what the timeline holds before the first draw, for penalties and DRY.
        tokens: the bytes of each token, for DRY's breakers and for ``logprob``.
        """
        self._params = params
        self._tokens = tokens
        held = prompt if isinstance(prompt, Sequence) else tuple(prompt)
        self._chain = Chain(params, held, tokens)
        seeds = np.random.SeedSequence(params.seed)
        self._random = np.random.Generator(np.random.PCG64(seeds))
        self._chances: np.random.Generator | None = None
        if params.xtc_probability > 0:
            self._chances = np.random.Generator(np.random.PCG64(seeds.spawn(1)[0]))

    def sample(self, logits: Logits, row: int, allowed: Mask | None = None) -> int:
        """The next token's id, which counts as appended from now on.

        allowed: a bit a token (``masks.py``), None where all are.

        Raises:
            NotFiniteError: the row holds NaN or +inf, or nothing but -inf.
            NothingLeftError: ``allowed`` and ``logit_bias`` leave no token.
        """
        if self._params.temperature > 0:
            token = self._draw(logits, row, allowed)
        else:
            token = self._chain.likeliest(logits, row, allowed)
        self._chain.record(token)
        return token

    def logprob(self, logits: Logits, row: int, token: int) -> TokenLogprob:
        """What the model said of ``token``, with ``params.logprobs`` alternatives, before any rule.

        To be called before the row is gone, in any order with ``sample``.
        """
        return logprob(logits.numpy()[row], token, self._params.logprobs or 0, self._tokens)

    def _draw(self, logits: Logits, row: int, allowed: Mask | None) -> int:
        chance = 0.0 if self._chances is None else self._chances.random()
        ids, values = self._chain.candidates(logits, row, allowed, chance)
        at = _pick(weights(values, self._params.temperature), self._random.random())
        return at if ids is None else int(ids[at])


def weights(values: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Probabilities of logits at a temperature above 0, times the same number: the largest's is
    1."""
    shifted: NDArray[np.float32] = values - values.max()
    shifted /= np.float32(max(temperature, _COLDEST))
    np.exp(shifted, out=shifted)
    return shifted


def _pick(weights: NDArray[np.float32], share: float) -> int:
    """The index at which ``share`` (0 up to 1) of the sum of ``weights`` is passed."""
    if weights.size <= 4 * _BLOCK:
        return _passed(weights, share)[0]
    blocks = weights.size // _BLOCK
    sums = weights[: blocks * _BLOCK].reshape(blocks, _BLOCK).sum(axis=1)
    rest = weights[blocks * _BLOCK :].sum()
    block, within = _passed(np.append(sums, rest), share)
    start = block * _BLOCK
    return start + _passed(weights[start : start + _BLOCK], within)[0]


def _passed(weights: NDArray[np.float32], share: float) -> tuple[int, float]:
    """The index, and what share of its own weight was passed."""
    mass = np.cumsum(weights, dtype=np.float64)
    goal = share * mass[-1]
    at = int(np.searchsorted(mass, goal, side="right"))
    if at == mass.size:
        # Rounding met the whole sum: the last that has any weight.
        at = int(np.searchsorted(mass, mass[-1]))
    before = mass[at - 1] if at else 0.0
    return at, min(float((goal - before) / (mass[at] - before)), 1.0)
