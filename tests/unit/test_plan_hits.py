"""How often experts are found in a cache, against what was published."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localrun.plan.hits import COLD_SKEW, STEADY_SKEW, TYPICAL_SKEW, hit_rate, picked, touched

layers = st.integers(1, 512).flatmap(
    lambda count: st.tuples(st.just(count), st.integers(1, min(count, 64)))
)
skews = st.floats(0.0, 2.5)

# (used, experts, skew of the trace, [(share of experts kept, share of picks found)], error allowed)
PUBLISHED: dict[str, tuple[int, int, float, list[tuple[float, float]], float]] = {
    "gpt-oss-120b": (2, 128, 1.30, [(0.052, 0.448)], 0.03),
    "Kimi-Linear": (
        8,
        256,
        1.30,
        [(0.06, 0.403), (0.12, 0.619), (0.24, 0.848), (0.48, 0.939)],
        0.065,
    ),
    "Qwen3.5-397B": (4, 512, 1.15, [(0.167, 0.71)], 0.03),
    "OLMoE": (8, 64, 1.00, [(0.125, 0.277), (0.375, 0.684)], 0.05),
    "GLM-5.2": (8, 256, 1.15, [(0.26, 0.725)], 0.07),
}


@pytest.mark.parametrize("trace", PUBLISHED)
def test_published_traces_are_met_within_the_error_of_their_fit(trace: str) -> None:
    used, count, skew, points, allowed = PUBLISHED[trace]
    squares = [(hit_rate(share * count, count, used, skew) - found) ** 2 for share, found in points]
    assert math.sqrt(sum(squares) / len(squares)) <= allowed


@settings(max_examples=200, deadline=None, derandomize=True)
@given(layers, skews)
def test_a_token_picks_as_many_as_it_uses_and_none_twice(
    layer: tuple[int, int], skew: float
) -> None:
    count, used = layer
    found = picked(count, used, skew)
    assert len(found) == count
    assert math.isclose(sum(found), used, rel_tol=1e-9)
    assert all(0 <= pick <= 1 + 1e-12 for pick in found)
    assert list(found) == sorted(found, reverse=True)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(layers, skews, st.data())
def test_more_slots_find_more_and_none_find_nothing(
    layer: tuple[int, int], skew: float, data: st.DataObject
) -> None:
    count, used = layer
    few = data.draw(st.floats(0, count))
    more = data.draw(st.floats(few, count))
    less, greater = (hit_rate(slots, count, used, skew) for slots in (few, more))
    assert 0 <= less <= greater + 1e-6
    assert greater <= 1
    assert hit_rate(0, count, used, skew) == 0
    assert hit_rate(count, count, used, skew) == 1


def test_a_session_that_goes_on_finds_more() -> None:
    for slots in (12, 60, 200):
        rates = [hit_rate(slots, 256, 8, skew) for skew in (COLD_SKEW, TYPICAL_SKEW, STEADY_SKEW)]
        assert rates == sorted(rates)
        assert rates[0] < rates[2]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(layers, skews, st.integers(1, 4096))
def test_more_tokens_touch_more_experts_and_never_more_than_there_are(
    layer: tuple[int, int], skew: float, tokens: int
) -> None:
    count, used = layer
    once, many = touched(1, count, used, skew), touched(tokens, count, used, skew)
    assert math.isclose(once, used, rel_tol=1e-9)
    assert once - 1e-9 <= many <= count + 1e-9


def test_a_model_without_experts_misses_none() -> None:
    assert hit_rate(0, 0, 0, 1.0) == 1
    assert touched(100, 0, 0, 1.0) == 0
