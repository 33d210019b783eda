"""Knows no weights: one engine on a mock runner, from submit to the last event."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrun.engine.engine import Engine
from localrun.engine.generation import MAX_EVENTS, Generation
from localrun.engine.limits import MAX_WAITING
from localrun.engine.request import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    Timings,
    TokenEvent,
)
from localrun.engine.rows import NumpyLogits
from localrun.engine.runner import ForwardAborted, RunnerStats, Vocabulary
from localrun.engine.threads import ThreadRange
from localrun.errors import BusyError, ContextLengthError, EngineError, RequestError
from tests import engines
from tests.mock_runner import EOS, MockRunner, echo, encode

GREEDY = SamplingParams(temperature=0)
LONG = 10.0  # seconds no test should ever wait


def ask(prompt: str | tuple[int, ...] = "hi", **fields: Any) -> GenerationRequest:
    tokens = tuple(encode(prompt)) if isinstance(prompt, str) else prompt
    return GenerationRequest(**{"id": "a", "prompt": tokens, "sampling": GREEDY, **fields})


@contextmanager
def running(runner: MockRunner, **options: Any) -> Iterator[Engine]:
    """An engine that is closed at the end, with no thread left and no call from a wrong one."""
    before = threading.active_count()
    with engines.running(runner, **options) as engine:
        yield engine
    assert threading.active_count() == before


def text_of(events: list[TokenEvent]) -> str:
    return "".join(event.text for event in events)


def timings_of(events: list[TokenEvent]) -> Timings:
    """The last event's; holds the contract that there is exactly one."""
    assert [event.finish is not None for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1].timings is not None
    return events[-1].timings


def test_a_stream_is_progress_then_text_then_one_last_event() -> None:
    with running(MockRunner("ok")) as engine:
        events = list(engine.submit(ask("hello")))

    assert events[0] == TokenEvent("a", prefilled=5)
    assert events[1:3] == [
        TokenEvent("a", "o", (ord("o"),)),
        TokenEvent("a", "k", (ord("k"),)),
    ]
    assert events[3].finish is FinishReason.STOP
    assert events[3].tokens == (EOS,)
    assert len(events) == 4


def test_an_ended_stream_stays_ended() -> None:
    with running(MockRunner("ok")) as engine:
        generation = engine.submit(ask())
        list(generation)

        assert list(generation) == []
        assert generation.poll() == []


def test_max_tokens_end_with_length_and_the_exact_count() -> None:
    with running(MockRunner("a long answer")) as engine:
        events = list(engine.submit(ask(max_tokens=6)))

    assert text_of(events) == "a long"
    assert events[-1].finish is FinishReason.LENGTH
    assert timings_of(events).generated_tokens == 6


def test_a_full_context_ends_with_length() -> None:
    with running(MockRunner("x" * 99, n_ctx=16)) as engine:
        events = list(engine.submit(ask("p" * 10)))

    assert text_of(events) == "x" * 6
    assert events[-1].finish is FinishReason.LENGTH


def test_a_prompt_one_token_short_of_the_context_gets_one_token() -> None:
    with running(MockRunner("xyz", n_ctx=16)) as engine:
        assert text_of(list(engine.submit(ask("p" * 15)))) == "x"
        with pytest.raises(ContextLengthError):
            engine.submit(ask("p" * 16))


def test_an_empty_prompt_is_refused_at_submit() -> None:
    with running(MockRunner("ok")) as engine, pytest.raises(RequestError, match="prompt"):
        engine.submit(ask(""))


def test_ignore_end_generates_past_end_tokens() -> None:
    with running(MockRunner("ok")) as engine:
        timings = timings_of(list(engine.submit(ask(max_tokens=10, ignore_end=True))))

    assert timings.generated_tokens == 10


@given(
    st.text(alphabet="ab🦙", max_size=12),
    st.lists(st.text(alphabet="ab🦙", min_size=1, max_size=3), max_size=3),
)
def test_text_is_the_answer_cut_at_its_stop_and_no_token_is_lost(
    answer: str, stops: list[str]
) -> None:
    with running(MockRunner(answer)) as engine:
        events = list(engine.submit(ask(stop=tuple(stops))))
    ends = [answer.find(stop) + len(stop) for stop in stops if stop in answer]
    cut = min(ends, default=len(answer))
    tokens = [token for event in events for token in event.tokens]

    assert tokens == (encode(answer[:cut]) if ends else [*encode(answer), EOS])
    assert answer[:cut].startswith(text_of(events))
    assert events[-1].finish is FinishReason.STOP
    if ends:
        longest = max(len(stop) for stop in stops if answer[:cut].endswith(stop))
        assert text_of(events) == answer[: cut - longest]
    else:
        assert text_of(events) == answer


