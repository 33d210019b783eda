"""Knows no timeline: which of a row's candidates stay, by their probabilities alone.

The meanings are llama.cpp's (``llama_sampler_typical_apply``, ``_top_p_apply``, ``_min_p_apply``
and ``llama_sample_xtc_apply``,
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-sampler.cpp): each looks at
probabilities before temperature, renormalised over what the cut before it left. Every function
takes logits and returns the indices that stay, ascending and at least one, so candidates keep
their order. Equal logits stay by the lower index. Sums are in float64, llama.cpp's in float32.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Values = NDArray[np.float32]

# Up to so many keys are sorted. Among more, those up to _NEAR are mostly few and hold enough; where
# not, buckets tell which need sorting.
_SORTED: Final = 2048
_NEAR: Final = np.float32(6)
_BUCKETS: Final = 1024
# exp(-_DEEPEST) is 0 in float32.
_DEEPEST: Final = np.float32(104)


def typical(values: Values, typical_p: float) -> Indices:
    """Those whose surprise is nearest the expected one, until they hold more than ``typical_p`` of
    the mass (https://arxiv.org/abs/2202.00666)."""
    depths = _depths(values)
    weights = np.exp(-depths)
    total = float(weights.sum(dtype=np.float64))
    # Both surprises less log(total), which the difference does not have.
    expected = float(np.dot(weights, depths)) / total
    return _first(np.abs(depths - np.float32(expected)), weights, typical_p * total, beyond=True)


def top_p(values: Values, share: float, floor: float) -> Indices:
    """Top-p, then min-p: both keep the likeliest, so the shorter decides.

    The fewest that hold ``share`` of the mass; of them those whose probability is at least
    ``floor`` times the largest's.
    """
    depths = _depths(values)
    deepest = -math.log(floor) if floor > 0 else math.inf
    if share >= 1:
        return np.flatnonzero(depths <= deepest)
    weights = np.exp(-depths)
    target = share * float(weights.sum(dtype=np.float64))
    if deepest >= _DEEPEST:
        return _first(depths, weights, target)
    near = np.flatnonzero(depths <= deepest)
    return near[_first(depths[near], weights[near], target)]


def xtc(values: Values, threshold: float) -> Indices:
    """All but those with a probability of ``threshold`` or more; the least likely of these stays
    too, so that something likely does (https://github.com/oobabooga/text-generation-webui/pull/6335).
    """
    weights = np.exp(values - values.max())
    likely = np.flatnonzero(weights >= threshold * float(weights.sum(dtype=np.float64)))
    stay = np.ones(values.size, dtype=np.bool_)
    if likely.size > 1:
        stay[likely] = False
        # The last of equals, as in descending order.
        stay[likely[::-1][np.argmin(values[likely[::-1]])]] = True
    return np.flatnonzero(stay)


def _depths(values: Values) -> Values:
    """How far each is below the largest; finite."""
    depths: Values = values.max() - values
    return np.minimum(depths, _DEEPEST, out=depths)


def _first(keys: Values, weights: Values, target: float, *, beyond: bool = False) -> Indices:
    """The fewest smallest ``keys`` whose ``weights`` sum to ``target``, or to more if ``beyond``;
    all where none do. Keys are 0 or more and finite; equal ones are taken by the lower index."""
    side: Literal["left", "right"] = "right" if beyond else "left"
    if keys.size <= _SORTED:
        return np.sort(_smallest(keys, weights, target, side))
    near = np.flatnonzero(keys <= _NEAR)
    if near.size <= _SORTED and weights[near].sum(dtype=np.float64) > target:
        return near[np.sort(_smallest(keys[near], weights[near], target, side))]
    scale = (_BUCKETS - 1) / max(float(keys.max()), 1e-9)
    buckets = (keys * np.float32(scale)).astype(np.int32)
    mass = np.cumsum(np.bincount(buckets, weights, _BUCKETS))
    last = int(np.searchsorted(mass, target, side=side))
    stay = buckets < last
    edge = np.flatnonzero(buckets == last)
    rest = target - (float(mass[last - 1]) if last else 0.0)
    stay[edge[_smallest(keys[edge], weights[edge], rest, side)]] = True
    return np.flatnonzero(stay)


def _smallest(
    keys: Values, weights: Values, target: float, side: Literal["left", "right"]
) -> Indices:
    order = np.argsort(keys, kind="stable")
    mass = np.cumsum(weights[order], dtype=np.float64)
    return order[: int(np.searchsorted(mass, target, side=side)) + 1]
