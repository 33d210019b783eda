"""Knows no runner: how tokens are drawn from rows of logits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from localrun.engine.request import SamplingParams
from localrun.engine.rows import NumpyLogits, topk
from localrun.engine.sampling.sampler import NotFiniteError, NothingLeftError, Sampler

OFF = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)


def row(*values: float) -> NumpyLogits:
    return NumpyLogits(np.array([values], dtype=np.float32))


def from_probabilities(*values: float) -> NumpyLogits:
    return row(*(math.log(value) for value in values))


def drawn(
    logits: NumpyLogits, params: SamplingParams, count: int = 300, prompt: tuple[int, ...] = ()
) -> Counter[int]:
    """What ``count`` first tokens are, each from a sampler of its own seed."""
    seeded = (replace(params, seed=seed) for seed in range(count))
    return Counter(Sampler(one, prompt).sample(logits, 0) for one in seeded)


def seeded_row(seed: int, size: int, levels: int) -> NDArray[np.float32]:
    """Few levels make ties."""
    return np.random.default_rng(seed).integers(-levels, levels, size).astype(np.float32) / 2


rows = st.builds(seeded_row, st.integers(0, 999), st.integers(1, 2000), st.integers(1, 60))


@given(rows, st.integers(1, 50))
def test_topk_is_the_head_of_a_stable_sort(values: NDArray[np.float32], k: int) -> None:
    ids, largest = topk(values, k)
    order = np.argsort(-values, kind="stable")[:k]

    assert ids.tolist() == order.tolist()
    assert largest.tolist() == values[order].tolist()


def test_topk_of_a_large_vocabulary_finds_ties_by_the_lower_id() -> None:
    values = np.random.default_rng(0).integers(0, 40, size=49_152).astype(np.float32)
    ids, _ = topk(values, 40)

    assert ids.tolist() == np.argsort(-values, kind="stable")[:40].tolist()


def test_temperature_zero_takes_the_largest_of_what_penalties_leave() -> None:
    greedy = SamplingParams(temperature=0, top_k=1, xtc_probability=1, repeat_penalty=10)

    assert drawn(row(1, 5, 4), greedy, 5) == {1: 5}
    assert drawn(row(1, 5, 4), greedy, 5, prompt=(1, 1)) == {2: 5}


@pytest.mark.parametrize("top_k", [0, 3])
def test_the_same_seed_on_the_same_logits_gives_the_same_tokens(top_k: int) -> None:
    params = SamplingParams(temperature=1.5, top_k=top_k, seed=42)
    logits = row(*np.linspace(0, 3, 50))
    one, other = Sampler(params, ()), Sampler(params, ())

    assert [one.sample(logits, 0) for _ in range(50)] == [
        other.sample(logits, 0) for _ in range(50)
    ]


def test_without_a_seed_two_samplers_differ() -> None:
    params = SamplingParams(temperature=1, top_k=0, top_p=1, min_p=0)
    logits = row(*np.zeros(1000))
    one, other = Sampler(params, ()), Sampler(params, ())

    assert [one.sample(logits, 0) for _ in range(20)] != [
        other.sample(logits, 0) for _ in range(20)
    ]


@pytest.mark.parametrize(
    ("changed", "left"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"top_p": 0.6}, {0, 1}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.0}, {0}),
        ({"min_p": 0.3}, {0, 1}),
        ({"min_p": 1.0}, {0}),
        # Renormalised over what top-k left, 0.5 of 0.8 is more than 0.6.
        ({"top_k": 2, "top_p": 0.6}, {0}),
        ({"top_p": 0.95, "min_p": 0.3}, {0, 1}),
        # Top-p looks at probabilities before temperature.
        ({"top_p": 0.6, "temperature": 10.0}, {0, 1}),
        ({"temperature": 1e-300}, {0}),
    ],
)
def test_each_cut_leaves_the_tokens_its_definition_names(
    changed: dict[str, float], left: set[int]
) -> None:
    params = SamplingParams(**{"temperature": 1.0, "top_k": 0, "top_p": 1, "min_p": 0, **changed})

    assert set(drawn(from_probabilities(0.5, 0.3, 0.1, 0.1), params)) == left


@pytest.mark.parametrize("top_k", [0, 4])
def test_tokens_come_as_often_as_their_probability_says(top_k: int) -> None:
    params = SamplingParams(temperature=1, top_k=top_k, top_p=1, min_p=0)
    counts = drawn(from_probabilities(0.5, 0.3, 0.15, 0.05, 1e-9), params, 4000)

    for token, share in enumerate((0.5, 0.3, 0.15, 0.05)):
        assert counts[token] / 4000 == pytest.approx(share, abs=0.03)


@given(rows, st.floats(0.01, 0.99), st.sampled_from([0.0, 0.02, 0.5]))
def test_top_p_over_the_whole_row_keeps_what_a_full_sort_would(
    values: NDArray[np.float32], top_p: float, min_p: float
) -> None:
    token = Sampler(
        SamplingParams(temperature=10, top_k=0, top_p=top_p, min_p=min_p, seed=3), ()
    ).sample(NumpyLogits(values[None]), 0)
    order = np.argsort(-values, kind="stable")
    probabilities = np.exp(values[order].astype(np.float64) - values.max())
    kept = int(np.searchsorted(np.cumsum(probabilities), (top_p + 1e-5) * probabilities.sum())) + 1

    assert token in order[:kept]
    assert probabilities[order.tolist().index(token)] >= min_p - 1e-5


def test_the_penalty_divides_positive_and_multiplies_negative_logits_of_recent_tokens() -> None:
    params = SamplingParams(temperature=1e-9, top_k=0, top_p=1, min_p=0, repeat_penalty=2)

    assert drawn(row(4, 3, -1), params, 3, prompt=(0,)) == {1: 3}
    assert drawn(row(-1, -1.5, -9), params, 3, prompt=(0,)) == {1: 3}


def test_a_penalty_below_one_can_raise_a_token_into_the_top_k() -> None:
    params = SamplingParams(temperature=1, top_k=1, repeat_penalty=0.5)

    assert drawn(row(4, 3, 1), params, 3, prompt=(1,)) == {1: 3}


def test_the_penalty_forgets_tokens_older_than_its_window() -> None:
    params = SamplingParams(temperature=1, top_k=1, repeat_penalty=2)

    assert drawn(row(4, 3, 1), params, 3, prompt=(0, *[2] * 64)) == {0: 3}
    assert drawn(row(4, 3, 1), params, 3, prompt=(0, *[2] * 63)) == {1: 3}


def test_the_penalty_counts_tokens_the_sampler_drew_itself() -> None:
    sampler = Sampler(SamplingParams(temperature=1, top_k=1, repeat_penalty=2), ())

    assert [sampler.sample(row(4, 3, 2.9), 0) for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("params", [OFF, SamplingParams(), SamplingParams(temperature=0)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_logit_that_is_not_finite_is_noticed(params: SamplingParams, bad: float) -> None:
    with pytest.raises(NotFiniteError):
        Sampler(params, ()).sample(row(1, 2, bad, 0), 0)


def test_tokens_masked_with_minus_infinity_are_never_drawn() -> None:
    assert set(drawn(row(-math.inf, 1, 1, -math.inf), OFF)) == {1, 2}


def mask_of(allowed: Iterable[int], size: int) -> NDArray[np.uint32]:
    words = np.zeros(-(-size // 32), dtype=np.uint32)
    for token in allowed:
        words[token // 32] |= np.uint32(1 << token % 32)
    return words


RULES = {
    "greedy": SamplingParams(temperature=0),
    "greedy after penalties": SamplingParams(
        temperature=0, repeat_penalty=1.5, dry_multiplier=2, dry_allowed_length=1
    ),
    "everything": OFF,
    "defaults": SamplingParams(seed=5),
    "every rule": SamplingParams(
        seed=6,
        top_k=20,
        typical_p=0.9,
        repeat_penalty=1.2,
        presence_penalty=0.5,
        dry_multiplier=1,
        xtc_probability=0.5,
        logit_bias=((3, 5.0), (2, -100.0)),
    ),
}


@pytest.mark.parametrize("params", RULES.values(), ids=RULES.keys())
@settings(max_examples=40)
@given(rows.filter(lambda values: values.size > 4), st.integers(0, 999), st.floats(0, 1))
def test_no_token_is_drawn_that_the_mask_forbids(
    params: SamplingParams, values: NDArray[np.float32], seed: int, share: float
) -> None:
    allowed = np.flatnonzero(np.random.default_rng(seed).random(values.size) <= share)
    allowed = np.union1d(allowed, [values.size - 1])
    mask = mask_of(allowed.tolist(), values.size)
    sampler = Sampler(params, (0, 1, 0))

    for _ in range(3):
        assert sampler.sample(NumpyLogits(values[None]), 0, mask) in allowed


@pytest.mark.parametrize("params", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_mask_does_what_logits_of_minus_infinity_would(
    params: SamplingParams, share: float
) -> None:
    random = np.random.default_rng(7)
    values = random.normal(0, 4, (40, 10_001)).astype(np.float32)
    bits = random.random(values.shape) < share
    bits[:, 17] = True
    one, other = Sampler(params, (1, 2, 1)), Sampler(params, (1, 2, 1))
    masked = NumpyLogits(np.where(bits, values, -np.inf).astype(np.float32))
    masks = [mask_of(np.flatnonzero(allowed).tolist(), 10_001) for allowed in bits]

    assert [one.sample(NumpyLogits(values), at, mask) for at, mask in enumerate(masks)] == [
        other.sample(masked, at) for at in range(40)
    ]


def test_tokens_past_the_end_of_a_mask_are_forbidden() -> None:
    values = np.zeros(10_000, dtype=np.float32)
    values[9_000:] = 50
    words = np.full(200, 2**32 - 1, dtype=np.uint32)

    for params in RULES.values():
        assert Sampler(params, ()).sample(NumpyLogits(values[None]), 0, words) < 6400


@pytest.mark.parametrize("params", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("size", [4, 9000])
def test_a_mask_that_leaves_nothing_is_told_apart_from_broken_logits(
    params: SamplingParams, size: int
) -> None:
    logits = NumpyLogits(np.zeros((1, size), dtype=np.float32))
    banned = replace(params, logit_bias=((1, -100.0), (3, -100.0)))
    with pytest.raises(NothingLeftError, match="grammar and logit_bias"):
        Sampler(params, ()).sample(logits, 0, mask_of((), size))
    with pytest.raises(NothingLeftError):
        Sampler(banned, ()).sample(logits, 0, mask_of((1, 3), size))
    with pytest.raises(NotFiniteError):
        Sampler(params, ()).sample(NumpyLogits(logits.numpy() - np.inf), 0, mask_of((1,), size))


def test_bans_of_the_whole_vocabulary_leave_nothing() -> None:
    for params in RULES.values():
        banned = replace(params, logit_bias=tuple((token, -100.0) for token in range(4)))
        with pytest.raises(NothingLeftError):
            Sampler(banned, ()).sample(row(1, 2, 3, 4), 0)


@pytest.mark.parametrize(("size", "temperature"), [(12, 0.6), (1500, 1.7)])
def test_draws_are_spread_as_the_probabilities_say(size: int, temperature: float) -> None:
    random = np.random.default_rng(size)
    values = random.normal(0, 1, size).astype(np.float32)
    logits = NumpyLogits(values[None])
    sampler = Sampler(replace(OFF, temperature=temperature, seed=11), ())
    draws = np.bincount([sampler.sample(logits, 0) for _ in range(20_000)], minlength=size)
    expected = np.exp(values.astype(np.float64) / temperature)
    expected *= 20_000 / expected.sum()
    # Bins of at least 20 expected draws, as the test asks for.
    order = np.argsort(expected)
    bins = np.searchsorted(np.arange(20, 20_001, 20), np.cumsum(expected[order]))
    seen = np.bincount(bins, draws[order])
    wanted = np.bincount(bins, expected[order])
    kept = wanted > 0
    square = float(((seen[kept] - wanted[kept]) ** 2 / wanted[kept]).sum())
    freedom = int(kept.sum()) - 1

    # A chi-square value with so many degrees of freedom lies within four deviations.
    assert abs(square - freedom) < 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("params", RULES.values(), ids=RULES.keys())
def test_a_seed_fixes_the_text_that_follows_from_what_was_drawn(params: SamplingParams) -> None:
    table = NumpyLogits(np.random.default_rng(3).normal(0, 2, (50, 50)).astype(np.float32))

    def text() -> list[int]:
        sampler, tokens = Sampler(replace(params, seed=2**64 - 1), (0,), [b"x"] * 50), [0]
        for _ in range(60):
            tokens.append(sampler.sample(table, tokens[-1]))
        return tokens

    assert text() == text()


@pytest.mark.parametrize(
    "changed",
    [
        {"xtc_probability": 0.5, "xtc_threshold": 0.5},
        {"repeat_penalty": 1.5},
        {"dry_multiplier": 1.0},
        {"logit_bias": ((0, -3.0),)},
        {"top_k": 5},
        {"typical_p": 0.99999},
        {"min_p": 0.2},
    ],
)
def test_every_rule_takes_one_number_of_the_stream_a_token(changed: dict[str, Any]) -> None:
    # Rules may do what they like in between: on rows of equals that no rule tells apart, two
    # streams that stand at the same number draw the same.
    random = np.random.default_rng(0)
    busy = random.normal(0, 2, (64, 30)).astype(np.float32)
    equal = NumpyLogits(np.zeros((1, 4096), dtype=np.float32))
    plain, ruled = Sampler(OFF, ()), Sampler(replace(OFF, **changed), ())
    ends = []
    for sampler in (plain, ruled):
        for at in range(64):
            sampler.sample(NumpyLogits(busy), at)
        ends.append(sampler.sample(equal, 0, mask_of(range(100, 104), 4096)))
    again = Sampler(OFF, ())
    for at in range(64):
        again.sample(NumpyLogits(busy), at)
    following = [again.sample(equal, 0, mask_of(range(100, 104), 4096))]

    assert following == ends[:1]
    assert ends[0] == ends[1]


def test_xtc_happens_as_often_as_it_should_and_takes_the_likeliest() -> None:
    params = replace(OFF, xtc_probability=0.3, xtc_threshold=0.2)
    counts = drawn(from_probabilities(0.7, 0.25, 0.05), params, 4000)

    assert counts[0] / 4000 == pytest.approx(0.7 * 0.7, abs=0.03)
    assert counts[1] / 4000 == pytest.approx(0.7 * 0.25 + 0.3 * 0.25 / 0.3, abs=0.03)


def test_the_rows_of_a_runner_are_never_written_to() -> None:
    values = np.random.default_rng(1).normal(0, 2, (1, 5000)).astype(np.float32)
    values.flags.writeable = False
    many = mask_of(range(0, 5000, 1), 5000)
    for params in RULES.values():
        for mask in (None, mask_of((3, 5), 5000), many):
            assert 0 <= Sampler(params, (0, 1, 0)).sample(NumpyLogits(values), 0, mask) < 5000
    Sampler(replace(OFF, logprobs=20), ()).logprob(NumpyLogits(values), 0, 1)


def test_logprobs_are_of_the_row_before_any_rule() -> None:
    params = replace(
        OFF, temperature=9.0, top_k=1, repeat_penalty=2, logit_bias=((2, -100.0),), logprobs=3
    )
    sampler = Sampler(params, (0,), (b"a", b"b", b"c"))
    logits = from_probabilities(0.5, 0.125, 0.25, 0.125)

    told = sampler.logprob(logits, 0, 1)

    assert (told.token, told.text) == (1, b"b")
    assert math.exp(told.logprob) == pytest.approx(0.125, rel=1e-5)
    assert [(token, text) for token, text, _ in told.top] == [(0, b"a"), (2, b"c"), (1, b"b")]
    assert [math.exp(each) for *_, each in told.top] == pytest.approx([0.5, 0.25, 0.125], rel=1e-5)


@pytest.mark.parametrize(("asked", "told"), [(None, 0), (0, 0), (1, 1), (20, 2)])
def test_as_many_alternatives_are_told_as_asked_for_and_possible(
    asked: int | None, told: int
) -> None:
    logits = row(2, -math.inf, 1, -math.inf)
    sampler = Sampler(replace(OFF, logprobs=asked), ())

    assert len(sampler.logprob(logits, 0, 2).top) == told
    assert sampler.logprob(logits, 0, 1).logprob == -math.inf


@given(rows, st.integers(-50, 50))
def test_logprobs_sum_to_one_and_know_no_constant(values: NDArray[np.float32], add: int) -> None:
    sampler = Sampler(OFF, ())
    one, moved = NumpyLogits(values[None]), NumpyLogits(values[None] + np.float32(add))
    tokens = range(min(50, values.size))
    each = [sampler.logprob(one, 0, token).logprob for token in tokens]
    exact = values.astype(np.float64) - np.logaddexp.reduce(values.astype(np.float64))

    assert each == pytest.approx(exact[: len(each)].tolist(), abs=1e-5)
    assert [sampler.logprob(moved, 0, token).logprob for token in tokens] == pytest.approx(
        each, abs=1e-5
    )


def test_equal_logits_of_many_are_cut_by_the_lower_id_at_any_k() -> None:
    values = np.zeros(49_152, dtype=np.float32)
    values[40_000] = 1
    for k in (1, 40, 1000, 30_000, 49_152):
        ids, largest = topk(values, k)
        assert ids.tolist() == [40_000, *[at for at in range(k) if at != 40_000][: k - 1]]
        assert largest[0] == 1