def test_what_began_a_stop_or_a_code_point_is_sent_at_the_end() -> None:
    with running(MockRunner("a <🦙")) as engine:
        held = list(engine.submit(ask(stop=("<end>",), max_tokens=3)))
        cut = list(engine.submit(ask(max_tokens=5)))

    assert text_of(held) == "a <"
    assert text_of(cut) == "a <\N{REPLACEMENT CHARACTER}"


def test_requests_are_served_in_the_order_they_came() -> None:
    runner = MockRunner(echo, holds=(0,))
    with running(runner) as engine:
        generations = [engine.submit(ask(f"prompt {n}", id=str(n))) for n in range(5)]
        runner.release()
        streams = [list(generation) for generation in generations]

    assert [text_of(events) for events in streams] == [f"prompt {n}" for n in range(5)]
    assert {event.id for event in streams[3]} == {"3"}


def test_a_full_queue_is_busy_and_takes_requests_again_later() -> None:
    runner = MockRunner("ok", holds=(0,))
    with running(runner) as engine:
        first = engine.submit(ask())
        assert runner.entered.wait(LONG)
        waiting = [engine.submit(ask(client=str(at % 2))) for at in range(MAX_WAITING)]
        with pytest.raises(BusyError):
            engine.submit(ask())
        runner.release()

        assert all(text_of(list(one)) == "ok" for one in [first, *waiting])
        assert text_of(list(engine.submit(ask()))) == "ok"


def test_a_long_prompt_is_prefilled_in_chunks_with_progress() -> None:
    runner = MockRunner("ok", max_tokens=4)
    with running(runner) as engine:
        events = list(engine.submit(ask("0123456789", max_tokens=1)))

    assert [event.prefilled for event in events[:3]] == [4, 8, 10]
    assert [len(tokens) for tokens in runner.fed] == [4, 4, 2]
    assert [batch[0].logits for batch in runner.forwards] == ["none", "none", "last"]


def test_cancel_ends_a_running_prefill_and_the_engine_goes_on() -> None:
    runner = MockRunner("ok", max_tokens=4, holds=(1,))
    with running(runner) as engine:
        generation = engine.submit(ask("0123456789"))
        assert runner.entered.wait(LONG)
        generation.cancel()
        events = list(generation)

        assert events[-1].finish is FinishReason.CANCELLED
        assert timings_of(events).generated_tokens == 0
        assert runner.aborts == 1
        # The four tokens of the chunk before the abort are still there, those of it are not.
        again = list(engine.submit(ask("0123456789")))
    assert timings_of(again).cached_tokens == 4
    assert text_of(again) == "ok"


def test_cancel_ends_a_running_decode_step_and_sends_what_was_held() -> None:
    runner = MockRunner("ab<c", holds=(3,))
    with running(runner) as engine:
        generation = engine.submit(ask(stop=("<end>",)))
        assert runner.entered.wait(LONG)
        generation.cancel()
        generation.cancel()
        events = list(generation)
        generation.cancel()

    assert text_of(events) == "ab<"
    assert events[-1].finish is FinishReason.CANCELLED
    assert timings_of(events).generated_tokens == 3


def test_a_waiting_request_is_cancelled_at_once() -> None:
    runner = MockRunner("ok", holds=(0,))
    with running(runner) as engine:
        first = engine.submit(ask())
        assert runner.entered.wait(LONG)
        waiting = engine.submit(ask())
        waiting.cancel()
        events = list(waiting)  # while the first one's forward is still held
        runner.release()

        assert events == [events[-1]]
        assert events[-1].finish is FinishReason.CANCELLED
        timings = timings_of(events)
        assert timings.queued_s > 0
        assert timings == Timings(2, 0, 0, 0.0, 0.0, queued_s=timings.queued_s)
        assert text_of(list(first)) == "ok"
        assert len(runner.forwards) == 3


def test_an_abort_nobody_waits_for_costs_one_step_and_no_token() -> None:
    runner = MockRunner("ok", holds=(1,))
    with running(runner) as engine:
        generation = engine.submit(ask())
        assert runner.entered.wait(LONG)
        runner.abort()

        assert text_of(list(generation)) == "ok"


