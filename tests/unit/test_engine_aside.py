"""Where what lies idle slows every step: it waits in host memory, and comes back from there."""

from __future__ import annotations

from pathlib import Path

import pytest

from localrun.engine.cache.prefix import PrefixCache
from localrun.engine.cache.states import StateStore
from localrun.engine.runner import BatchItem
from tests.owned_runner import OwnedRunner

LONG = list(range(200))
OTHER = [7] * 100


def answered(cache: PrefixCache, runner: OwnedRunner, prompt: list[int], owner: str = "") -> int:
    """One request from its take to its end; how many tokens were not computed again."""
    timeline = cache.take(prompt, owner)
    assert timeline is not None
    spared = len(timeline.tokens)
    runner.forward([BatchItem(timeline.id, prompt[spared:])])
    timeline.tokens.extend(prompt[spared:])
    cache.park(timeline)
    return spared


@pytest.fixture
def runner() -> OwnedRunner:
    return OwnedRunner(max_sequences=4, idle_costs=True)


def test_only_what_runs_is_left_in_the_runner(runner: OwnedRunner) -> None:
    cache = PrefixCache(runner)
    for prompt in (LONG, OTHER, [8] * 50):
        answered(cache, runner, prompt)

        assert runner.in_use == 1


def test_each_conversation_goes_on_where_it_ended(runner: OwnedRunner) -> None:
    cache = PrefixCache(runner)
    for prompt in (LONG, OTHER):
        answered(cache, runner, prompt)

    assert answered(cache, runner, [*LONG, 1, 2]) == len(LONG)
    assert answered(cache, runner, [*OTHER, 1, 2]) == len(OTHER)
    assert answered(cache, runner, [*LONG, 1, 2, 3]) == len(LONG) + 2
    assert cache.counters.evictions == 0


def test_a_turn_after_a_turn_copies_nothing(runner: OwnedRunner) -> None:
    cache = PrefixCache(runner)
    answered(cache, runner, LONG)
    answered(cache, runner, [*LONG, 1])

    assert "save" not in runner.calls


def test_another_answer_is_cut_from_what_waits(runner: OwnedRunner) -> None:
    cache = PrefixCache(runner)
    answered(cache, runner, LONG)
    answered(cache, runner, OTHER)

    assert answered(cache, runner, [*LONG[:150], 9]) == 150


def test_what_waits_serves_nobody_else(runner: OwnedRunner) -> None:
    cache = PrefixCache(runner)
    runner.writing = "ann"
    answered(cache, runner, LONG, "ann")
    runner.writing = "bob"
    answered(cache, runner, OTHER, "bob")

    assert cache.peek(LONG, "bob") == 0
    assert answered(cache, runner, LONG, "bob") == 0
    assert runner.crossings == []


def test_a_longer_state_of_a_conversation_replaces_the_shorter(runner: OwnedRunner) -> None:
    cache = PrefixCache(runner, budget_bytes=1 << 20)
    for turn in range(5):
        answered(cache, runner, LONG[: 100 + 20 * turn])
        answered(cache, runner, OTHER)

    assert len(list(cache._checkpoints.latest_first())) == 2


def test_without_room_in_host_memory_it_stays(runner: OwnedRunner) -> None:
    cache = PrefixCache(runner, budget_bytes=0)
    answered(cache, runner, LONG)
    answered(cache, runner, OTHER)

    assert runner.in_use == 2
    assert answered(cache, runner, [*LONG, 1]) == len(LONG)


def test_what_gives_way_there_is_written_to_the_disk(runner: OwnedRunner, tmp_path: Path) -> None:
    store = StateStore(tmp_path / "states", key="k", budget_bytes=1 << 20)
    cache = PrefixCache(runner, store=store, budget_bytes=_size(runner, LONG))
    for prompt in (LONG, OTHER, [8] * 70):
        answered(cache, runner, prompt)
    assert store.flush(10)

    assert cache.counters.saves >= 1
    assert answered(cache, runner, [*LONG, 1]) == len(LONG)
    cache.close()


def test_a_state_that_gave_way_while_another_was_tried_harms_nobody(
    runner: OwnedRunner, tmp_path: Path
) -> None:
    store = StateStore(tmp_path / "states", key="k", budget_bytes=1 << 20)
    written = PrefixCache(runner, store=store)
    answered(written, runner, LONG)
    written.close()
    store = StateStore(tmp_path / "states", key="k", budget_bytes=1 << 20)
    cache = PrefixCache(runner, store=store, budget_bytes=_size(runner, OTHER))
    answered(cache, runner, LONG[:60])
    answered(cache, runner, OTHER)
    runner.broken = {"restore"}

    # The disk's state comes first and is refused; to make room for it the host's has gone.
    assert answered(cache, runner, [*LONG, 1]) == 0


def test_what_waits_outlives_the_process(runner: OwnedRunner, tmp_path: Path) -> None:
    for expected in (0, len(LONG)):
        store = StateStore(tmp_path / "states", key="k", budget_bytes=1 << 20)
        cache = PrefixCache(runner, store=store)
        assert answered(cache, runner, [*LONG, 1]) >= expected
        answered(cache, runner, OTHER)
        cache.close()
        assert runner.in_use == 0


def _size(runner: OwnedRunner, tokens: list[int]) -> int:
    """Bytes of a state that holds them."""
    sequence = runner.new_sequence()
    runner.forward([BatchItem(sequence, tokens)])
    state = runner.save(sequence)
    runner.free(sequence)
    return len(state)
