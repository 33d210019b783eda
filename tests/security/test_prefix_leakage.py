"""What is cached for one owner neither serves another nor shows that it is there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localrun.engine.cache.prefix import PrefixCache
from localrun.engine.cache.states import StateStore
from localrun.engine.engine import Engine
from localrun.engine.generation import Generation
from localrun.engine.request import FinishReason, GenerationRequest, SamplingParams, Timings
from localrun.engine.runner import BatchItem, ModelRunner
from tests.mock_runner import EOS, MockRunner
from tests.owned_runner import MARKS, OwnedRunner

SYSTEM = [*b"You are a helpful assistant. " * 4, EOS]
SECRET = [*b"The code of the safe is 0451. " * 4, EOS]
OWN = {name: token for token, name in MARKS.items()}


def opened(folder: Path) -> Callable[[ModelRunner], StateStore]:
    return lambda runner: StateStore(folder, key=runner.identity(), budget_bytes=1 << 20)


def ask(engine: Engine, prompt: list[int], owner: str, count: int = 4) -> tuple[str, Timings]:
    events = list(
        engine.submit(
            GenerationRequest("r", tuple(prompt), SamplingParams(temperature=0), count, owner=owner)
        )
    )
    timings = events[-1].timings
    assert timings is not None
    return "".join(event.text for event in events), timings


def cold(prompt: list[int], count: int = 4) -> str:
    engine = Engine(MockRunner(hashed=True))
    text, _ = ask(engine, prompt, "nobody", count)
    engine.close()
    return text


PLACES = ["running", "parked", "a checkpoint", "the disk", "the disk after a restart"]


@pytest.mark.parametrize("place", PLACES)
def test_where_ever_it_lies_it_serves_its_owner_alone(place: str, tmp_path: Path) -> None:
    prompt = [*SYSTEM, *SECRET, *b"What is the code?"]
    runner = OwnedRunner(hashed=True, max_sequences=3, uncuttable=place == "a checkpoint")
    store = opened(tmp_path / "states")(runner)
    cache = PrefixCache(runner, turn_ends=frozenset({EOS}), store=store)
    timeline = cache.take(prompt, "ann")
    assert timeline is not None
    while len(timeline.tokens) < len(prompt):
        border = cache.border(timeline, prompt)
        chunk = prompt[len(timeline.tokens) : border]
        runner.forward([BatchItem(timeline.id, chunk)])
        timeline.tokens.extend(chunk)
        if border is not None:
            cache.checkpoint(timeline)
    if place != "running":
        cache.park(timeline)
    if place.startswith("the disk"):
        cache.reserve(runner.capabilities.n_cells)  # everything gives way
        assert store.flush(10)
    if place.endswith("restart"):
        cache.close()
        cache = PrefixCache(runner, store=opened(tmp_path / "states")(runner))

    assert cache.peek(prompt, "ann") > len(SYSTEM)
    for other in ("bob", "", "ann ", "Ann"):
        assert cache.peek(prompt, other) == 0
        runner.calls.clear()
        taken = cache.take(prompt, other)
        assert taken is not None
        assert taken.tokens == []
        assert not {"fork", "restore", "truncate"} & set(runner.calls)
        cache.drop(taken)
    cache.close()


def test_cached_tokens_tell_nothing_of_what_others_asked(tmp_path: Path) -> None:
    runner = OwnedRunner(hashed=True, max_sequences=3)
    engine = Engine(runner, states=opened(tmp_path / "states"))
    prompt = [*SYSTEM, *SECRET]
    _, first = ask(engine, prompt, "ann")
    _, others = ask(engine, prompt, "bob")
    _, again = ask(engine, prompt, "ann")
    engine.close()
    engine = Engine(OwnedRunner(hashed=True, max_sequences=3), states=opened(tmp_path / "states"))
    _, restarted = ask(engine, prompt, "ann")
    _, stranger = ask(engine, prompt, "cid")
    engine.close()

    assert (first.cached_tokens, others.cached_tokens, stranger.cached_tokens) == (0, 0, 0)
    assert again.cached_tokens == restarted.cached_tokens == len(prompt) - 1


def test_cold_and_warm_logits_are_the_same_numbers(tmp_path: Path) -> None:
    prompt = [*SYSTEM, *SECRET, *b"What is the code?"]
    reference = MockRunner(hashed=True)
    expected = reference.forward([BatchItem(reference.new_sequence(), prompt)]).numpy()[-1]
    runner = OwnedRunner(hashed=True, max_sequences=2)
    store = opened(tmp_path / "states")(runner)
    cache = PrefixCache(runner, store=store)
    found = []
    for warm in ([], SYSTEM, [*SYSTEM, *SECRET], prompt, prompt, [*prompt, 65]):
        timeline = cache.take(prompt, "ann")
        assert timeline is not None
        found.append(len(timeline.tokens))
        logits = runner.forward([BatchItem(timeline.id, prompt[len(timeline.tokens) :])]).numpy()
        assert np.abs(logits[-1] - expected).max() == 0
        cache.drop(timeline)
        timeline = cache.take([*warm, 0], "ann")  # what is held when the next one comes
        assert timeline is not None
        rest = warm[len(timeline.tokens) :]
        if rest:
            runner.forward([BatchItem(timeline.id, rest)])
            timeline.tokens.extend(rest)
        cache.park(timeline)
        if warm == prompt:
            cache.reserve(runner.capabilities.n_cells)
            assert store.flush(10)
    cache.close()

    assert found == [0, 0, len(SYSTEM), len(SYSTEM) + len(SECRET), *[len(prompt) - 1] * 2]


parts = st.sampled_from([SYSTEM, SECRET, [*b"Hello"], [*b"Hello there, and then some more of it"]])
requests = st.lists(
    st.tuples(
        st.sampled_from(["ann", "bob"]),
        st.lists(parts, min_size=1, max_size=3),
        st.sampled_from(["wait", "go on", "cancel", "restart"]),
    ),
    min_size=2,
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(
    requests,
    st.integers(1, 4),
    st.sampled_from([700, 4000]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_two_owners_share_a_prefix_and_nothing_else(
    asked: list[tuple[str, list[list[int]], str]],
    sequences: int,
    n_cells: int,
    can_fork: bool,
    uncuttable: bool,
    idle_costs: bool,
) -> None:
    """Any order of requests, cancelled ones among them, with eviction and restarts."""

    def begin(folder: Path) -> tuple[OwnedRunner, Engine]:
        runner = OwnedRunner(
            hashed=True,
            n_ctx=600,
            max_tokens=64,
            max_sequences=sequences,
            n_cells=n_cells,
            can_fork=can_fork,
            uncuttable=uncuttable,
            idle_costs=idle_costs,
        )
        return runner, Engine(runner, states=opened(folder))

    with tempfile.TemporaryDirectory() as folder:
        runner, engine = begin(Path(folder) / "states")
        running = []
        for at, (owner, texts, then) in enumerate(asked):
            # The mark stands behind what both may share.
            prompt = [token for text in texts for token in text] + [OWN[owner], 65]
            request = GenerationRequest(
                str(at), tuple(prompt), SamplingParams(temperature=0), 6, owner=owner
            )
            generation = engine.submit(request)
            running.append((prompt, generation))
            if then == "cancel":
                generation.cancel()
            if then in ("wait", "restart"):
                finish(running)
            if then == "restart":
                engine.close()
                assert runner.crossings == []
                runner, engine = begin(Path(folder) / "states")
        finish(running)
        engine.close()
        assert runner.crossings == []
        assert runner.violations == []
        assert runner.in_use == 0


_EXPECTED: dict[tuple[int, ...], str] = {}


def finish(running: list[tuple[list[int], Generation]]) -> None:
    """Every text is what a runner says that never saw anything else, or a beginning of it."""
    while running:
        prompt, generation = running.pop()
        events = list(generation)
        text = "".join(event.text for event in events)
        key = tuple(prompt)
        if key not in _EXPECTED:
            _EXPECTED[key] = cold(prompt, 6)
        assert events[-1].finish is not FinishReason.ERROR, events[-1].error
        if events[-1].finish is FinishReason.CANCELLED:
            assert _EXPECTED[key].startswith(text)
        else:
            assert text == _EXPECTED[key]
