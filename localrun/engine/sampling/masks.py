"""Knows no grammar: which tokens a bit mask leaves of a row.

A mask has one bit a token, set where the token is allowed, 32 tokens a word: token ``t`` is bit
``t % 32`` of word ``t // 32``, counted from the least significant. Tokens past the last word are
not allowed.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint32]
Candidates = tuple[NDArray[np.int64] | None, NDArray[np.float32]]
"""Token ids, None for every token of the vocabulary in order, and their logits."""

# Up to so many allowed tokens are picked out; among more, the others are set to -inf.
_FEW: Final = 4096
_INFINITY: Final = np.float32(np.inf)


def allows(allowed: Mask, token: int) -> bool:
    """Whether the bit of ``token`` is set."""
    word, bit = divmod(token, 32)
    return word < allowed.size and bool(int(allowed[word]) >> bit & 1)


def left_of(values: NDArray[np.float32], allowed: Mask) -> Candidates:
    """What ``allowed`` leaves of ``values`` ``[vocab]``, which are not written to; perhaps
    nothing. A token that is not allowed is left out or has the logit -inf."""
    bits = _bits(allowed, values.size)
    if int(np.bitwise_count(allowed).sum()) <= _FEW:
        ids = np.flatnonzero(bits.view(np.bool_))
        return ids, values[ids]
    # 0 and 1 become -inf and +inf: no branch a token, which costs three times as much.
    ceiling = bits.astype(np.float32)
    ceiling -= np.float32(0.5)
    ceiling *= _INFINITY
    return None, np.minimum(values, ceiling, out=ceiling)


def _bits(allowed: Mask, size: int) -> NDArray[np.uint8]:
    words = np.ascontiguousarray(allowed, dtype="<u4")
    bits = np.unpackbits(words.view(np.uint8), bitorder="little", count=min(size, 32 * words.size))
    return bits if bits.size == size else np.pad(bits, (0, size - bits.size))
