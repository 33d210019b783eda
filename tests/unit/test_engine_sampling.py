"""Knows no runner: how tokens are drawn from rows of logits."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from localrun.engine.limits import check, check_sampling
from localrun.engine.request import GenerationRequest, SamplingParams
from localrun.engine.rows import NumpyLogits, topk
from localrun.engine.sampling import NotFiniteError, Sampler
from localrun.errors import ContextLengthError, RequestError

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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 10.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "1"),
        ("temperature", True),
        ("top_p", 1.01),
        ("top_p", -0.01),
        ("min_p", math.nan),
        ("min_p", 2),
        ("repeat_penalty", 0),
        ("repeat_penalty", -1),
        ("top_k", -1),
        ("top_k", 1.5),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 1.0),
    ],
)
def test_a_sampling_field_out_of_its_range_is_named(field: str, value: object) -> None:
    with pytest.raises(RequestError, match=rf"^{field} "):
        check_sampling(SamplingParams(**{field: value}))  # type: ignore[arg-type]  # bad on purpose


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": 1.5}),
        ("stop", {"stop": ("",)}),
        ("stop", {"stop": ("a" * 1025,)}),
        ("stop", {"stop": ("a",) * 65}),
        ("prompt", {"prompt": ()}),
        ("prompt", {"prompt": (1, -1)}),
        ("prompt", {"prompt": (1, 100)}),
        ("top_k", {"sampling": SamplingParams(top_k=-1)}),
    ],
)
def test_a_request_field_out_of_its_range_is_named(name: str, fields: dict[str, object]) -> None:
    request = GenerationRequest(**{"id": "a", "prompt": (1,), **fields})  # type: ignore[arg-type]  # bad on purpose

    with pytest.raises(RequestError, match=rf"^{name}\b"):
        check(request, n_ctx=8, vocabulary_size=100)


def test_a_prompt_that_leaves_no_room_for_one_token_is_refused_with_both_numbers() -> None:
    with pytest.raises(ContextLengthError, match="8 tokens, the context holds 8"):
        check(GenerationRequest("a", (1,) * 8), n_ctx=8, vocabulary_size=100)

    check(GenerationRequest("a", (1,) * 7), n_ctx=8, vocabulary_size=100)
