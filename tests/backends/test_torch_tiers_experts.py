"""Layers of which only some experts are in memory give what layers give that hold them all."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from localrun.backends.tiers.staging import layout
from localrun.disk.reader import ALIGNMENT
from localrun.engine.runner import ForwardAborted
from localrun.errors import DiskReadError, UsageError
from localrun.formats.extent import Extent
from tests.fake_experts import FakeSlots, Tiny, tiny

WIDTH = 3
Step = tuple[Tensor, Tensor, Tensor]


def step(source: np.random.Generator, tokens: int, top: int, count: int = 8) -> Step:
    """What enters, what is chosen, its weights."""
    chosen = np.stack([source.permutation(count)[:top] for _ in range(tokens)])
    x, weights = source.normal(size=(tokens, WIDTH)), source.uniform(0.1, 1, (tokens, top))
    return (
        torch.from_numpy(x.astype("<f4")),
        torch.from_numpy(chosen),
        torch.from_numpy(weights.astype("<f4")),
    )


def picked(*experts: int) -> Step:
    """One token's."""
    x = torch.ones((1, WIDTH))
    return x, torch.tensor([experts]), torch.ones((1, len(experts)))


def ids(x: Tensor) -> Tensor:
    return torch.zeros(x.shape[0], dtype=torch.int64)


def run(made: Tiny, at: int, told: Step) -> Tensor:
    return made.layers[at].begin(*told, ids(told[0]))()


def starts(made: Tiny, at: int, *experts: int) -> list[int]:
    """Where reads of experts begin in their file."""
    extents = (each for expert in experts for each in made.slots[at].extents(expert))
    return sorted({each.offset // ALIGNMENT * ALIGNMENT for each in extents})


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    tokens=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    top=st.integers(1, 4),
    places=st.integers(1, 8),
    card=st.integers(0, 8),
    buffers=st.integers(1, 5),
    workers=st.integers(0, 3),
)
def test_no_bit_depends_on_places_groups_or_guesses(
    seed: int, tokens: list[int], top: int, places: int, card: int, buffers: int, workers: int
) -> None:
    source = np.random.default_rng(seed)

    def guess(x: Tensor, tokens: Tensor) -> Tensor:
        return torch.from_numpy(source.integers(0, 8, (x.shape[0], top)))

    with tiny(
        places=places, top=top, layers=2, card=card, buffers=buffers, workers=workers,
        guesses={1: guess},
    ) as made:  # fmt: skip
        for count in tokens:
            for at in range(2):
                told = step(source, count, top)
                slots = made.slots[at]
                slots.calls.clear(), slots.filled.clear()

                found = run(made, at, told)

                assert torch.equal(found, made.resident(at, *told))
                assert set(slots.calls) == set(told[1].flatten().tolist())
                # All rows of an expert are one product, and none is read twice.
                assert max(slots.calls.values()) == 1
                assert max(slots.filled.values(), default=1) == 1


def test_a_hit_is_not_read_again() -> None:
    with tiny(places=4) as made:
        run(made, 0, picked(1, 2))
        run(made, 0, picked(2, 1))

        experts = made.store.stats().experts

    assert made.disk.needed == 4
    assert {tier: use.picks for tier, use in experts.items()} == {"ram": 2, "disk": 2}
    assert {tier: use.bytes for tier, use in experts.items()} == {"ram": 200, "disk": 2000}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_layer_whose_misses_have_all_come_still_looks_ahead(workers: int) -> None:
    """Each layer's misses were guessed and read before it asked for them."""

    def same(x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[1, 2]])

    guesses = dict.fromkeys(range(4), same)
    with tiny(places=4, layers=4, workers=workers, guesses=guesses) as made:
        for layer in made.layers:
            layer.begin(*picked(1, 2), torch.zeros(1, dtype=torch.int64))()
            time.sleep(0.05)
        stats = made.store.stats()

    assert (stats.guessed, stats.right) == (6, 6)