@pytest.mark.parametrize("step", [1, 3, 5], ids=["prefill", "first token", "later"])
def test_a_state_lost_to_an_abort_is_computed_again(step: int) -> None:
    with running(MockRunner(hashed=True, max_tokens=4)) as engine:
        expected = text_of(list(engine.submit(ask("0123456789", max_tokens=6))))
    runner = MockRunner(hashed=True, max_tokens=4, forgetful=True, holds=(step,))
    with running(runner) as engine:
        generation = engine.submit(ask("0123456789", max_tokens=6))
        assert runner.entered.wait(LONG)
        runner.abort()
        events = list(generation)

    assert text_of(events) == expected
    assert timings_of(events).generated_tokens == 6


def test_a_state_lost_to_a_cancel_is_not_taken_for_a_cached_one() -> None:
    runner = MockRunner("ok", max_tokens=4, forgetful=True, holds=(1,))
    with running(runner) as engine:
        generation = engine.submit(ask("0123456789"))
        assert runner.entered.wait(LONG)
        generation.cancel()
        list(generation)
        again = list(engine.submit(ask("0123456789")))

    assert timings_of(again).cached_tokens == 0
    assert text_of(again) == "ok"


def test_a_runner_that_aborts_for_ever_ends_the_request_with_an_error() -> None:
    with running(Aborting("ok")) as engine:
        events = list(engine.submit(ask()))

    assert events[-1].finish is FinishReason.ERROR
    assert "nobody asked" in str(events[-1].error)


@pytest.mark.parametrize(
    ("broken", "message"),
    [({"fails": (1,)}, "told to fail"), ({"poisons": (1,)}, "not finite")],
    ids=["error", "nan"],
)
def test_a_step_that_fails_ends_its_request_and_the_next_one_works(
    broken: dict[str, Any], message: str
) -> None:
    with running(MockRunner("answer", **broken)) as engine:
        events = list(engine.submit(ask()))
        again = list(engine.submit(ask()))

    assert text_of(events) == "a"
    assert events[-1].finish is FinishReason.ERROR
    assert message in str(events[-1].error)
    assert timings_of(events).generated_tokens == 1
    assert text_of(again) == "answer"
    # Nobody knows what the failed step left in its cache.
    assert timings_of(again).cached_tokens == 0


def test_close_during_a_forward_ends_every_generation_once() -> None:
    runner = MockRunner("ok", holds=(1,))
    before = threading.active_count()
    engine = Engine(runner)
    generations = [engine.submit(ask(id=str(n))) for n in range(3)]
    assert runner.entered.wait(LONG)
    engine.close()
    engine.close()

    for generation in generations:
        events = list(generation)
        timings_of(events)
        assert events[-1].finish is FinishReason.CANCELLED
    assert runner.closed
    assert threading.active_count() == before


def test_a_closed_engine_refuses_requests_and_texts() -> None:
    runner = MockRunner("ok")
    engine = Engine(runner)
    engine.close()

    with pytest.raises(EngineError, match="closed"):
        engine.submit(ask())
    with pytest.raises(EngineError, match="closed"):
        engine.tokenize("text")


class Defective(MockRunner):
    def free(self, sequence: Any) -> None:
        raise ZeroDivisionError


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_in_a_runner_ends_all_generations_and_the_engine() -> None:
    runner = Defective("ok", holds=(0,))
    engine = Engine(runner)
    engine.submit(ask())
    assert runner.entered.wait(LONG)
    first, second = engine.submit(ask("no prefix")), engine.submit(ask())
    runner.release()

    for generation in (first, second):
        events = list(generation)
        timings_of(events)
        assert events[-1].finish is FinishReason.ERROR
        assert str(events[-1].error) == "the engine ended unexpectedly"
    engine.close()
    assert runner.closed
    with pytest.raises(EngineError, match="unexpectedly"):
        engine.submit(ask())


class Aborting(MockRunner):
    def forward(self, batch: Any) -> NumpyLogits:
        raise ForwardAborted


class Speechless(MockRunner):
    def vocabulary(self) -> Vocabulary:
        raise EngineError("no vocabulary")


def test_a_runner_that_cannot_tell_its_vocabulary_is_closed() -> None:
    before = threading.active_count()
    runner = Speechless()
    with pytest.raises(EngineError, match="no vocabulary"):
        Engine(runner)

    assert runner.closed
    assert threading.active_count() == before


