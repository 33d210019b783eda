"""Knows no weights: many requests at once on a mock runner, and who is served when."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localrun.engine.costs import LEAST_CHUNK, PAUSE_S, SHORT_S, STRETCH, StepCosts
from localrun.engine.engine import Engine
from localrun.engine.generation import Generation
from localrun.engine.limits import MAX_WAITING
from localrun.engine.queue import MAX_WAITING_OF_ONE
from localrun.engine.request import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    Timings,
    choices,
)
from localrun.errors import BusyError
from tests.engines import ask, outcome, running
from tests.mock_runner import MockRunner


@contextmanager
def held(runner: MockRunner, **options: Any) -> Iterator[tuple[Engine, Generation]]:
    """An engine in the middle of its first forward, which lets others be queued meanwhile."""
    runner.hold(0)
    with running(runner, **options) as engine:
        first = engine.submit(ask("first", "x", max_tokens=1))
        runner.entered.wait()
        yield engine, first


def timings(generation: Generation) -> Timings:
    last = outcome(generation)[1].timings
    assert last is not None
    return last


def single(request: GenerationRequest) -> str:
    with running(MockRunner(hashed=True)) as engine:
        return outcome(engine.submit(request))[0]


def test_requests_that_run_together_share_one_forward_a_token() -> None:
    runner = MockRunner("y" * 50, max_sequences=4)
    with held(runner) as (engine, first):
        generations = [engine.submit(ask(str(at), "p" * 3, max_tokens=9)) for at in range(3)]
        runner.release()
        texts = [outcome(each)[0] for each in (first, *generations)]

    assert texts == ["y", "y" * 9, "y" * 9, "y" * 9]
    decoding = [batch for batch in runner.forwards[2:] if all(len(i.tokens) == 1 for i in batch)]
    assert [len(batch) for batch in decoding[:6]] == [3] * 6


prompts = st.text(alphabet="abc", min_size=1, max_size=30)
samplings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 99),
    repeat_penalty=st.sampled_from([1.0, 1.3]),
)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(prompts, samplings, st.integers(1, 12)), min_size=1, max_size=7),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(4, 16),
    st.booleans(),
)
def test_texts_in_a_batch_equal_those_of_requests_alone(
    asked: list[tuple[str, SamplingParams, int]],
    seats: int,
    max_batch: int,
    max_tokens: int,
    can_fork: bool,
) -> None:
    requests = [
        ask(str(at), prompt, sampling=sampling, max_tokens=count)
        for at, (prompt, sampling, count) in enumerate(asked)
    ]
    runner = MockRunner(
        hashed=True,
        max_sequences=seats,
        max_batch=min(max_batch, seats),
        max_tokens=max_tokens,
        can_fork=can_fork,
    )
    with running(runner) as engine:
        texts = [outcome(each)[0] for each in [engine.submit(request) for request in requests]]

    assert texts == [single(request) for request in requests]
    for batch in runner.forwards:
        assert len({item.sequence for item in batch}) == len(batch) <= min(max_batch, seats)


def test_a_long_prompt_leaves_no_running_stream_out_of_a_step() -> None:
    runner = MockRunner("y" * 400, max_sequences=3)
    with held(runner) as (engine, _):
        streams = [engine.submit(ask(str(at), "p", max_tokens=300)) for at in range(2)]
        runner.hold(6)
        runner.release()
        runner.entered.clear()
        for each in streams:
            next(iter(each))
        long = engine.submit(ask("long", "q" * 2000, max_tokens=2))
        assert timings(long).prompt_tokens == 2000
        for each in streams:
            each.cancel()

    reading = [
        batch for batch in runner.forwards if any(len(item.tokens) >= LEAST_CHUNK for item in batch)
    ]
    beside = [batch for batch in reading if len(batch) == 3]
    assert len(beside) > 3
    assert all(sorted(len(item.tokens) for item in batch)[:2] == [1, 1] for batch in beside)


def measured(rows: int, step_s: float, token_s: float) -> StepCosts:
    costs = StepCosts()
    for _ in range(5):
        costs.observe(rows, 0, step_s)
        costs.observe(rows, 64, step_s + 64 * token_s)
    return costs


def test_a_chunk_beside_running_streams_takes_about_the_time_of_their_step() -> None:
    costs = measured(7, 0.040, 0.0004)

    assert costs.chunk(0, 512) == 512
    assert costs.chunk(7, 512) == 96  # 40 ms at 0.4 ms a token, in whole multiples
    assert costs.chunk(7, 48) == 48
    assert costs.chunk(8, 512) >= 96  # a larger step, so more of a prompt beside it
    assert STRETCH == 2.0


def test_a_prompt_that_is_dear_still_gets_on() -> None:
    assert measured(1, 0.001, 1.0).chunk(1, 512) == LEAST_CHUNK


def test_a_short_prompt_may_make_a_pause_and_a_long_one_may_not() -> None:
    costs = measured(2, 0.020, 0.001)
    short, long = int(SHORT_S / 0.001) - 1, int(SHORT_S / 0.001) + 9

    assert costs.chunk(2, 4096, [long]) == 16
    assert costs.chunk(2, 4096, [long, short]) == pytest.approx(PAUSE_S / 0.001, abs=8)


def test_what_a_prompt_costs_is_known_before_any_stream_ran_alone() -> None:
    costs = StepCosts()
    costs.observe(0, 100, 0.3)
    assert costs.chunk(4, 512) == LEAST_CHUNK  # four rows at 3 ms, so four tokens, at least eight
    assert costs.chunk(1, 512, [100]) > 64


@pytest.mark.parametrize("length", [3, 4, 5, 8, 9, 10, 13, 40, 41])
def test_no_piece_of_a_prompt_is_smaller_than_the_runner_computes_alike(length: int) -> None:
    runner = MockRunner(hashed=True, max_sequences=2, max_tokens=4, least_chunk=2)
    with running(runner) as engine:
        for prompt in ("p" * length, "p" * length, "p" * (length - 1) + "q"):
            request = ask(prompt, prompt, max_tokens=1)
            assert outcome(engine.submit(request))[0] == single(request)

    assert min(len(item.tokens) for batch in runner.forwards for item in batch) >= 2


def test_a_runner_of_one_sequence_a_forward_serves_all_in_turns() -> None:
    runner = MockRunner("y" * 99, max_sequences=4, max_batch=1)
    with held(runner) as (engine, _):
        generations = [engine.submit(ask(str(at), "p", max_tokens=20)) for at in range(3)]
        runner.release()
        for each in generations:
            assert outcome(each)[0] == "y" * 20

    turns = [batch[0].sequence for batch in runner.forwards[1:]]
    assert all(len(batch) == 1 for batch in runner.forwards)
    middle = turns[3:50]
    for at in range(len(middle) - 3):
        assert len(set(middle[at : at + 3])) == 3


def test_a_prompt_is_computed_once_for_all_its_choices() -> None:
    prompt = "a long question " * 20
    runner = MockRunner(hashed=True, max_sequences=4)
    request = ask("c", prompt, sampling=SamplingParams(seed=5), max_tokens=6)
    with running(runner) as engine:
        generations = [engine.submit(each) for each in choices(request, 4)]
        texts = [outcome(each)[0] for each in generations]

    fed = sum(len(item.tokens) for batch in runner.forwards for item in batch)
    assert fed < len(prompt) + 4 * 8
    assert len(set(texts)) == 4
    assert texts == [single(each) for each in choices(request, 4)]


def test_a_step_that_fails_for_one_harms_no_other() -> None:
    runner = MockRunner(hashed=True, max_sequences=4, cursed=ord("!"))
    with held(runner) as (engine, _):
        good = [ask(str(at), "abc" * at, max_tokens=8) for at in range(1, 4)]
        bad = ask("bad", "curse!", max_tokens=8)
        generations = [engine.submit(each) for each in (good[0], bad, *good[1:])]
        runner.release()
        ends = [outcome(each) for each in generations]

    assert ends[1][1].finish is FinishReason.ERROR
    assert "cursed" in str(ends[1][1].error)
    assert [ends[at][0] for at in (0, 2, 3)] == [single(each) for each in good]


def test_not_finite_logits_end_the_one_they_belong_to() -> None:
    runner = MockRunner("y" * 30, max_sequences=3, poisoned=ord("!"))
    with held(runner) as (engine, _):
        good, bad = engine.submit(ask("g", "ab", max_tokens=5)), engine.submit(ask("b", "c!"))
        runner.release()
        assert outcome(good)[0] == "yyyyy"
        assert str(outcome(bad)[1].error) == "the model's logits are not finite"


def test_a_cancelled_stream_leaves_and_the_others_of_its_step_go_on() -> None:
    runner = MockRunner("y" * 99, max_sequences=3)
    with held(runner) as (engine, _):
        one, other = (engine.submit(ask(name, "p", max_tokens=30)) for name in "ab")
        runner.hold(9)
        runner.let_go()
        runner.entered.wait()
        assert len(runner.forwards[-1]) == 2
        one.cancel()
        runner.release()
        assert outcome(other)[0] == "y" * 30
        text, last = outcome(one)
        assert last.finish is FinishReason.CANCELLED
        # The step that ran is not wasted for the other: it is not cut short for one token.
        assert runner.aborts == 0
        assert len(text) < 10


def test_a_cancel_in_a_large_prefill_cuts_the_step_short() -> None:
    runner = MockRunner("y" * 99, max_sequences=3)
    with held(runner) as (engine, _):
        stream = engine.submit(ask("s", "p", max_tokens=5))
        long = engine.submit(ask("l", "q" * 400))
        runner.hold(1)
        runner.let_go()
        runner.entered.wait()
        assert sorted(len(item.tokens) for item in runner.forwards[1]) == [1, 400]
        long.cancel()
        # The forward is still held, and nothing but the abort lets it go.
        assert outcome(long)[1].finish is FinishReason.CANCELLED
        assert outcome(stream)[0] == "yyyyy"
    assert runner.aborts == 1


def test_a_cache_too_small_for_all_makes_the_youngest_wait_and_go_on_later() -> None:
    requests = [ask(str(at), "ab"[at % 2] * 20, max_tokens=60) for at in range(4)]
    runner = MockRunner(hashed=True, n_ctx=100, max_sequences=4, n_cells=170)
    with running(runner) as engine:
        generations = [engine.submit(each) for each in requests]
        texts = [outcome(each)[0] for each in generations]

    assert texts == [single(each) for each in requests]
    assert runner.most_cells <= 170


def test_an_interactive_request_is_next_and_a_background_one_last() -> None:
    runner = MockRunner("y" * 9)
    with held(runner) as (engine, _):
        order: list[str] = []
        kinds = ("background", "normal", "interactive")
        generations = [
            engine.submit(ask(kind, kind, priority=kind, max_tokens=2), on_ready=None)
            for kind in kinds
        ]
        runner.release()
        for each in generations:
            outcome(each)
    for batch in runner.forwards:
        text = bytes(batch[0].tokens).decode()
        if text in kinds:
            order.append(text)
    assert order == ["interactive", "normal", "background"]


def test_a_client_that_floods_keeps_a_place_for_others_and_they_take_turns() -> None:
    runner = MockRunner("y" * 9, max_sequences=1)
    with held(runner) as (engine, _):
        accepted, refused = 0, 0
        flood = []
        for at in range(90):
            try:
                flood.append(engine.submit(ask(f"f{at}", f"f{at:02}", client="h", max_tokens=1)))
                accepted += 1
            except BusyError:
                refused += 1
        honest = [
            engine.submit(ask(f"h{at}", f"h{at:02}", client="g", max_tokens=1)) for at in range(10)
        ]
        runner.release()
        for each in (*flood, *honest):
            assert outcome(each)[1].finish is FinishReason.LENGTH

    assert (accepted, refused) == (MAX_WAITING_OF_ONE, 90 - MAX_WAITING_OF_ONE)
    order = [bytes(batch[0].tokens).decode() for batch in runner.forwards[1:]]
    # A prompt shares its first letter with the one before: what is fed may lack it.
    turns = ["h" if each.client == "g" else "f" for each in served(order, flood, honest)]
    # Alone the last of ten would be served tenth; beside the flood every second turn is theirs.
    assert max(at for at, turn in enumerate(turns) if turn == "h") <= 2 * 10
    mine = [each.id for each in served(order, flood, honest) if each.client == "g"]
    assert mine == [f"h{at}" for at in range(10)]


def served(
    order: list[str], flood: list[Generation], honest: list[Generation]
) -> list[GenerationRequest]:
    """The requests in the order in which their last token was fed."""
    requests = [each.request for each in (*flood, *honest)]
    by_prompt = {bytes(each.prompt).decode(): each for each in requests}
    found = []
    held = ""
    for fed in order:
        held = held[: 3 - len(fed)] + fed
        if held in by_prompt:
            found.append(by_prompt[held])
    return found


def test_a_full_queue_refuses_whoever_comes() -> None:
    runner = MockRunner("y")
    with held(runner) as (engine, _):
        for at in range(MAX_WAITING):
            engine.submit(ask(str(at), client=str(at % 3)))
        with pytest.raises(BusyError, match=f"{MAX_WAITING} requests"):
            engine.submit(ask("one more", client="new"))
        runner.release()


def test_requests_from_many_threads_are_all_answered() -> None:
    runner = MockRunner(hashed=True, max_sequences=4)
    texts: dict[str, str] = {}
    with running(runner) as engine:

        def client(name: str) -> None:
            for at in range(5):
                request = ask(f"{name}{at}", f"{name} asks {at}", max_tokens=5, client=name)
                texts[request.id] = outcome(engine.submit(request))[0]

        threads = [threading.Thread(target=client, args=(name,)) for name in "abcdef"]
        for each in threads:
            each.start()
        for each in threads:
            each.join()

    assert len(texts) == 30
    for name in "af":
        for at in (0, 4):
            request = ask(f"{name}{at}", f"{name} asks {at}", max_tokens=5)
            assert texts[request.id] == single(request)


def test_nothing_is_left_in_the_runner_when_all_have_ended() -> None:
    runner = MockRunner("y" * 20, max_sequences=4)
    with running(runner) as engine:
        generations = [engine.submit(ask(str(at), "p" * at, max_tokens=9)) for at in range(1, 12)]
        for each in generations[::2]:
            each.cancel()
        ends = Counter(outcome(each)[1].finish for each in generations)
    assert set(ends) <= {FinishReason.CANCELLED, FinishReason.LENGTH}
    # What is parked for a next turn holds no more than the seats there are.
    assert len(runner.held) <= 4
