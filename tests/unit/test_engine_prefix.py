"""Knows no weights: what of a prompt is computed again."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from localrun.engine.cache.checkpoints import borders
from localrun.engine.cache.common import SHORT, common
from localrun.engine.cache.prefix import PrefixCache
from localrun.engine.cache.states import StateStore
from localrun.engine.cache.timeline import Timeline
from localrun.engine.engine import Engine
from localrun.engine.request import GenerationRequest, SamplingParams, Timings
from localrun.engine.runner import BatchItem
from localrun.errors import EngineError
from tests.mock_runner import EOS, MockRunner, encode
from tests.owned_runner import OwnedRunner

LONG = list(range(200))
END = frozenset({EOS})


def ask(engine: Engine, prompt: str, count: int = 4) -> tuple[str, Timings]:
    request = GenerationRequest(
        "a", tuple(encode(prompt)), SamplingParams(temperature=0), max_tokens=count
    )
    events = list(engine.submit(request))
    timings = events[-1].timings
    assert timings is not None
    return "".join(event.text for event in events), timings


def append(runner: MockRunner, timeline: Timeline, tokens: list[int]) -> NDArray[np.float32]:
    """As the scheduler does; the last token's logits."""
    logits = runner.forward([BatchItem(timeline.id, tokens)]).numpy()
    timeline.tokens.extend(tokens)
    last: NDArray[np.float32] = logits[-1]
    return last


def hold(runner: MockRunner, cache: PrefixCache, prompt: list[int], owner: str = "") -> Timeline:
    """A live timeline that holds all of ``prompt``."""
    timeline = cache.take(prompt, owner)
    assert timeline is not None
    append(runner, timeline, prompt[len(timeline.tokens) :])
    return timeline


def peek(cache: PrefixCache, prompt: list[int]) -> int:
    return cache.peek(prompt, "")


def spared(cache: PrefixCache, prompt: list[int], owner: str = "") -> int:
    """What a take finds; the timeline is given back."""
    timeline = cache.take(prompt, owner)
    assert timeline is not None
    found = len(timeline.tokens)
    cache.drop(timeline)
    return found


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path / "states", key="k", budget_bytes=1 << 20)


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


