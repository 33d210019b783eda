"""Knows no machine and no library: what the torch backend takes beside weights and caches.

Unlike a graph that is allocated whole, tensors come and go: what counts is the widest moment of a
step. Measured beside it: ``tests/backends/test_torch_memory.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from localrun.models.spec import CacheRows, Group, ModelSpec
from localrun.plan.constants import MIB
from localrun.plan.memory import vocabulary

# Of a vocabulary's entry: in the tokenizer, with its merges, and as the bytes it stands for.
_ENTRY: Final = 780
# What kernels bring along when they are first used, measured: those of mixtures, in 16 bits with
# libggml and its threads or in 32 without, and those of latent attention in 16.
_MIXTURE: Final = 28 * MIB
_MIXTURE_EXACT: Final = 8 * MIB
_LATENT: Final = 20 * MIB
_FLOAT: Final = 4
_PLAIN: Final = "F32"
_HALVES: Final = frozenset({"F16", "BF16"})
# Numbers of a mask or of scores at once; a longer context is looked at by fewer queries at a time.
_SCORES: Final = 1 << 22
# Queries whose chosen rows are gathered at once, and bytes of such a block and of one of scores.
_QUERIES: Final = 64
_GATHERED: Final = 12 * MIB
_SEARCHED: Final = 4 * MIB
_COPIES: Final = 4
# A mask is made of truths, and of floats from them.
_SCORE: Final = 5


def library_bytes(spec: ModelSpec, *, exact: bool) -> int:
    """Beside torch itself: the tokenizer, and code that only some models use. ``exact`` where all
    is computed in 32 bits."""
    kept = vocabulary(spec) * _ENTRY
    if spec.of("experts"):
        kept += _MIXTURE_EXACT if exact else _MIXTURE
    latent = any(rows.kind == "latent" for rows in spec.caches)
    return kept + (_LATENT if latent and not exact else 0)


def compute_bytes(spec: ModelSpec, tokens: int, n_ctx: int, parallel: int, floats: float) -> int:
    """Of a step of ``tokens``, on the device that computes it. ``floats`` is ``layer_floats``.

    A layer's products in 16 bits and the same in 32, where what is between them is computed; rows
    of one sequence unpacked to be looked at; scores or masks; logits of each sequence.
    """
    layer = tokens * floats * _FLOAT
    widest = max((rows.elements * _unpacked(rows, n_ctx) for rows in spec.caches), default=0)
    scores = min(tokens * n_ctx, _SCORES) * _SCORE
    logits = 2 * parallel * vocabulary(spec) * _FLOAT
    return int(layer + widest * _FLOAT + scores + logits + _chosen_bytes(spec, tokens, n_ctx))


def _chosen_bytes(spec: ModelSpec, tokens: int, n_ctx: int) -> int:
    """Rows that each query has chosen, of a block of queries, and the scores they were chosen by:
    as they are kept, unpacked, scaled and side by side."""
    gathered = [
        min(tokens, _QUERIES) * rows.elements * min(n_ctx, rows.read_rows) * _FLOAT
        for rows in spec.caches
        if rows.read_rows
    ]
    searched = any(rows.kind == "index" for rows in spec.caches) * tokens * n_ctx * _FLOAT
    return _COPIES * (min(max(gathered, default=0), _GATHERED) + min(searched, _SEARCHED))


def _unpacked(rows: CacheRows, n_ctx: int) -> int:
    """Rows of a layer that are looked at together; index keys, and rows that are chosen among, are
    looked at a few at a time."""
    if rows.kind == "index":
        return 0
    kept = rows.rows_kept(n_ctx) // len(rows.layers)
    return min(kept, rows.read_rows or kept)


def held(spec: ModelSpec, *, exact: bool) -> ModelSpec:
    """``spec`` as it lies in memory: what is computed in 16 or 32 bits is unpacked to them, and
    where everything is computed in 32 (``exact``) numbers of 16 take those."""
    return replace(spec, groups=tuple(_held(group, exact=exact) for group in spec.groups))


def _held(group: Group, *, exact: bool) -> Group:
    types, wide = dict(group.types), group.bytes
    unpacked = 0
    for width, (parameters, stored) in group.computed_in.items():
        size = max(stored, (_FLOAT if exact else width) * parameters)
        wide += size - stored
        unpacked += stored
    if exact:
        halves = sum(size for name, size in group.types.items() if name in _HALVES)
        wide += max(0, halves - unpacked)
    if wide == group.bytes:
        return group
    # What unpacking adds is read as plain numbers.
    types[_PLAIN] = types.get(_PLAIN, 0) + wide - group.bytes
    active = group.active_bytes * wide // max(group.bytes, 1)
    return replace(group, bytes=wide, active_bytes=active, types=types)
