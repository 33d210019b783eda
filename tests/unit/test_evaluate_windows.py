"""Windows of a text, and the runs over them, on a runner whose predictions are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from localrun.engine.runner import BatchItem, ModelRunner
from localrun.errors import EngineError, UsageError
from localrun.evaluate.divergence import compare, compare_with_saved
from localrun.evaluate.logits_file import LogitsWriter, open_logits
from localrun.evaluate.perplexity import perplexity
from localrun.evaluate.statistics import divergence_of, mean
from localrun.evaluate.windows import First, cut, require_same_tokens
from tests.mock_runner import BOS, VOCABULARY_SIZE, MockRunner, encode

TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 3


def tokens() -> list[int]:
    return [BOS, *encode(TEXT)]


def brute_force(n_ctx: int, count: int) -> list[float]:
    """``-ln p`` of every counted token of a hashed model, each from a whole window of its own."""
    found = []
    for at in range(count):
        window = tokens()[at * n_ctx : (at + 1) * n_ctx]
        window[0] = BOS
        rows = forward_all(window).astype(np.float64)
        for position in range(n_ctx // 2, n_ctx - 1):
            row = rows[position]
            found.append(float(np.log(np.exp(row).sum()) - row[window[position + 1]]))
    return found


def forward_all(window: list[int]) -> NDArray[np.float32]:
    runner = MockRunner(hashed=True)
    return runner.forward([BatchItem(runner.new_sequence(), window, "all")]).numpy()


def test_windows_follow_each_other_and_leave_out_the_rest() -> None:
    windows = cut(range(100), 32)

    assert windows.count == 3
    np.testing.assert_array_equal(windows.tokens(2), range(64, 96))
    assert cut(range(100), 32, 2).count == 2
    assert cut(range(100), 32, 9).count == 3


@pytest.mark.parametrize(
    ("n_ctx", "limit", "problem"),
    [
        (101, None, "the text has 100 tokens, one window takes 101"),
        (7, None, "--ctx 7"),
        (0, None, "--ctx 0"),
        (-512, None, "--ctx -512"),
        (32, 0, "--chunks 0"),
        (32, -1, "--chunks -1"),
    ],
)
def test_windows_that_cannot_be_are_refused(n_ctx: int, limit: int | None, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        cut(range(100), n_ctx, limit)


def test_the_perplexity_of_a_uniform_model_is_its_vocabulary() -> None:
    found = perplexity(MockRunner(), cut(tokens(), 32))

    assert found.perplexity.value == pytest.approx(VOCABULARY_SIZE)
    assert found.perplexity.stderr == pytest.approx(0, abs=1e-6)
    assert (found.windows, found.tokens, found.n_ctx) == (6, 6 * 15, 32)
    assert found.floor is None


@pytest.mark.parametrize("n_ctx", [8, 31, 32])
def test_perplexity_is_that_of_the_second_half_of_every_window(n_ctx: int) -> None:
    windows = cut(tokens(), n_ctx)
    expected = np.array(brute_force(n_ctx, windows.count))

    found = perplexity(MockRunner(hashed=True), windows)

    error = math.sqrt(expected.var() / (len(expected) - 1))
    assert found.nll.value == pytest.approx(expected.mean(), rel=1e-6)
    assert found.nll.stderr == pytest.approx(error, rel=1e-6)
    assert found.perplexity.value == pytest.approx(math.exp(expected.mean()), rel=1e-5)
    assert found.perplexity.stderr == pytest.approx(found.perplexity.value * error, rel=1e-6)


def test_each_window_begins_with_the_control_token_and_from_nothing() -> None:
    runner = MockRunner()

    perplexity(runner, cut(tokens(), 32, 3))

    beginnings = [fed[0] for fed in runner.fed][::2]
    assert beginnings == [BOS] * 3
    assert [len(fed) for fed in runner.fed] == [16, 16] * 3
    assert runner.in_use == 0
    # The text itself stays as it is: a target is never the control token put in its place.
    assert cut(tokens(), 32).tokens(1)[0] == tokens()[32]


@pytest.mark.parametrize("max_tokens", [1, 2, 5, 15, 16])
def test_a_runner_that_takes_few_tokens_at_once_gives_the_same(max_tokens: int) -> None:
    windows = cut(tokens(), 32, 2)
    whole = perplexity(MockRunner(hashed=True), windows)

    parts = perplexity(MockRunner(hashed=True, max_tokens=max_tokens), windows)

    assert parts == whole


def test_progress_is_told_after_every_window() -> None:
    told: list[tuple[int, int, float]] = []

    found = perplexity(
        MockRunner(hashed=True), cut(tokens(), 32), told=lambda *each: told.append(each)
    )

    assert [(done, whole) for done, whole, _ in told] == [(at, 6) for at in range(1, 7)]
    assert told[-1][2] == pytest.approx(found.nll.value)


def test_a_window_longer_than_the_context_is_refused() -> None:
    runner = MockRunner(n_ctx=16)

    with pytest.raises(UsageError, match="windows of 32 tokens do not fit"):
        perplexity(runner, cut(tokens(), 32))

    assert runner.count == 0


def test_numbers_that_are_none_name_the_window_and_free_its_sequence() -> None:
    runner = MockRunner(hashed=True, poisons=range(2, 1000))

    with pytest.raises(EngineError, match="window 2: a logit is nan"):
        perplexity(runner, cut(tokens(), 32))

    assert runner.in_use == 0


def test_a_forward_that_fails_frees_its_sequence() -> None:
    runner = MockRunner(fails=(1,))

    with pytest.raises(EngineError, match="told to fail"):
        perplexity(runner, cut(tokens(), 32))

    assert runner.in_use == 0


def test_a_saved_reference_and_a_loaded_one_give_the_same_divergence(tmp_path: Path) -> None:
    windows = cut(tokens(), 32)
    path = tmp_path / "reference.kld"
    with path.open("wb") as file:
        writer = LogitsWriter(file, path, windows)
        original = perplexity(MockRunner(hashed=True), windows, writer=writer)
        assert writer.whole
    loaded = compare(MockRunner(hashed=True), MockRunner(), windows)

    with open_logits(path) as file:
        saved = compare_with_saved(file, MockRunner(), file)

    assert saved.kld == loaded.kld
    assert saved.delta_p_spread == loaded.delta_p_spread
    assert saved.floor is None
    assert loaded.floor == original.floor
    assert original.floor is not None
    assert abs(original.floor.value) < 1e-5


def test_a_divergence_follows_its_definitions() -> None:
    """A uniform model against a hashed one: the divergence is ln V less the entropy."""
    windows = cut(tokens(), 32)
    entropies = []
    for at in range(windows.count):
        window = windows.tokens(at).tolist()
        window[0] = BOS
        rows = forward_all(window)[16:31].astype(np.float64)
        logs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        entropies += list(-(np.exp(logs) * logs).sum(axis=1))
    expected = math.log(VOCABULARY_SIZE) - np.array(entropies)

    found = compare(MockRunner(hashed=True), MockRunner(), windows)

    assert found.kld.value == pytest.approx(expected.mean(), abs=1e-4)
    assert found.kld.stderr == pytest.approx(
        math.sqrt(expected.var() / (len(expected) - 1)), rel=1e-3
    )
    assert found.kld_spread.maximum == pytest.approx(expected.max(), abs=5e-4)
    assert found.kld_spread.median == pytest.approx(np.median(expected), abs=5e-4)
    assert found.perplexity.value == pytest.approx(VOCABULARY_SIZE)
    assert found.log_ratio.value == pytest.approx(
        math.log(VOCABULARY_SIZE) - math.log(found.reference_perplexity.value)
    )
    assert found.tokens == 90


def test_a_model_against_itself_stays_on_its_floor() -> None:
    found = compare(MockRunner(hashed=True), MockRunner(hashed=True), cut(tokens(), 32))

    assert found.kld == found.floor
    assert found.same_top.value == 1
    assert found.correlation == pytest.approx(1)
    assert found.log_ratio.value == pytest.approx(0, abs=1e-4)


def test_the_first_windows_of_a_reference_can_be_compared_alone(tmp_path: Path) -> None:
    path = tmp_path / "reference.kld"
    with path.open("wb") as file:
        windows = cut(tokens(), 32)
        perplexity(MockRunner(hashed=True), windows, writer=LogitsWriter(file, path, windows))

    with open_logits(path) as file:
        found = compare_with_saved(file, MockRunner(), First(file, 2))

    assert found.kld == compare(MockRunner(hashed=True), MockRunner(), cut(tokens(), 32, 2)).kld
    assert found.windows == 2


def test_another_vocabulary_is_refused() -> None:
    other: ModelRunner = MockRunner(vocabulary_size=300)

    with pytest.raises(UsageError, match="predicts 300 tokens, the reference 262"):
        compare(MockRunner(), other, cut(tokens(), 32))


def test_a_text_that_gives_other_tokens_than_the_reference_had_is_refused() -> None:
    reference = cut(tokens(), 32)
    require_same_tokens(reference, tokens(), "base")
    other = tokens()
    other[70] += 1

    with pytest.raises(UsageError, match="base: token 70 of the text"):
        require_same_tokens(reference, other, "base")
    with pytest.raises(UsageError, match="token 100 of the text"):
        require_same_tokens(reference, tokens()[:100], "base")


def test_a_mean_of_one_value_has_no_error() -> None:
    assert mean(np.array([2.5])).stderr == 0
    assert mean(np.array([1.0, 3.0])).stderr == pytest.approx(1.0)


def test_nothing_compared_is_an_error_and_no_number() -> None:
    with pytest.raises(ValueError, match="concatenate"):
        divergence_of([], [], n_ctx=8, windows=0)