@settings(max_examples=50)
@given(st.lists(few, min_size=1, max_size=5), st.integers(0, 9), st.integers(1, 5), st.booleans())
def test_answers_with_the_cache_equal_answers_without(
    prompts: list[str], drops: int, max_tokens: int, idle_costs: bool
) -> None:
    warm_runner = MockRunner(
        hashed=True,
        max_tokens=max_tokens,
        idle_costs=idle_costs,
        keep=lambda length: max(0, length - drops),
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


def test_a_runner_that_fails_to_cut_costs_a_prefill_and_no_request() -> None:
    runner = OwnedRunner("answer")
    runner.broken = {"truncate"}
    engine = Engine(runner)
    ask(engine, "question")
    text, timings = ask(engine, "quest")
    engine.close()

    assert (text, timings.cached_tokens) == ("answ", 0)


# Which timeline is taken.


def test_what_is_held_is_not_lost_to_a_prompt_that_shares_a_part_of_it() -> None:
    runner = OwnedRunner(max_sequences=2)
    cache = PrefixCache(runner)
    cache.park(hold(runner, cache, LONG))

    assert peek(cache, [*LONG[:100], 7]) == 100
    other = cache.take([*LONG[:100], 7], "")
    assert other is not None
    assert (runner.calls.count("fork"), other.tokens) == (1, LONG[:100])
    assert peek(cache, [*LONG, 7]) == 200


def test_the_only_seat_is_taken_over() -> None:
    runner = OwnedRunner()
    cache = PrefixCache(runner)
    cache.park(hold(runner, cache, LONG))

    assert spared(cache, [*LONG[:100], 7]) == 100
    assert "fork" not in runner.calls


def test_a_much_longer_timeline_is_forked_before_one_that_nobody_used_since_is_kept() -> None:
    runner = OwnedRunner(max_sequences=2)
    cache = PrefixCache(runner)
    cache.park(hold(runner, cache, [9] * 50))
    cache.park(hold(runner, cache, LONG))

    assert spared(cache, [*LONG[:40], 7]) == 40
    assert cache.counters.evictions == 1
    assert peek(cache, [*LONG, 7]) == 200


def test_a_timeline_that_was_copied_counts_as_used() -> None:
    runner = OwnedRunner(max_sequences=3)
    cache = PrefixCache(runner)
    for prompt in (LONG, [7] * 100):
        cache.park(hold(runner, cache, prompt))
    cache.park(hold(runner, cache, [*LONG[:100], 9]))
    assert cache.seat()

    assert [peek(cache, [*p, 9]) for p in (LONG, [7] * 100)] == [200, 0]


def test_where_a_runner_keeps_too_little_the_next_best_is_taken() -> None:
    runner = OwnedRunner(max_sequences=2, can_fork=False, keep=lambda length: length // 10)
    cache = PrefixCache(runner)
    held = [hold(runner, cache, prompt) for prompt in (LONG[:100], [*LONG[:150], *[9] * 50])]
    for timeline in held:
        cache.park(timeline)

    assert peek(cache, LONG) == 150
    assert spared(cache, LONG) == 100
    assert runner.in_use == 0


def test_little_that_is_shared_leaves_a_long_timeline_alone() -> None:
    runner = OwnedRunner(max_sequences=2)
    cache = PrefixCache(runner)
    cache.park(hold(runner, cache, LONG))

    assert peek(cache, [*LONG[: SHORT - 1], 7]) == 0
    assert spared(cache, [*LONG[: SHORT - 1], 7]) == 0
    assert peek(cache, [*LONG, 7]) == 200


def test_a_prompt_goes_on_from_a_timeline_that_is_still_running() -> None:
    runner = OwnedRunner(max_sequences=2)
    cache = PrefixCache(runner)
    live = hold(runner, cache, LONG)
    other = cache.take(LONG, "")
    assert other is not None

    assert other is not live
    assert other.tokens == LONG[:-1]
    assert live.tokens == runner.holds_tokens(live.id) == LONG


def test_nothing_is_forked_where_the_runner_cannot() -> None:
    runner = OwnedRunner(max_sequences=2, can_fork=False)
    cache = PrefixCache(runner)
    hold(runner, cache, LONG)

    assert peek(cache, LONG) == spared(cache, LONG) == 0


def test_the_longest_of_several_is_taken() -> None:
    runner = OwnedRunner(max_sequences=4)
    cache = PrefixCache(runner)
    timelines = [hold(runner, cache, [*LONG[:length], 9]) for length in (50, 150, 100)]
    for timeline in timelines:
        cache.park(timeline)

    assert peek(cache, [*LONG, 9]) == spared(cache, [*LONG, 9]) == 150


def test_no_timeline_is_had_while_others_hold_every_sequence() -> None:
    runner = OwnedRunner(max_sequences=2)
    cache = PrefixCache(runner)
    first, second = hold(runner, cache, LONG), hold(runner, cache, [7, 8])

    assert cache.take([1, 2], "") is None
    assert not cache.seat()
    cache.park(second)
    assert cache.seat()
    assert runner.in_use == 1
    assert runner.holds_tokens(first.id) == LONG


def test_one_token_is_always_left_to_compute() -> None:
    runner = OwnedRunner()
    cache = PrefixCache(runner)
    cache.park(hold(runner, cache, [1]))

    assert peek(cache, [1]) == spared(cache, [1]) == 0


def test_a_timeline_that_holds_nothing_is_not_kept() -> None:
    runner = OwnedRunner()
    cache = PrefixCache(runner)
    empty = cache.take([1, 2], "")
    assert empty is not None
    cache.park(empty)

    assert runner.in_use == 0


# Room.


def test_parked_timelines_give_way_for_cells_the_longest_unused_first() -> None:
    runner = OwnedRunner(max_sequences=4, n_cells=300)
    cache = PrefixCache(runner)
    timelines = [hold(runner, cache, [n] * 80) for n in (1, 2, 3)]
    for timeline in timelines:
        cache.park(timeline)

    assert cache.reserve(60)
    assert cache.counters.evictions == 0
    assert cache.reserve(61)
    assert cache.counters.evictions == 1
    assert [peek(cache, [n] * 90) for n in (1, 2, 3)] == [0, 80, 80]


def test_nothing_gives_way_where_live_timelines_hold_too_much() -> None:
    runner = OwnedRunner(max_sequences=4, n_cells=300)
    cache = PrefixCache(runner)
    hold(runner, cache, LONG)
    cache.park(hold(runner, cache, [7] * 50))

    assert not cache.reserve(101)
    assert cache.counters.evictions == 0
    assert cache.reserve(100)


def test_parked_timelines_give_way_for_a_copy() -> None:
    runner = OwnedRunner(max_sequences=3, n_cells=450)
    cache = PrefixCache(runner)
    cache.park(hold(runner, cache, [7] * 80))
    hold(runner, cache, LONG)

    assert spared(cache, LONG) == 199
    assert cache.counters.evictions == 1


def test_parked_timelines_give_way_for_a_state(store: StateStore) -> None:
    runner = OwnedRunner(max_sequences=3, n_cells=300)
    cache = PrefixCache(runner, store=store)
    for prompt in (LONG, [7] * 200):
        cache.park(hold(runner, cache, prompt[:1]))  # no more than there are cells for
        assert cache.reserve(199)
        cache.park(hold(runner, cache, prompt))
        assert cache.reserve(300)
        assert store.flush(10)
    cache.park(hold(runner, cache, [8] * 150))

    assert spared(cache, [*LONG, 9]) == 200
    assert cache.counters.evictions == 3


def test_a_copy_for_which_there_are_no_cells_is_not_made() -> None:
    runner = OwnedRunner(max_sequences=2, n_cells=300)
    cache = PrefixCache(runner)
    live = hold(runner, cache, LONG)

    assert spared(cache, LONG) == 0
    assert runner.holds_tokens(live.id) == LONG


# What goes wrong on the way.


@pytest.mark.parametrize("idle_costs", [False, True])
@pytest.mark.parametrize("broken", ["fork", "truncate", "save", "restore"])
def test_a_runner_that_fails_at_it_costs_what_was_cached_and_no_request(
    broken: str, store: StateStore, *, idle_costs: bool
) -> None:
    runner = OwnedRunner(hashed=True, max_sequences=2, idle_costs=idle_costs)
    cache = PrefixCache(runner, store=store)
    cache.park(hold(runner, cache, LONG))
    live = hold(runner, cache, [7] * 100)
    runner.broken = {broken}
    for prompt in ([*LONG[:100], 7], [7] * 90, [*LONG[:60], 8], [3] * 70):
        timeline = hold(runner, cache, prompt)
        assert runner.holds_tokens(timeline.id) == prompt
        cache.park(timeline)
    cache.drop(live)
    cache.close()

    assert runner.in_use == 0


def test_a_state_the_runner_refuses_is_forgotten(store: StateStore) -> None:
    runner = OwnedRunner()
    cache = PrefixCache(runner, store=store)
    cache.park(hold(runner, cache, LONG))
    cache.park(hold(runner, cache, [7] * 100))
    assert store.flush(10)
    runner.broken = {"restore"}

    assert peek(cache, [*LONG, 7]) == 200
    assert spared(cache, [*LONG, 7]) == 0
    assert peek(cache, [*LONG, 7]) == 0


def test_a_timeline_that_made_room_for_nothing_is_gone(store: StateStore) -> None:
    runner = OwnedRunner()
    cache = PrefixCache(runner, store=store)
    cache.park(hold(runner, cache, LONG))
    cache.park(hold(runner, cache, [7] * 100))
    cache.park(hold(runner, cache, [*LONG[:90], 7]))
    assert store.flush(10)
    runner.broken = {"restore"}

    # The disk has most of it, and takes the only seat for a state that is refused.
    timeline = hold(runner, cache, [*LONG, 7])
    assert runner.holds_tokens(timeline.id) == [*LONG, 7]
    assert runner.in_use == 1


def test_a_runner_that_gives_no_sequence_says_so() -> None:
    runner = OwnedRunner()
    cache = PrefixCache(runner)
    runner.broken = {"new_sequence"}

    with pytest.raises(EngineError):
        cache.take([1, 2], "")


def test_sequences_that_others_hold_are_made_room_for() -> None:
    runner = OwnedRunner(max_sequences=2)
    cache = PrefixCache(runner)
    cache.park(hold(runner, cache, [1] * 9))
    runner.new_sequence()  # nobody told the cache

    assert cache.take([2, 3], "") is not None


# Runners that cannot cut.

TURNS = [*[1] * 40, EOS, *[2] * 40, EOS, *[3] * 40, EOS, *[4] * 40, EOS, 5, 6, 7]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (TURNS, [123, 164]),
        ([*TURNS, *[8] * 40], [123, 164, 206]),
        (TURNS[:-3], [123, 163]),
        ([1] * 100, [99]),
        ([1] * SHORT, []),
        ([*[1] * 50, EOS, 2, 3, EOS, 4, 5], [51]),
        ([EOS] * 3, []),
        ([1], []),
        ([], []),
    ],
    ids=[
        "turns",
        "a long last turn",
        "ends with a turn",
        "no turns",
        "short",
        "near each other",
        "nothing but ends",
        "one token",
        "nothing",
    ],
)
def test_borders_lie_where_prompts_part(prompt: list[int], expected: list[int]) -> None:
    assert borders(prompt, END) == expected


