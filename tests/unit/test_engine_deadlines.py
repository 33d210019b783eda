"""Completions while somebody types: a prompt that takes too long, a text that does, and one that
leaves its block."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrun.engine.indent import IndentMatcher
from localrun.engine.process.fields import request_fields, request_of
from localrun.engine.request import FinishReason
from localrun.engine.rows import NumpyLogits
from localrun.engine.runner import BatchItem
from localrun.errors import RequestError
from tests.engines import ask, outcome, running
from tests.mock_runner import MockRunner

PROMPT = "a prompt of thirty-two characters"[:32]


class Timed(MockRunner):
    """Each forward takes a second of the clock that it is."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def forward(self, batch: Sequence[BatchItem]) -> NumpyLogits:
        logits = super().forward(batch)
        self.now += 1.0
        return logits


def test_a_prompt_that_is_not_read_in_time_ends_without_a_text() -> None:
    runner = Timed("never said", max_tokens=8)
    with running(runner, clock=runner) as engine:
        text, last = outcome(engine.submit(ask("a", PROMPT, max_prefill_s=2.0)))

    assert text == ""
    assert last.finish is FinishReason.LENGTH
    assert last.timings is not None
    assert last.timings.generated_tokens == 0
    assert runner.now == 2.0


def test_what_was_read_of_it_is_cached_for_the_next_try() -> None:
    runner = Timed("said", max_tokens=8)
    with running(runner, clock=runner) as engine:
        outcome(engine.submit(ask("a", PROMPT, max_prefill_s=2.0)))
        text, last = outcome(engine.submit(ask("b", PROMPT, max_prefill_s=2.0)))

    assert text == "said"
    assert last.timings is not None
    assert last.timings.cached_tokens == 16


def test_a_prompt_that_is_read_in_time_is_answered() -> None:
    runner = Timed("said", max_tokens=8)
    with running(runner, clock=runner) as engine:
        text, last = outcome(engine.submit(ask("a", PROMPT, max_prefill_s=4.0)))

    assert (text, last.finish) == ("said", FinishReason.STOP)


def test_the_time_for_a_prompt_does_not_cut_its_text() -> None:
    runner = Timed("a long text\nof two lines", max_tokens=512)
    with running(runner, clock=runner) as engine:
        text, last = outcome(engine.submit(ask("a", PROMPT, max_prefill_s=1.0)))

    assert (text, last.finish) == ("a long text\nof two lines", FinishReason.STOP)


def test_a_text_that_takes_too_long_ends_once_it_has_a_line_break() -> None:
    runner = Timed("0123456789\nabcdef")
    with running(runner, clock=runner) as engine:
        text, last = outcome(engine.submit(ask("a", max_decode_s=3.0)))

    assert text == "0123456789\n"
    assert last.finish is FinishReason.LENGTH


def test_a_text_whose_first_line_came_in_time_ends_at_the_limit() -> None:
    runner = Timed("0\n23456789")
    with running(runner, clock=runner) as engine:
        text, last = outcome(engine.submit(ask("a", max_decode_s=5.0)))

    # The first token was the limit's beginning.
    assert text == "0\n2345"
    assert last.finish is FinishReason.LENGTH


def test_a_text_of_one_line_is_never_cut_by_time() -> None:
    runner = Timed("one line, however long it takes")
    with running(runner, clock=runner) as engine:
        text, last = outcome(engine.submit(ask("a", max_decode_s=1.0)))

    assert (text, last.finish) == ("one line, however long it takes", FinishReason.STOP)


# What a model says, how far its lines have to be indented, and what is told of it.
INDENTED = {
    "deeper is told": ("x:\n        y\n", 4, "x:\n        y\n"),
    "as deep is told": ("x\n    y", 4, "x\n    y"),
    "less ends it": ("x\n  y\n    z", 4, "x"),
    "none ends it": ("x\n    y\nz", 4, "x\n    y"),
    "an empty line ends it": ("x\n\n    y", 4, "x"),
    "tabs count": ("x\n\ty", 1, "x\n\ty"),
    "the first line may begin as it likes": ("x y", 8, "x y"),
    "the first line may be empty": ("\n    y", 4, "\n    y"),
    "blanks at the end are told": ("x\n  ", 4, "x\n  "),
    "other white space is no indentation": ("x\n\u00a0\u00a0y", 1, "x"),
}


@pytest.mark.parametrize(("said", "least", "told"), INDENTED.values(), ids=INDENTED.keys())
def test_a_text_ends_before_a_line_that_is_indented_by_less(
    said: str, least: int, told: str
) -> None:
    with running(MockRunner(said)) as engine:
        text, last = outcome(engine.submit(ask("a", min_indent=least)))

    assert text == told
    assert last.finish is (FinishReason.STOP if told == said else FinishReason.LENGTH)


@given(st.text("ab \t\n", max_size=40), st.integers(1, 4), st.data())
def test_a_text_cut_anywhere_is_indented_alike(text: str, least: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    whole, pieces = IndentMatcher(least), IndentMatcher(least)
    ends = [0, *cuts, len(text)]

    told = whole.push(text) + whole.flush()
    shown = [pieces.push(text[a:b]) for a, b in pairwise(ends)]

    assert "".join(shown) + pieces.flush() == told
    assert pieces.matched == whole.matched
    assert text.startswith(told)
    complete = told.split("\n")[1:] if whole.matched else told.split("\n")[1:-1]
    assert all(len(line) - len(line.lstrip(" \t")) >= least for line in complete)


def test_a_stop_string_wins_over_the_line_behind_it() -> None:
    with running(MockRunner("x;\ny")) as engine:
        text, last = outcome(engine.submit(ask("a", min_indent=4, stop=(";",))))

    assert (text, last.finish, last.stopped) == ("x", FinishReason.STOP, ";")


def test_a_least_indentation_below_zero_is_refused() -> None:
    with running(MockRunner("x")) as engine, pytest.raises(RequestError, match="min_indent"):
        engine.submit(ask("a", min_indent=-1))


def test_limits_reach_an_engine_in_another_process() -> None:
    asked = ask("a", max_prefill_s=0.5, max_decode_s=1.5, min_indent=4)

    assert request_of(request_fields(asked)) == asked
