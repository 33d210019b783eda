"""Knows no model: what lowers tokens that were seen, or that a request names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from localrun.engine.request import SamplingParams
from localrun.engine.rows import NumpyLogits
from localrun.engine.sampling.chain import Chain
from localrun.engine.sampling.dry import Dry
from localrun.engine.sampling.penalties import Bias, Penalties
from localrun.engine.sampling.sampler import weights

OFF = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
# Few tokens, so that they come again.
timelines = st.lists(st.integers(0, 3), max_size=40)
logits = st.lists(st.integers(-40, 40).map(lambda value: value / 4), min_size=6, max_size=6)
windows = st.sampled_from([-1, 1, 2, 5, 30])


def zeros(size: int = 6) -> NDArray[np.float32]:
    return np.zeros(size, dtype=np.float32)


def penalized(params: SamplingParams, told: Sequence[int], drawn: Sequence[int]) -> list[float]:
    penalties = Penalties(params, told)
    for token in drawn:
        penalties.record(token)
    values = zeros()
    penalties.apply(values)
    return values.tolist()


@given(timelines, st.integers(0, 40), windows)
def test_frequency_and_presence_count_what_is_in_the_window(
    tokens: list[int], told: int, window: int
) -> None:
    params = SamplingParams(frequency_penalty=0.5, presence_penalty=4.0, penalty_window=window)
    seen = tokens if window < 0 else tokens[-window:]

    assert penalized(params, tokens[:told], tokens[told:]) == [
        -0.5 * seen.count(token) - 4.0 * (token in seen) for token in range(6)
    ]


def test_more_distinct_tokens_than_at_first_are_counted_too() -> None:
    params = SamplingParams(presence_penalty=1, penalty_window=-1)
    penalties = Penalties(params, (7,))
    for token in range(500):
        penalties.record(token)
    values = zeros(600)
    penalties.apply(values)

    assert values.tolist() == [-1.0] * 500 + [0.0] * 100


@given(
    logits,
    timelines.filter(len),
    st.floats(1, 3),
    st.floats(0, 3),
    st.floats(0, 3),
    st.sampled_from([0.0, 1.5]),
)
def test_penalties_together_never_make_all_seen_tokens_likelier(
    values: list[float],
    tokens: list[int],
    repetition: float,
    frequency: float,
    presence: float,
    dry: float,
) -> None:
    row = np.array([values], dtype=np.float32)
    params = replace(
        OFF,
        repeat_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
        dry_multiplier=dry,
        penalty_window=-1,
    )
    _, left = Chain(params, tokens, ()).candidates(NumpyLogits(row), 0, None, 0.0)
    before, after = weights(row[0], 1.0), weights(left, 1.0)
    seen = sorted(set(tokens))

    assert after[seen].sum() / after.sum() <= before[seen].sum() / before.sum() + 1e-6
    # Without DRY and the division, which depend on more than having been seen, each by itself.
    assert (left[seen] <= row[0][seen]).all()


@given(logits, timelines.filter(len), st.floats(1, 3), st.sampled_from(["repeat", "presence"]))
def test_the_only_token_that_was_seen_is_never_likelier_for_a_penalty(
    values: list[float], tokens: list[int], amount: float, rule: str
) -> None:
    row = np.array([values], dtype=np.float32)
    params = replace(OFF, **{f"{rule}_penalty": amount})  # type: ignore[arg-type]  # both are floats
    token = tokens[0]
    _, left = Chain(params, (token,), ()).candidates(NumpyLogits(row), 0, None, 0.0)
    before, after = weights(row[0], 1.0), weights(left, 1.0)

    assert after[token] / after.sum() <= before[token] / before.sum() + 1e-6


def test_biases_of_one_token_add_up_and_minus_100_forbids() -> None:
    values = zeros(4)
    Bias(((1, 2.5), (1, 2.0), (2, -99.5), (3, -100.0), (3, 100.0))).apply(values)

    assert values.tolist() == [0.0, 4.5, -99.5, -math.inf]


# DRY.

WORDS = (b"a", b"b", b"c", b"d", b"\n", b"x:y", b"")


def lowered(
    params: SamplingParams,
    told: Sequence[int],
    drawn: Sequence[int] = (),
    words: Sequence[bytes] = WORDS,
) -> dict[int, float]:
    """Token → how much lower its logit is."""
    dry = Dry(params, told, words)
    for token in drawn:
        dry.record(token)
    values = zeros(max(7, len(words)))
    dry.apply(values)
    return {token: -value for token, value in enumerate(values.tolist()) if value}


def by_definition(params: SamplingParams, tokens: list[int]) -> dict[int, float]:
    """DRY as its docstring says it, one run at a time."""
    window = tokens if params.dry_window < 0 else tokens[-params.dry_window :]
    since = 0
    for at, token in enumerate(window):
        if any(breaker.encode() in WORDS[token] for breaker in params.dry_breakers):
            since = at + 1
    longest: dict[int, int] = {}
    for end in range(len(window) - 1):
        run = 0
        while (
            run <= end
            and run < len(window) - since
            and window[end - run] == window[len(window) - 1 - run]
        ):
            run += 1
        follower = window[end + 1]
        held = any(breaker.encode() in WORDS[follower] for breaker in params.dry_breakers)
        if run >= params.dry_allowed_length and not held:
            longest[follower] = max(run, longest.get(follower, 0))
    return {
        token: params.dry_multiplier * params.dry_base ** (run - params.dry_allowed_length)
        for token, run in longest.items()
    }


@given(
    st.lists(st.sampled_from([0, 0, 1, 1, 2, 4, 5, 6]), max_size=60),
    st.integers(0, 60),
    st.sampled_from([-1, -1, 2, 7, 20]),
    st.integers(1, 4),
    st.sampled_from([(), ("\n",), ("\n", ":"), ("b", "not in any word")]),
)
def test_dry_lowers_what_its_definition_names_told_or_drawn(
    tokens: list[int], told: int, window: int, allowed: int, breakers: tuple[str, ...]
) -> None:
    params = SamplingParams(
        dry_multiplier=0.5,
        dry_base=1.5,
        dry_allowed_length=allowed,
        dry_window=window,
        dry_breakers=breakers,
    )

    got = lowered(params, tokens[:told], tokens[told:])
    assert got == pytest.approx(by_definition(params, tokens), rel=1e-6)


@pytest.mark.parametrize("told", [0, 3, 50])
def test_a_repetition_counts_as_far_as_the_window_goes(told: int) -> None:
    for window in range(2, 20):
        params = SamplingParams(
            dry_multiplier=1, dry_base=2, dry_allowed_length=1, dry_window=window, dry_breakers=()
        )
        assert lowered(params, [0] * told, [0] * (50 - told)) == {0: 2.0 ** (window - 2)}


def test_dry_grows_with_the_length_of_the_repetition() -> None:
    params = SamplingParams(dry_multiplier=1, dry_base=2, dry_allowed_length=2, dry_breakers=())
    phrase = [0, 1, 2, 3, 0, 1, 2]

    assert lowered(params, phrase[:5]) == {}
    assert lowered(params, phrase[:6]) == {2: 1.0}
    assert lowered(params, phrase) == {3: 2.0}


@pytest.mark.parametrize("breaker", ["b:", "ab:", ":\n", "e\u0301", "\u0301"])
@pytest.mark.parametrize("drawn", [0, 1, 2, 3, 7])
def test_a_breaker_is_found_however_the_text_was_cut_into_tokens(breaker: str, drawn: int) -> None:
    words = (b"a", b"b", b":\n", b"say ", b"it", b"e\xcc", b"\x81")
    tokens = [3, 4, 0, 1, 2, 5, 6, 3, 4]
    params = SamplingParams(dry_multiplier=1, dry_allowed_length=2, dry_breakers=(breaker,))
    ends = {"b:": 4, "ab:": 4, ":\n": 4, "e\u0301": 6, "\u0301": 6}
    # Two tokens after the breaker may still come again; with one less, nothing is long enough.
    for count in range(ends[breaker] + 1, len(tokens) + 1):
        told = max(0, count - drawn)
        got = lowered(params, tokens[:told], tokens[told:count], words)
        assert got == ({0: 1.0} if count == len(tokens) else {})
    within = [3, 4, 3, 4, 0, 1, 2, 5, 6, 4]
    told = max(0, len(within) - drawn)
    assert lowered(params, within[:told], within[told:], words) == {}


def test_what_only_looks_like_a_breaker_across_two_texts_is_none() -> None:
    words = (b"a", b"b", b"ab")
    params = SamplingParams(dry_multiplier=1, dry_allowed_length=1, dry_breakers=("aa",))

    assert lowered(params, (0, 1, 0), (), words) == {1: 1.0}
    assert lowered(params, (0, 1, 0, 0), (), words) == {}
    assert lowered(params, (0, 1, 0), (0,), words) == {}


@pytest.mark.parametrize("drawn", [0, 1, 4])
def test_a_short_breaker_beside_a_longer_one_is_met_once(drawn: int) -> None:
    params = SamplingParams(dry_multiplier=1, dry_allowed_length=1, dry_breakers=("b", "dddd"))
    tokens = [0, 2, 1, 0]

    assert lowered(params, tokens[: 4 - drawn], tokens[4 - drawn :]) == {2: 1.0}


def test_the_longest_repetition_leaves_the_logits_finite() -> None:
    params = SamplingParams(dry_multiplier=100, dry_base=100, dry_breakers=())
    dry = Dry(params, [0] * 3000, WORDS)
    values = zeros()
    dry.apply(values)

    assert np.isfinite(values).all()
    assert values.argmin() == 0


def test_a_timeline_longer_than_its_first_room_goes_on() -> None:
    params = SamplingParams(dry_multiplier=1, dry_allowed_length=3, dry_breakers=())
    random = np.random.default_rng(0)
    tokens = random.integers(0, 3, 3000).tolist()

    assert lowered(params, (), tokens) == pytest.approx(lowered(params, tokens))
    assert lowered(params, tokens)