def prefill(runner: MockRunner, cache: PrefixCache, prompt: list[int], owner: str = "") -> Timeline:
    """With a checkpoint at every border, as the scheduler does; all logits as of no cache."""
    timeline = cache.take(prompt, owner)
    assert timeline is not None
    while len(timeline.tokens) < len(prompt):
        border = cache.border(timeline, prompt)
        append(runner, timeline, prompt[len(timeline.tokens) : border])
        if border is not None:
            cache.checkpoint(timeline)
    return timeline


def uncuttable(**options: Any) -> OwnedRunner:
    return OwnedRunner(hashed=True, uncuttable=True, **options)


NEXT_PROMPTS = {
    "the next turn": ([*TURNS, 8, 8, 8, EOS, 9, 9, EOS, 5, 6, 7], 170),
    "a next turn that tells the answer differently": ([*TURNS, 9, 9, EOS, 5, 6, 7], 164),
    "another answer": (TURNS, 164),
    "an edited last message": ([*TURNS[:130], 9, 9, 9, EOS, 5, 6, 7], 123),
    "an edited first message": ([0, *TURNS], 0),
}


@pytest.mark.parametrize("prompt", NEXT_PROMPTS)
@pytest.mark.parametrize("sequences", [1, 3])
def test_checkpoints_at_turn_ends_serve(prompt: str, sequences: int) -> None:
    tokens, expected = NEXT_PROMPTS[prompt]
    runner = uncuttable(max_sequences=sequences)
    cache = PrefixCache(runner, turn_ends=END)
    timeline = prefill(runner, cache, TURNS)
    append(runner, timeline, [8, 8, 8])
    cache.park(timeline)

    assert peek(cache, tokens) == expected
    assert spared(cache, tokens) == expected


