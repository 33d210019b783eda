"""Knows no timeline: which candidates stay, and what they have in common with a full sort."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from localrun.engine.sampling.cuts import top_p, typical, xtc

Row = NDArray[np.float32]


def seeded(seed: int, size: int, spread: float) -> Row:
    """Quarters, so that there are ties, and some that cannot be drawn at all."""
    random = np.random.default_rng(seed)
    values = np.round(random.normal(0, spread, size) * 4) / 4
    values[random.random(size) < 0.1] = -math.inf
    values[random.integers(size)] = 4 * spread
    return values.astype(np.float32)


rows = st.builds(
    seeded, st.integers(0, 999), st.integers(1, 400) | st.integers(2049, 9000), st.floats(0.1, 8)
)
shares = st.floats(0.01, 0.99)


def probabilities(values: Row) -> NDArray[np.float64]:
    parts = np.exp(values.astype(np.float64) - values.max())
    return np.asarray(parts / parts.sum())


@given(rows, shares)
def test_top_p_keeps_the_fewest_likeliest_that_hold_the_share(values: Row, share: float) -> None:
    stay = top_p(values, share, 0.0)
    parts = probabilities(values)
    kept = parts[stay]

    assert kept.sum() >= share - 1e-5
    assert kept.sum() - kept.min() < share + 1e-5
    assert kept.min() >= np.delete(parts, stay).max(initial=0)


@given(rows, shares, shares)
def test_top_p_and_min_p_keep_what_both_keep_alone(values: Row, share: float, floor: float) -> None:
    both = set(top_p(values, share, 0.0).tolist()) & set(top_p(values, 1.0, floor).tolist())

    assert set(top_p(values, share, floor).tolist()) == both


@given(rows, shares)
def test_min_p_keeps_those_near_the_largest(values: Row, floor: float) -> None:
    parts = probabilities(values)
    ratio = parts / parts.max()
    stay = top_p(values, 1.0, floor)

    assert ratio[stay].min() >= floor * (1 - 1e-5)
    assert np.delete(ratio, stay).max(initial=0) < floor * (1 + 1e-5)


@given(rows, shares)
def test_typical_keeps_the_fewest_nearest_the_expected_surprise(values: Row, share: float) -> None:
    stay = typical(values, share)
    parts = probabilities(values)
    surprise = -np.log(np.where(parts > 0, parts, np.exp(-104) * parts.max()))
    apart = np.abs(surprise - (parts * surprise).sum())

    assert parts[stay].sum() > share - 1e-4
    assert np.delete(apart, stay).min(initial=math.inf) >= apart[stay].max() - 1e-3
    farthest = stay[np.argmax(apart[stay])]
    assert parts[stay].sum() - parts[farthest] < share + 1e-4


@given(rows, st.floats(0.01, 0.5))
def test_xtc_leaves_one_of_the_likely_and_all_of_the_others(values: Row, threshold: float) -> None:
    parts = probabilities(values)
    likely = np.flatnonzero(parts >= threshold)
    gone = np.setdiff1d(np.arange(values.size), xtc(values, threshold))

    assert set(gone) <= set(likely)
    assert gone.size == max(0, likely.size - 1)
    assert parts[np.setdiff1d(likely, gone)].max(initial=0) <= parts[gone].min(initial=1)


@pytest.mark.parametrize("size", [5, 5000])
@given(st.integers(-30, 30), shares, shares, st.integers(0, 99))
def test_a_constant_added_to_every_logit_changes_nothing(
    size: int, constant: int, share: float, floor: float, seed: int
) -> None:
    values = seeded(seed, size, 3)
    moved = values + np.float32(constant)

    assert top_p(moved, share, floor).tolist() == top_p(values, share, floor).tolist()
    assert typical(moved, share).tolist() == typical(values, share).tolist()
    assert xtc(moved, floor / 2).tolist() == xtc(values, floor / 2).tolist()


@pytest.mark.parametrize("size", [1, 7, 5000])
def test_equal_logits_stay_by_the_lower_index(size: int) -> None:
    values = np.full(size, 2.5, dtype=np.float32)
    half = math.ceil(size / 2)

    assert top_p(values, 0.5, 0.0).tolist() == list(range(half))
    assert typical(values, 0.4999).tolist() == list(range(half))
    assert top_p(values, 1.0, 1.0).tolist() == list(range(size))
    assert xtc(values, 1 / (2 * size)).tolist() == [size - 1]


@given(rows)
def test_the_tightest_cut_leaves_one(values: Row) -> None:
    assert top_p(values, 0.0, 0.0).tolist() == [int(values.argmax())]
    assert typical(values, 0.0).size == 1
    assert top_p(values, 0.5, 1.0).size >= 1
    assert xtc(values, 1e-9).size >= 1
