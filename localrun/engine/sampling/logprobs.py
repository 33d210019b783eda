"""Knows no sampling: how likely the model said a token was, before any rule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from localrun.engine.request import TokenLogprob
from localrun.engine.rows import topk


def logprob(
    values: NDArray[np.float32], token: int, alternatives: int, tokens: Sequence[bytes]
) -> TokenLogprob:
    """Natural logarithms of the probabilities of ``token`` and of the ``alternatives`` likeliest
    tokens, by a softmax over the whole row ``values`` ``[vocab]``, which is finite but for -inf.

    Alternatives without any probability are left out. ``tokens[i]`` are the bytes of token ``i``.
    """
    top = values.max()
    shifted = values - top
    total = float(top) + math.log(float(np.exp(shifted, out=shifted).sum()))
    likeliest: tuple[tuple[int, bytes, float], ...] = ()
    if alternatives > 0:
        ids, largest = topk(values, alternatives)
        pairs = zip(ids.tolist(), largest.tolist(), strict=True)
        likeliest = tuple(
            (id_, _bytes(tokens, id_), logit - total) for id_, logit in pairs if logit > -math.inf
        )
    own = float(values[token]) - total
    return TokenLogprob(token, _bytes(tokens, token), own, likeliest)


def _bytes(tokens: Sequence[bytes], token: int) -> bytes:
    return tokens[token] if token < len(tokens) else b""