def test_a_checkpoint_the_runner_refuses_is_forgotten() -> None:
    runner = uncuttable()
    cache = PrefixCache(runner, turn_ends=END)
    cache.drop(prefill(runner, cache, TURNS))
    runner.broken = {"restore"}

    assert peek(cache, TURNS) == 164
    assert spared(cache, TURNS) == 0
    runner.broken.clear()
    assert peek(cache, TURNS) == 123


def test_checkpoints_outlive_the_process(store: StateStore, tmp_path: Path) -> None:
    runner = uncuttable()
    cache = PrefixCache(runner, turn_ends=END, store=store)
    cache.park(prefill(runner, cache, TURNS))
    cache.close()
    again = StateStore(tmp_path / "states", key="k", budget_bytes=1 << 20)
    cache = PrefixCache(uncuttable(), turn_ends=END, store=again)

    assert [peek(cache, prompt) for prompt, _ in NEXT_PROMPTS.values()] == [167, 167, 164, 123, 0]


def test_checkpoints_stay_within_their_bytes() -> None:
    runner = uncuttable()
    cache = PrefixCache(runner, turn_ends=END, budget_bytes=4 * 164 + 1)
    cache.drop(prefill(runner, cache, TURNS))
    assert peek(cache, TURNS) == 164
    assert peek(cache, NEXT_PROMPTS["an edited last message"][0]) == 0


def test_a_checkpoint_that_is_there_is_not_taken_again() -> None:
    runner = uncuttable()
    cache = PrefixCache(runner, turn_ends=END)
    timeline = prefill(runner, cache, TURNS)
    cache.checkpoint(timeline)
    saved = runner.calls.count("save")
    cache.checkpoint(timeline)

    assert runner.calls.count("save") == saved == 3


def test_a_budget_of_nothing_has_no_borders() -> None:
    runner = uncuttable()
    cache = PrefixCache(runner, turn_ends=END, budget_bytes=0)
    timeline = cache.take(TURNS, "")
    assert timeline is not None
    assert cache.border(timeline, TURNS) is None


