"""Nobody loses a stream, a turn or a place to what another client does."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localrun.engine.generation import Generation
from localrun.engine.grammar import compiler as grammar_module
from localrun.engine.queue import MAX_WAITING_OF_ONE, MOST_OVERTAKEN, Queue
from localrun.engine.request import (
    EmbeddingRequest,
    FinishReason,
    Grammar,
)
from localrun.engine.runner import Vocabulary
from localrun.engine.sequence import Sequence as Waiting
from localrun.errors import BusyError, EngineError
from tests.engines import ask, outcome, running
from tests.mock_runner import MockRunner, encode


def test_a_stream_outlives_any_number_of_prompts_cancelled_beside_it() -> None:
    runner = MockRunner("y" * 9, max_sequences=8, max_tokens=512, holds=range(8))
    with running(runner) as engine:
        first = engine.submit(ask("first", "x", max_tokens=1))
        runner.entered.wait()
        stream = engine.submit(ask("stream", "p", max_tokens=3))
        prompts = [engine.submit(ask(name, name * 500)) for name in "abcdef"]
        runner.entered.clear()
        runner.let_go()
        for at, each in enumerate(prompts, 1):
            runner.entered.wait()
            longest = max((item.tokens for item in runner.forwards[at]), key=len)
            assert longest[0] == ord(each.id)
            runner.entered.clear()
            each.cancel()
        runner.release()

        assert outcome(stream)[0] == "yyy"
        assert outcome(first)[0] == "y"
        assert {outcome(each)[1].finish for each in prompts} == {FinishReason.CANCELLED}
    assert runner.aborts == len(prompts)


def test_an_urgent_prompt_does_not_wait_for_the_same_one_of_lower_rank() -> None:
    runner = MockRunner("y", max_sequences=3, max_tokens=64, holds=[0])
    with running(runner) as engine:
        slow = engine.submit(ask("slow", "q" * 400, priority="background", max_tokens=1))
        runner.entered.wait()
        urgent = engine.submit(ask("urgent", "q" * 400, priority="interactive", max_tokens=1))
        runner.release()
        assert [outcome(each)[0] for each in (urgent, slow)] == ["y", "y"]

    assert runner.forwards[1][0].sequence != runner.forwards[0][0].sequence


class Sure:
    """Guesses as much as it may."""

    costly = False
    odds = (1.0,) * 64

    def start(self, target: Vocabulary) -> None:
        return

    def drafters(self) -> tuple[Sure]:
        return (self,)

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        return [ord("y")] * most

    def close(self) -> None:
        return


def test_guesses_of_a_runner_that_takes_turns_stay_within_its_forward() -> None:
    runner = MockRunner("y" * 60, max_sequences=2, max_batch=1, max_tokens=8)
    seconds = itertools.count()
    with running(runner, drafting=Sure(), clock=lambda: float(next(seconds))) as engine:
        both = [engine.submit(ask(name, name, max_tokens=50)) for name in "ab"]
        assert [outcome(each)[0] for each in both] == ["y" * 50] * 2

    assert max(len(item.tokens) for batch in runner.forwards for item in batch) == 8


def waiting(id_: str, **fields: Any) -> Waiting:
    request = ask(id_, **fields)
    vocabulary = MockRunner().vocabulary()
    return Waiting(request, Generation(request, lambda: None), vocabulary, 100, lambda: 0.0)


def test_what_finds_no_room_is_overtaken_only_so_often() -> None:
    queue = Queue()
    large = waiting("large", client="a")
    queue.put(large)
    for at in range(MOST_OVERTAKEN + 1):
        queue.put(waiting(f"small{at}", client="ab"[at % 2]))

    def fits(each: Waiting) -> bool:
        return each is not large

    taken = [queue.next((), fits) for _ in range(MOST_OVERTAKEN)]
    assert None not in taken
    assert queue.next((), fits) is None

    urgent, leaving = waiting("urgent", priority="interactive"), waiting("leaving", client="c")
    leaving.cancelled = True
    queue.put(urgent)
    queue.put(leaving)
    assert [queue.next((), fits) for _ in range(3)] == [urgent, leaving, None]
    # Once there is room, it goes first, whosever turn it would be.
    assert queue.next([waiting("running", client="a")], lambda _: True) is large
    assert queue.next((), fits) is not None


def test_more_names_behind_a_slash_bring_no_more_places_and_turns() -> None:
    queue = Queue()
    for at in range(MAX_WAITING_OF_ONE):
        queue.put(waiting(f"k{at}", client=f"key/{at}"))
    with pytest.raises(BusyError):
        queue.put(waiting("one more", client="key/another"))
    queue.put(waiting("g0", client="guest/"))
    queue.put(waiting("g1", client="guest/"))

    taken = [queue.next((), lambda _: True) for _ in range(4)]
    shares = [each.request.client.partition("/")[0] for each in taken if each is not None]
    assert sorted(shares[:2]) == sorted(shares[2:]) == ["guest", "key"]


class CountingCells(MockRunner):
    """Embeds in the cells that sequences have, too."""

    def embed(self, batch: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        self._check_cells(max(map(len, batch)))
        self.embedded_after = len(self.forwards)
        return super().embed(batch)


def test_what_is_parked_makes_room_for_a_text() -> None:
    runner = CountingCells("y", n_ctx=100, max_sequences=2, n_cells=100)
    with running(runner) as engine:
        outcome(engine.submit(ask("p", "p" * 90, max_tokens=1)))
        vectors = engine.embed(EmbeddingRequest("e", (tuple(encode("t" * 50)),))).result()
    assert vectors.shape == (1, 4)


def test_a_text_that_waits_for_room_gets_it_before_those_who_come_later() -> None:
    runner = CountingCells("y" * 9, n_ctx=100, max_sequences=2, n_cells=100, holds=[0])
    with running(runner) as engine:
        first = engine.submit(ask("first", "p" * 50, max_tokens=3))
        runner.entered.wait()
        vectors = engine.embed(EmbeddingRequest("e", (tuple(encode("t" * 60)),)))
        later = engine.submit(ask("later", "q" * 38, max_tokens=3))
        runner.release()
        assert vectors.result().shape == (1, 4)
        assert [outcome(each)[0] for each in (first, later)] == ["yyy", "yyy"]

    fed = [item.tokens for batch in runner.forwards[: runner.embedded_after] for item in batch]
    assert all(ord("q") not in tokens for tokens in fed)


def test_a_closed_engine_starts_nothing_for_a_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(grammar_module, "GrammarCompiler", lambda *given: made.append(given))
    with running(MockRunner("y")) as engine:
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            engine.submit(ask("g", grammar=Grammar("regex", "a+")))
    assert made == []