@pytest.mark.parametrize("workers", [0, 1])
def test_waiting_is_for_reads_and_not_for_ones_own_decoding(
    monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    fill = FakeSlots.fill

    def slowly(self: FakeSlots, slot: int, expert: int) -> None:
        time.sleep(0.1)
        fill(self, slot, expert)

    monkeypatch.setattr(FakeSlots, "fill", slowly)
    with tiny(places=4, workers=workers) as made:
        run(made, 0, picked(1, 2))
        waited = made.store.stats().experts["disk"].seconds

    assert (waited < 0.1) == (workers == 0)


def test_picks_are_counted_where_a_plan_would_place_them() -> None:
    with tiny(places=4, card=2) as made:
        for experts in ((0, 1), (2, 3), (3, 0)):
            run(made, 0, picked(*experts))

        stats = made.store.stats()

    found = {tier: use.picks for tier, use in stats.experts.items()}
    assert found == {"vram:0": 1, "ram": 1, "disk": 4}
    assert stats.picks == {0: (2, 1, 1, 2, 0, 0, 0, 0)}
    assert stats.memory == {"vram:0": 200, "ram": 200}


def test_fewer_places_than_a_token_picks_hold_the_last_of_them() -> None:
    with tiny(places=2, top=3) as made:
        for _ in range(2):
            told = picked(1, 2, 3)
            assert torch.equal(run(made, 0, told), made.resident(0, *told))

        experts = made.store.stats().experts

    assert {tier: use.picks for tier, use in experts.items()} == {"ram": 2, "disk": 4}


def test_all_that_a_layer_misses_is_begun_before_any_of_it_is_waited_for() -> None:
    with tiny(places=8, top=4, buffers=3) as made:
        with made.disk.holding():
            finish = made.layers[0].begin(*picked(0, 1, 2, 3), torch.zeros(1, dtype=torch.int64))
            begun = made.disk.needed

        finish()

    assert begun == 2 * 3
    assert made.disk.needed == 2 * 4


def test_what_the_next_layer_will_pick_is_read_ahead_and_not_again() -> None:
    next_picks = torch.tensor([[4, 5]])
    with tiny(places=4, layers=2, guesses={1: lambda x, tokens: next_picks}) as made:
        run(made, 0, picked(0, 1))
        ahead = [read for read in made.disk.reads if read[2]]
        found = run(made, 1, picked(5, 6))

        stats = made.store.stats()
        assert torch.equal(found, made.resident(1, *picked(5, 6)))

    assert {file for file, _, _ in ahead} == {1}
    assert len(ahead) == 2 * 2
    assert made.disk.needed == 2 * 2 + 2
    assert (stats.guessed, stats.right) == (2, 1)
    assert made.slots[1].filled == {5: 1, 6: 1}


def test_a_guess_takes_no_place_and_no_buffer_that_anybody_needs() -> None:
    guesses = {1: lambda x, tokens: torch.tensor([[6, 7, 5, 4]])}
    with tiny(places=4, top=4, layers=2, buffers=4, guesses=guesses) as made:
        run(made, 1, picked(0, 1, 2, 3))
        run(made, 0, picked(0, 1, 2, 3))
        held = made.layers[1].places.held
        run(made, 1, picked(0, 1, 2, 3))

        stats = made.store.stats()

    assert sorted(held) == [0, 1, 2, 3]
    assert (stats.guessed, stats.right) == (2, 0)
    assert made.slots[1].filled == {0: 1, 1: 1, 2: 1, 3: 1}


def test_a_wrong_guess_leaves_its_buffer_to_what_is_needed() -> None:
    guesses = {1: lambda x, tokens: torch.tensor([[6, 7]])}
    with tiny(places=4, layers=2, buffers=2, guesses=guesses) as made:
        run(made, 0, picked(0, 1))
        before = made.disk.needed
        with made.disk.holding():
            finish = made.layers[1].begin(*picked(0, 1), torch.zeros(1, dtype=torch.int64))
            begun = made.disk.needed - before
        finish()

    assert begun == 2 * 2


def test_one_buffer_leaves_none_to_guess_with() -> None:
    guesses = {1: lambda x, tokens: torch.tensor([[4, 5]])}
    with tiny(places=4, layers=2, buffers=1, guesses=guesses) as made:
        run(made, 0, picked(0, 1))

        assert made.store.stats().guessed == 0


def test_a_long_prompt_reads_ahead_what_is_not_there() -> None:
    source = np.random.default_rng(0)
    with tiny(places=4, layers=2, buffers=6, workers=1) as made:
        run(made, 1, picked(0, 1))
        run(made, 0, step(source, 40, 2))
        ahead = sorted({offset for file, offset, ahead in made.disk.reads if ahead and file == 1})

        assert made.store.stats().guessed == 3
        told = step(source, 40, 2)
        made.slots[1].filled.clear()
        assert torch.equal(run(made, 1, told), made.resident(1, *told))
        assert made.store.stats().right == 3
        # They are there, so they are computed before anything that has to be waited for.
        assert set(list(made.slots[1].filled)[:3]) == {2, 3, 4}

    assert ahead == starts(made, 1, 2, 3, 4)


def test_an_expert_that_cannot_be_read_is_named_and_the_next_step_works() -> None:
    with tiny(places=4) as made:
        made.disk.failing = {made.slots[0].extents(5)[0].offset // ALIGNMENT * ALIGNMENT}

        with pytest.raises(DiskReadError) as caught:
            run(made, 0, picked(5, 1))

        made.disk.failing = set()
        assert 5 not in made.layers[0].places
        told = picked(5, 1)
        assert torch.equal(run(made, 0, told), made.resident(0, *told))
    assert caught.value.tensor == "layers.0.experts.5"
    assert caught.value.offset == made.slots[0].extents(5)[0].offset // ALIGNMENT * ALIGNMENT


def test_a_read_that_cannot_be_begun_is_named_and_takes_no_buffer_with_it() -> None:
    with tiny(places=4, buffers=2) as made:
        made.disk.refused = {*starts(made, 0, 5)}
        for _ in range(3):
            with pytest.raises(DiskReadError, match="refused") as caught:
                run(made, 0, picked(5, 1))
            assert caught.value.tensor == "layers.0.experts.5"

        made.disk.refused = set()
        with made.disk.holding():
            before = made.disk.needed
            finish = made.layers[0].begin(*picked(5, 6), torch.zeros(1, dtype=torch.int64))
            begun = made.disk.needed - before
        assert torch.equal(finish(), made.resident(0, *picked(5, 6)))
    assert begun == 2 * 2


def test_a_guess_that_cannot_be_read_fails_no_step_that_does_not_need_it() -> None:
    guesses = {1: lambda x, tokens: torch.tensor([[5, 6]])}
    with tiny(places=4, layers=2, buffers=4, guesses=guesses) as made:
        made.disk.refused = {*starts(made, 1, 5)}
        for told in (picked(0, 1), picked(2, 3)):
            assert torch.equal(run(made, 0, told), made.resident(0, *told))
            assert torch.equal(run(made, 1, told), made.resident(1, *told))

        run(made, 0, picked(0, 1))
        with pytest.raises(DiskReadError, match=r"layers\.1\.experts\.5"):
            run(made, 1, picked(5, 6))


def test_nothing_is_guessed_of_a_layer_that_has_all_its_experts() -> None:
    asked = []

    def guess(x: Tensor, tokens: Tensor) -> Tensor:
        asked.append(x)
        return torch.tensor([[4, 5]])

    with tiny(places=8, layers=2, top=4, guesses={1: guess}) as made:
        for experts in ((0, 1, 2, 3), (4, 5, 6, 7), (0, 1, 2, 3)):
            run(made, 0, picked(*experts))
            run(made, 1, picked(*experts))

    assert len(asked) == 2


def test_an_expert_that_cannot_be_decoded_does_not_count_as_there() -> None:
    with tiny(places=3, top=3) as made:
        run(made, 0, picked(0, 1, 2))
        made.slots[0].failing = {5}

        with pytest.raises(RuntimeError, match="expert 5"):
            run(made, 0, picked(5, 1, 6))

        made.slots[0].failing = set()
        assert 5 not in made.layers[0].places
        for told in (picked(5, 6, 0), picked(2, 1, 7)):
            assert torch.equal(run(made, 0, told), made.resident(0, *told))


def test_a_step_is_ended_while_the_disk_does_not_answer_and_the_next_one_works() -> None:
    patience: int | None = None

    def interrupt() -> None:
        nonlocal patience
        if patience is not None:
            patience -= 1
            if not patience:
                raise ForwardAborted

    source = np.random.default_rng(0)
    told = step(source, 20, 4)
    with tiny(places=4, top=4, buffers=3, interrupt=interrupt) as made:
        run(made, 0, picked(0, 1, 2, 3))
        patience = 2
        with made.disk.holding():
            with pytest.raises(ForwardAborted):
                run(made, 0, told)
            # What is still read into its buffers must not show in what comes next.
            assert set(made.layers[0].places.held) <= {0, 1, 2, 3}

        patience = None
        assert torch.equal(run(made, 0, told), made.resident(0, *told))


def test_buffers_of_an_ended_step_stay_taken_until_their_reads_have_ended() -> None:
    raising = True

    def interrupt() -> None:
        if raising:
            raise ForwardAborted

    with tiny(places=4, buffers=2, interrupt=interrupt) as made:
        with made.disk.holding():
            with pytest.raises(ForwardAborted):
                run(made, 0, picked(0, 1))
            raising = False
            finish = made.layers[0].begin(*picked(2, 3), torch.zeros(1, dtype=torch.int64))
            begun = made.disk.needed
        found = finish()

        assert begun == 2 * 2
        assert torch.equal(found, made.resident(0, *picked(2, 3)))


def test_a_disk_that_stalls_ends_every_step_until_it_answers() -> None:
    with tiny(places=4, buffers=2) as made:
        made.disk.stalls = True
        with made.disk.holding():
            for experts in ((0, 1), (2, 3), (2, 3)):
                with pytest.raises(DiskReadError, match=r"layers\.0\.experts\.\d"):
                    run(made, 0, picked(*experts))
            begun = made.disk.needed
        made.disk.stalls = False

        told = picked(2, 3)
        assert torch.equal(run(made, 0, told), made.resident(0, *told))

    # Memory that the disk may yet write to was not used again.
    assert begun == 2 * 2


def test_a_step_that_nobody_finished_leaves_nothing_behind() -> None:
    with tiny(places=4) as made:
        with made.disk.holding():
            made.layers[0].begin(*picked(0, 1), torch.zeros(1, dtype=torch.int64))

        told = picked(1, 2)
        assert torch.equal(run(made, 0, told), made.resident(0, *told))


def test_a_cache_shrinks_once_when_memory_is_short_and_the_text_goes_on() -> None:
    source = np.random.default_rng(0)
    with tiny(places=8, layers=2, pressure=lambda: "no memory is left") as made:
        for _ in range(12):
            for at in range(2):
                told = step(source, 1, 2)
                assert torch.equal(run(made, at, told), made.resident(at, *told))

        stats = made.store.stats()

    assert [layer.places.count for layer in made.layers] == [6, 6]
    assert stats.memory == {"ram": 2 * 6 * 100}
    assert stats.notes == (
        "no memory is left: the expert cache shrank from 16 to 12 experts, by 400 bytes",
    )


def test_staging_memory_that_holds_no_expert_is_refused_with_the_bytes_needed() -> None:
    with (
        pytest.raises(UsageError, match=r"hold no expert: one takes \d+"),
        tiny(places=2, buffers=0),
    ):
        raise AssertionError("it was taken")


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 10**6), st.integers(1, 50_000)), max_size=3
    )
)
def test_extents_lie_in_a_buffer_as_whole_pages_one_behind_another(
    told: list[tuple[int, int, int]],
) -> None:
    extents = tuple(Extent(*each) for each in told)

    laid = layout(extents)

    rows = zip(extents, laid.requests.offsets, laid.requests.lengths, laid.requests.places,
               laid.starts, strict=True)  # fmt: skip
    end = 0
    for extent, offset, length, place, start in rows:
        assert offset % ALIGNMENT == length % ALIGNMENT == 0
        assert place == end
        assert offset <= extent.offset < offset + ALIGNMENT
        assert extent.offset + extent.length <= offset + length
        assert start - place == extent.offset - offset
        end = place + length