def test_a_runner_that_cuts_anywhere_needs_no_borders() -> None:
    cache = PrefixCache(OwnedRunner(), turn_ends=END)
    timeline = cache.take(TURNS, "")
    assert timeline is not None
    assert cache.border(timeline, TURNS) is None


# Across restarts.


def test_a_restart_forgets_nothing_that_was_long(store: StateStore, tmp_path: Path) -> None:
    runner = OwnedRunner(max_sequences=3)
    cache = PrefixCache(runner, store=store)
    for prompt in (LONG, [7] * 100, [8] * SHORT):
        cache.park(hold(runner, cache, prompt))
    cache.close()
    assert runner.in_use == 0
    runner = OwnedRunner(max_sequences=3)
    again = StateStore(tmp_path / "states", key="k", budget_bytes=1 << 20)
    cache = PrefixCache(runner, store=again)

    assert [peek(cache, [*p, 9]) for p in (LONG, [7] * 100, [8] * SHORT)] == [200, 100, 0]
    assert spared(cache, [*LONG[:150], 9]) == 150
    assert cache.counters.restores == 1


def test_a_timeline_that_gives_way_is_found_on_the_disk(store: StateStore) -> None:
    runner = OwnedRunner()
    cache = PrefixCache(runner, store=store)
    for prompt in (LONG, [7] * 100, [8] * 100):
        cache.park(hold(runner, cache, prompt))
        assert store.flush(10)

    assert cache.counters.saves == 2
    assert [peek(cache, [*p, 9]) for p in (LONG, [7] * 100, [8] * 100)] == [200, 100, 100]


@pytest.mark.parametrize(
    ("per_token", "saves"), [(None, 2), (0.0199, 1), (0.0201, 2), (0.0099, 0), (0.0101, 1)]
)
def test_what_is_read_again_in_no_time_gives_way_without_a_write(
    store: StateStore, per_token: float | None, saves: int
) -> None:
    runner = OwnedRunner()
    cache = PrefixCache(runner, store=store, per_token=lambda: per_token)
    for prompt in (LONG, [7] * 100, [8] * 100):
        cache.park(hold(runner, cache, prompt))
        assert store.flush(10)

    assert cache.counters.evictions == 2
    assert cache.counters.saves == saves
    cache.close()
    assert cache.counters.saves == saves + 1  # what is there at the end is kept however short


def test_a_timeline_that_is_cut_to_a_smaller_part_is_found_on_the_disk(store: StateStore) -> None:
    runner = OwnedRunner()
    cache = PrefixCache(runner, store=store)
    cache.park(hold(runner, cache, LONG))
    assert spared(cache, [*LONG[:60], 9]) == 60
    assert store.flush(10)

    assert cache.counters.evictions == 0
    assert peek(cache, [*LONG, 9]) == 200


def test_of_what_is_too_long_for_the_disk_the_beginning_is_kept(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "states", key="k", budget_bytes=1 << 20, queue_bytes=600)
    runner = MockRunner()
    cache = PrefixCache(runner, store=store)
    cache.park(hold(runner, cache, LONG))
    cache.park(hold(runner, cache, [7] * 100))
    assert store.flush(10)

    assert peek(cache, [*LONG, 9]) == 150


def test_closing_stops_saving_when_its_time_is_over(store: StateStore, tmp_path: Path) -> None:
    runner = OwnedRunner(max_sequences=2)
    times = iter([0.0, 1.0, 9.0, 9.0, 9.0])
    cache = PrefixCache(runner, store=store, clock=lambda: next(times))
    for prompt in ([7] * 100, LONG):
        cache.park(hold(runner, cache, prompt))
    cache.close()
    again = StateStore(tmp_path / "states", key="k", budget_bytes=1 << 20)

    assert runner.in_use == 0
    assert runner.calls.count("save") == 1
    assert store.flush(10)
    assert again.find([*LONG, 1], "") is not None


# Any order of things.


@given(st.lists(st.integers(0, 1), max_size=1100), st.lists(st.integers(0, 1), max_size=4))
def test_the_common_prefix_is_what_two_lists_begin_with(head: list[int], tail: list[int]) -> None:
    other = [*head, 2, *tail]
    for one, two in [(head, other), (other, head), (other, [*head, 3, *tail]), (head, head)]:
        assert common(one, two) == len(head)
        assert common(array("i", one), array("i", two)) == len(head)
        assert common(one, tuple(two)) == len(head)