def test_an_engine_tells_of_its_model() -> None:
    with running(MockRunner("ok", n_ctx=99)) as engine:
        assert engine.n_ctx == 99
        assert engine.vocabulary.eos == EOS
        assert engine.tokenize("<|user|>a") == [258, 97]
        assert engine.tokenize("a", add_special=True, parse_special=False) == [256, 97]
        list(engine.submit(ask("12345", max_tokens=3)))
        assert engine.stats() == RunnerStats({"ram": 0}, {"ram": 0}, tokens=7)


def ticking() -> Callable[[], float]:
    """A clock that moves one second with every look."""
    now = iter(range(1_000_000))
    return lambda: float(next(now))


def test_timings_are_from_begin_to_first_token_and_from_first_to_last() -> None:
    with running(MockRunner("abcde"), clock=ticking()) as engine:
        timings = timings_of(list(engine.submit(ask("12345", max_tokens=4))))

    # Looks at the clock: submit, begin, then in each step before and after the forward, after the
    # draw, and at its end.
    assert timings == Timings(5, 0, 4, prefill_s=3.0, decode_s=12.0, queued_s=1.0)


def test_threads_are_set_only_when_they_change() -> None:
    runner = MockRunner("xy")
    with running(runner, threads=ThreadRange(2, 4), clock=lambda: 0.0) as engine:
        list(engine.submit(ask()))

    assert runner.threads == [4, 2]


def test_a_runner_without_a_range_of_threads_is_left_alone() -> None:
    runner = MockRunner("ok")
    with running(runner) as engine:
        list(engine.submit(ask()))

    assert runner.threads == []


def test_a_slow_reader_gets_all_text_in_few_events_and_does_not_hold_the_engine() -> None:
    answer = "0123456789" * 100
    with running(MockRunner(answer)) as engine:
        slow = engine.submit(ask())
        list(engine.submit(ask("after")))  # served after the first has been generated whole
        events = list(slow)

    assert len(events) <= MAX_EVENTS + 2
    assert text_of(events) == answer
    assert [token for event in events for token in event.tokens] == [*encode(answer), EOS]
    assert timings_of(events).generated_tokens == 1001


def test_joined_progress_is_the_latest() -> None:
    generation = Generation(ask(), lambda: None)
    for done in range(1, 200):
        generation.put(TokenEvent("a", prefilled=done))
    generation.put(TokenEvent("a", "x", (1,)))
    generation.put(TokenEvent("a", "y", (2,)))
    generation.put(TokenEvent("a", finish=FinishReason.STOP))
    generation.put(TokenEvent("a", "never"))

    assert list(generation)[MAX_EVENTS:] == [
        TokenEvent("a", prefilled=199),
        TokenEvent("a", "xy", (1, 2)),
        TokenEvent("a", finish=FinishReason.STOP),
    ]


def test_on_ready_is_called_when_events_wait_after_none_did_and_for_the_last() -> None:
    calls: list[int] = []
    generation = Generation(ask(), lambda: None, lambda: calls.append(1))
    generation.put(TokenEvent("a", "x"))
    generation.put(TokenEvent("a", "y"))
    assert len(calls) == 1
    generation.poll()
    generation.put(TokenEvent("a", "z"))
    assert len(calls) == 2
    generation.put(TokenEvent("a", finish=FinishReason.STOP))
    assert len(calls) == 3


def test_an_ended_generation_is_not_kept_by_the_engine() -> None:
    with running(MockRunner("ok")) as engine:
        generation = engine.submit(ask())
        list(generation)
        list(engine.submit(ask("next")))
        gone = weakref.ref(generation)
        del generation
        gc.collect()

        assert gone() is None


class SaysControlTokens(MockRunner):
    """Parentheses have the names of control tokens."""

    def vocabulary(self) -> Vocabulary:
        return replace(super().vocabulary(), names={ord("("): "<|open|>", ord(")"): "<|shut|>"})


@pytest.mark.parametrize(
    ("marks", "text"),
    [
        ((), "(a)"),
        (("<|open|>thought",), "<|open|>a)"),
        (("<|open|>", "<|shut|>"), "<|open|>a<|shut|>"),
    ],
)
def test_control_tokens_are_text_only_where_a_mark_names_them(
    marks: tuple[str, ...], text: str
) -> None:
    with running(SaysControlTokens("(a)")) as engine:
        assert text_of(list(engine.submit(ask(marks=marks)))) == text
