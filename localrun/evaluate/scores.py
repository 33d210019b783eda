"""Knows no runner and no file: what rows of logits say of the tokens that really came.

Float32 for each element and float64 for each sum, as in llama-perplexity. Rows are worked through
in blocks, so that temporary arrays stay small beside the rows themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Elements of the temporary arrays: 1 MiB each as float32, which a core keeps in its cache.
_BLOCK: Final = 1 << 18
# Log-probabilities are kept down to so much below the likeliest (log_softmax in
# https://github.com/ggml-org/llama.cpp/blob/master/tools/perplexity/perplexity.cpp).
_DEPTH: Final = np.float32(16)
_STEPS: Final = np.float32(65535)


def record_type(n_vocab: int) -> np.dtype[Any]:
    """One token's predicted distribution in 16 bits: the log-probability of id i is
    ``least + scale * steps[i]``. An odd vocabulary is padded by one."""
    padded = 2 * ((n_vocab + 1) // 2)
    return np.dtype([("scale", "<f4"), ("least", "<f4"), ("steps", "<u2", (padded,))])


@dataclass(frozen=True, slots=True)
class Comparison:
    """One value for each token, ``[tokens]``.

    nll, reference_nll: minus the logarithm of the probability that each model gave the token.
    kld: divergence of the whole distribution from the reference's, in nats.
    delta_p: probability of the token, less the reference's.
    same_top: whether both have the same likeliest token.
    """

    nll: NDArray[np.float64]
    reference_nll: NDArray[np.float64]
    kld: NDArray[np.float64]
    delta_p: NDArray[np.float64]
    same_top: NDArray[np.bool_]


def surprise(logits: NDArray[np.float32], targets: NDArray[np.int32]) -> NDArray[np.float64]:
    """``-ln p`` of each row's target. ``logits`` is ``[rows, vocab]``.

    Raises:
        FloatingPointError: a logit is not a number, or a target's probability is zero.
    """
    found = np.empty(len(targets), np.float64)
    for block in _blocks(logits):
        highest, log_sum = _normalizers(logits[block])
        chosen = logits[block][np.arange(len(highest)), targets[block]]
        found[block] = log_sum - (chosen - highest).astype(np.float64)
    return _finite(found, "a token's logarithm of probability")


def encode(logits: NDArray[np.float32]) -> NDArray[Any]:
    """Rows ``[rows, vocab]`` as records of ``record_type``.

    Raises:
        FloatingPointError: a logit is not a number.
    """
    n_vocab = logits.shape[1]
    records = np.zeros(len(logits), record_type(n_vocab))
    for block in _blocks(logits):
        rows = logits[block]
        highest, log_sum = _normalizers(rows)
        lowest = np.maximum(rows.min(axis=1), highest - _DEPTH)
        scale = (highest - lowest) / _STEPS
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
        steps = np.maximum(rows, lowest[:, None])
        steps -= lowest[:, None]
        steps *= inverse[:, None]
        np.rint(steps, out=steps)
        records["steps"][block, :n_vocab] = np.minimum(steps, _STEPS, out=steps)
        records["scale"][block] = scale
        records["least"][block] = lowest - highest - log_sum.astype(np.float32)
    return records


def compare_rows(
    records: NDArray[Any], logits: NDArray[np.float32], targets: NDArray[np.int32]
) -> Comparison:
    """What the reference's ``records`` and another model's ``logits`` ``[rows, vocab]`` say.

    Tokens that the reference holds less likely than e^-16 add nothing to the divergence.

    Raises:
        FloatingPointError: a logit is not a number, or a divergence is infinite.
    """
    count, n_vocab = logits.shape
    nll, reference_nll, kld, delta_p = np.empty((4, count), np.float64)
    found = Comparison(nll, reference_nll, kld, delta_p, np.empty(count, np.bool_))
    for block in _blocks(logits):
        rows, mine = logits[block], records[block]
        wanted = targets[block]
        each = np.arange(len(rows))
        highest, log_sum = _normalizers(rows)
        norm = highest + log_sum.astype(np.float32)
        base = mine["steps"][:, :n_vocab].astype(np.float32)
        base *= mine["scale"][:, None]
        base += mine["least"][:, None]
        found.nll[block] = norm - rows[each, wanted]
        found.reference_nll[block] = -base[each, wanted]
        found.same_top[block] = base.argmax(axis=1) == rows.argmax(axis=1)
        found.kld[block] = _divergence(base, rows, norm)
    found.delta_p[:] = np.exp(-found.nll) - np.exp(-found.reference_nll)
    _finite(found.nll, "a token's logarithm of probability")
    _finite(found.kld, "a divergence")
    return found


def _divergence(
    base: NDArray[np.float32], rows: NDArray[np.float32], norm: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Sum of ``p * (ln p - ln q)`` of each row; ``base`` is ``ln p``, ``rows - norm`` ``ln q``."""
    terms = base - rows
    terms += norm[:, None]
    likely = base > -_DEPTH
    terms *= np.exp(base, out=base)
    # Not by p = 0: the other model may hold such a token impossible, which is an infinite term.
    found: NDArray[np.float64] = np.where(likely, terms, np.float32(0)).sum(1, dtype=np.float64)
    return found


def _blocks(logits: NDArray[np.float32]) -> Iterator[slice]:
    rows = max(1, _BLOCK // logits.shape[1])
    return (slice(at, at + rows) for at in range(0, len(logits), rows))


def _normalizers(
    rows: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """(m, s) of each row: m is its largest logit, ``m + s`` the logarithm of the sum of all
    exponentials."""
    highest = rows.max(axis=1)
    _finite(highest, "a logit")
    shifted = rows - highest[:, None]
    np.exp(shifted, out=shifted)
    return highest, np.log(shifted.sum(axis=1, dtype=np.float64))


def _finite(values: NDArray[Any], what: str) -> NDArray[Any]:
    found = np.isfinite(values)
    if not found.all():
        raise FloatingPointError(f"{what} is {values[~found][0]}")
    return values