OWNERS = ("ann", "bob")
prompts = st.lists(st.sampled_from("ab"), min_size=1, max_size=6)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("take"), prompts, st.sampled_from(OWNERS)),
        st.tuples(st.sampled_from(["append", "cut", "park", "drop"]), prompts, st.integers(0, 3)),
        st.tuples(st.just("restart"), st.none(), st.none()),
    ),
    min_size=4,
    max_size=16,
)


@st.composite
def abilities(draw: st.DrawFn) -> dict[str, Any]:
    lost = draw(st.sampled_from([0, 0, 3, 50]))
    return {
        "can_fork": draw(st.booleans()),
        "idle_costs": draw(st.booleans()),
        "max_sequences": draw(st.integers(1, 4)),
        "n_cells": draw(st.sampled_from([90, 200, 400, 4096])),
        "uncuttable": draw(st.booleans()),
        "keep": lambda length: max(0, length - lost),
    }


class Life:
    """A cache under test: every timeline that is live, and what must hold of each."""

    def __init__(self, folder: Path | None, letters: int, options: dict[str, Any]) -> None:
        self.folder, self.letters, self.options = folder, letters, options
        self.live: list[Timeline] = []
        self.begin()

    def begin(self) -> None:
        self.runner = OwnedRunner(hashed=True, **self.options)
        self.store = None
        if self.folder is not None:
            self.store = StateStore(self.folder, key="k", budget_bytes=3000)
        self.cache = PrefixCache(
            self.runner, turn_ends=frozenset({98}), store=self.store, budget_bytes=1000
        )

    def restart(self) -> None:
        for timeline in self.live:
            self.cache.drop(timeline)
        self.live.clear()
        self.cache.close()
        assert self.runner.in_use == 0
        assert self.runner.crossings == []
        assert self.runner.violations == []

    def take(self, letters: list[str], owner: str) -> None:
        prompt = [ord(letter) for letter in letters for _ in range(self.letters)]
        expected = self.cache.peek(prompt, owner)
        assert 0 <= expected < len(prompt)
        timeline = self.cache.take(prompt, owner)
        if timeline is None:
            assert len(self.live) == self.options["max_sequences"]
            return
        held = timeline.tokens
        assert len(held) < len(prompt)
        assert held == prompt[: len(held)]
        assert self.runner.owners[timeline.id] <= {owner}
        self.live.append(timeline)
        self.prefill(timeline, prompt)

    def prefill(self, timeline: Timeline, prompt: list[int]) -> None:
        self.runner.writing = timeline.owner
        logits = None
        while len(timeline.tokens) < len(prompt):
            border = self.cache.border(timeline, prompt)
            chunk = prompt[len(timeline.tokens) : border]
            if not self.cache.reserve(len(chunk)):
                return
            logits = append(self.runner, timeline, chunk)
            if border is not None:
                self.cache.checkpoint(timeline)
        if logits is not None:
            cold = MockRunner(hashed=True)
            expected = cold.forward([BatchItem(cold.new_sequence(), prompt)]).numpy()[-1]
            assert np.array_equal(logits, expected)

    def change(self, operation: str, letters: list[str], at: int) -> None:
        if at >= len(self.live):
            return
        timeline = self.live[at]
        if operation == "append":
            self.prefill(timeline, timeline.tokens + [ord(letter) for letter in letters])
        elif operation == "cut":
            self.cache.cut(timeline, len(letters) * self.letters)
        else:
            self.live.remove(timeline)
            (self.cache.park if operation == "park" else self.cache.drop)(timeline)

    def check(self) -> None:
        for timeline in self.live:
            assert self.runner.holds_tokens(timeline.id) == timeline.tokens
        held = self.runner.in_use
        assert len(self.live) <= held <= self.options["max_sequences"]


@settings(max_examples=150, deadline=None)
@given(operations, st.sampled_from([1, 20]), abilities(), st.sampled_from([False, False, True]))
def test_whatever_happens_a_timeline_says_what_the_runner_holds(
    steps: list[Any], letters: int, options: dict[str, Any], on_disk: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        life = Life(Path(folder) if on_disk else None, letters, options)
        for operation, what, which in steps:
            if operation == "restart":
                life.restart()
                life.begin()
            elif operation == "take":
                life.take(what, which)
            else:
                life.change(operation, what, which)
            life.check()
        life.restart()
