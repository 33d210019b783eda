"""Knows no weights: what of a prompt is computed again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrun.engine.engine import Engine
from localrun.engine.prefix import PrefixCache
from localrun.engine.request import GenerationRequest, SamplingParams, Timings
from localrun.errors import EngineError
from tests.mock_runner import MockRunner, encode


def ask(engine: Engine, prompt: str, count: int = 4) -> tuple[str, Timings]:
    request = GenerationRequest(
        "a", tuple(encode(prompt)), SamplingParams(temperature=0), max_tokens=count
    )
    events = list(engine.submit(request))
    timings = events[-1].timings
    assert timings is not None
    return "".join(event.text for event in events), timings


def test_the_next_turn_prefills_only_what_is_new() -> None:
    runner = MockRunner("answer")
    engine = Engine(runner)
    ask(engine, "question", 7)
    runner.forwards.clear()
    _, timings = ask(engine, "questionanswer and more")
    engine.close()

    # All of the question and answer; the end token was drawn and never fed.
    assert timings.cached_tokens == len("questionanswer")
    assert runner.fed[0] == tuple(encode(" and more"))
    assert runner.truncations == []


def test_the_same_prompt_again_computes_its_last_token_only() -> None:
    runner = MockRunner("answer")
    engine = Engine(runner)
    first, _ = ask(engine, "question")
    runner.forwards.clear()
    second, timings = ask(engine, "question")
    engine.close()

    assert second == first
    assert timings.cached_tokens == len("question") - 1
    assert runner.fed[0] == (ord("n"),)


def test_a_prompt_that_is_a_prefix_of_what_is_held_cuts_it() -> None:
    runner = MockRunner("answer")
    engine = Engine(runner)
    ask(engine, "question")
    _, timings = ask(engine, "quest")
    engine.close()

    assert timings.cached_tokens == 4
    assert runner.truncations == [(4, 4)]


@pytest.mark.parametrize(
    ("keep", "cached"),
    [(lambda length: length // 2, 3), (lambda length: 0, 0)],
    ids=["half", "nothing"],
)
def test_what_the_runner_could_not_keep_is_prefilled_again(
    keep: Callable[[int], int], cached: int
) -> None:
    runner = MockRunner(hashed=True, keep=keep)
    engine = Engine(runner)
    ask(engine, "question")
    text, timings = ask(engine, "questing")
    engine.close()
    fresh = Engine(MockRunner(hashed=True))
    expected, _ = ask(fresh, "questing")
    fresh.close()

    assert timings.cached_tokens == cached
    assert text == expected


few = st.text(alphabet="ab", min_size=1, max_size=8)


@given(st.lists(few, min_size=1, max_size=5), st.integers(0, 9), st.integers(1, 5))
def test_answers_with_the_cache_equal_answers_without(
    prompts: list[str], drops: int, max_tokens: int
) -> None:
    warm_runner = MockRunner(
        hashed=True, max_tokens=max_tokens, keep=lambda length: max(0, length - drops)
    )
    warm = Engine(warm_runner)
    for prompt in prompts:
        text, timings = ask(warm, prompt)
        cold = Engine(MockRunner(hashed=True))
        expected, _ = ask(cold, prompt)
        cold.close()
        assert text == expected
        assert timings.cached_tokens < len(prompt)
    warm.close()
    assert warm_runner.violations == []


class Uncuttable(MockRunner):
    def truncate(self, sequence: object, length: int) -> int:
        raise EngineError("mock: cannot cut")


def test_a_runner_that_fails_to_cut_loses_one_request_and_no_sequence() -> None:
    engine = Engine(Uncuttable("answer"))
    ask(engine, "question")
    text, timings = ask(engine, "quest")
    again, _ = ask(engine, "quest")
    engine.close()

    assert (text, timings.cached_tokens) == ("", 0)
    assert again == "answ"


def test_the_timeline_that_ended_last_takes_the_place_of_the_one_before() -> None:
    runner = MockRunner(max_sequences=2)
    cache = PrefixCache(runner)
    first, second = cache.take([1]), cache.take([1])
    cache.park(first)
    cache.park(second)

    assert cache.take([1]) is second
    # The other one's place is free again.
    assert cache.take([1]).id not in (first.id, second.id)
