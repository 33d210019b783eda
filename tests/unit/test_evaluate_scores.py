"""The arithmetic of single predictions against its definition in 64 bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from localrun.evaluate import scores
from localrun.evaluate.scores import compare_rows, encode, record_type, surprise

VOCABULARY = 40


def some_logits(rows: int, seed: int, width: float = 3.0) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).normal(size=(rows, VOCABULARY)) * width
    return values.astype(np.float32)


def some_targets(rows: int) -> NDArray[np.int32]:
    return np.arange(rows, dtype=np.int32) * 7 % VOCABULARY


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    found: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return found


def test_surprise_is_minus_the_logarithm_of_the_targets_probability() -> None:
    logits, targets = some_logits(50, 1), some_targets(50)

    found = surprise(logits, targets)

    expected = -log_softmax(logits)[np.arange(50), targets]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_large_logits_overflow_nothing() -> None:
    logits = np.array([[20000.0, 19999.0], [-20000.0, -20001.0]], np.float32)

    found = surprise(logits, np.array([1, 0], np.int32))

    np.testing.assert_allclose(found, [1 + np.log1p(np.exp(-1)), np.log1p(np.exp(-1))], rtol=1e-6)


def test_a_record_is_scale_least_and_steps_as_llama_perplexity_packs_them() -> None:
    logits = np.array([[2.0, 0.0, -30.0]], np.float32)

    (record,) = encode(logits)

    normalizer = np.log(np.exp(0.0) + np.exp(-2.0) + np.exp(-32.0))
    assert record_type(3).itemsize == 8 + 2 * 4  # padded to an even count
    assert record["scale"] == np.float32(16) / np.float32(65535)
    assert record["least"] == pytest.approx(-16 - normalizer, abs=1e-6)
    assert list(record["steps"]) == [65535, round(14 * 65535 / 16), 0, 0]
    assert record.tobytes()[:4] == np.float32(record["scale"]).tobytes()


def test_equal_logits_have_a_scale_of_zero() -> None:
    (record,) = encode(np.full((1, 8), 5.0, np.float32))

    assert record["scale"] == 0
    assert record["least"] == pytest.approx(-np.log(8))
    assert not record["steps"].any()


@given(seed=st.integers(0, 10_000), width=st.floats(0.01, 30))
def test_a_record_is_off_by_half_a_step_at_most_and_ends_16_below_the_likeliest(
    seed: int, width: float
) -> None:
    logits = some_logits(3, seed, width)
    exact = log_softmax(logits)

    records = encode(logits)

    decoded = (
        records["least"][:, None].astype(np.float64)
        + records["scale"][:, None].astype(np.float64) * records["steps"]
    )
    clipped = np.maximum(exact, exact.max(axis=1, keepdims=True) - 16)
    np.testing.assert_allclose(decoded, clipped, atol=16 / 65535 / 2 + 1e-5)


def test_a_comparison_follows_its_definitions() -> None:
    reference, logits, targets = some_logits(60, 1), some_logits(60, 2), some_targets(60)
    p, q = log_softmax(reference), log_softmax(logits)
    rows = np.arange(60)

    found = compare_rows(encode(reference), logits, targets)

    np.testing.assert_allclose(found.nll, -q[rows, targets], rtol=1e-5)
    np.testing.assert_allclose(found.reference_nll, -p[rows, targets], atol=2e-4)
    np.testing.assert_allclose(found.kld, (np.exp(p) * (p - q)).sum(axis=1), atol=5e-4)
    np.testing.assert_allclose(
        found.delta_p, np.exp(q[rows, targets]) - np.exp(p[rows, targets]), atol=2e-4
    )
    np.testing.assert_array_equal(found.same_top, p.argmax(axis=1) == q.argmax(axis=1))


def test_a_model_compared_with_itself_differs_by_rounding_alone() -> None:
    logits = some_logits(60, 3)

    found = compare_rows(encode(logits), logits, some_targets(60))

    assert np.abs(found.kld).max() < 1e-4
    assert found.same_top.all()


def test_what_the_reference_holds_all_but_impossible_adds_nothing() -> None:
    reference = np.array([[0.0, -40.0, -40.0]], np.float32)
    logits = np.array([[0.0, -np.inf, -40.0]], np.float32)

    found = compare_rows(encode(reference), logits, np.array([0], np.int32))

    assert found.kld[0] == pytest.approx(0.0, abs=1e-6)


def test_blocks_give_what_one_pass_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, logits, targets = some_logits(11, 1), some_logits(11, 2), some_targets(11)
    whole = compare_rows(encode(reference), logits, targets)

    monkeypatch.setattr(scores, "_BLOCK", 3 * VOCABULARY)
    parts = compare_rows(encode(reference), logits, targets)

    np.testing.assert_array_equal(parts.kld, whole.kld)
    np.testing.assert_array_equal(parts.nll, whole.nll)
    np.testing.assert_array_equal(surprise(logits, targets).shape, (11,))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_logit_that_is_no_number_is_refused(bad: float) -> None:
    logits = some_logits(4, 1)
    fine = encode(logits)
    logits[2, 5] = bad

    for compute in (
        lambda: surprise(logits, some_targets(4)),
        lambda: encode(logits),
        lambda: compare_rows(fine, logits, some_targets(4)),
    ):
        with pytest.raises(FloatingPointError, match="a logit is"):
            compute()


def test_a_target_without_any_probability_is_refused() -> None:
    logits = np.array([[0.0, -np.inf]], np.float32)

    with pytest.raises(FloatingPointError, match="probability is inf"):
        surprise(logits, np.array([1], np.int32))
