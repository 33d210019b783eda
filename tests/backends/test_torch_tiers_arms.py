"""Experts in two memories, computed by both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from localrun.backends.tiers.places import Places
from localrun.backends.torch.tiers.arms import Arms
from localrun.disk.staged import Stage
from tests.fake_experts import FakeSlots, tiny

COUNT, WIDTH = 8, 3


def step(source: np.random.Generator, tokens: int, top: int) -> tuple[Tensor, Tensor, Tensor]:
    chosen = np.stack([source.permutation(COUNT)[:top] for _ in range(tokens)])
    x, weights = source.normal(size=(tokens, WIDTH)), source.uniform(0.1, 1, (tokens, top))
    return (
        torch.from_numpy(x.astype("<f4")),
        torch.from_numpy(chosen),
        torch.from_numpy(weights.astype("<f4")),
    )


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**32),
    tokens=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    top=st.integers(1, 4),
    places=st.integers(2, 8),
    buffers=st.integers(1, 5),
    data=st.data(),
)
def test_both_arms_together_give_what_one_memory_gives(
    seed: int, tokens: list[int], top: int, places: int, buffers: int, data: st.DataObject
) -> None:
    source = np.random.default_rng(seed)
    card = data.draw(st.integers(1, places - 1))
    with tiny(places=places, top=top, card=card, apart=True, buffers=buffers) as made:
        for count in tokens:
            told = step(source, count, top)
            host, on_card = made.slots[0], made.slots[0].also
            assert on_card is not None
            host.calls.clear(), on_card.calls.clear()

            found = made.layers[0](*told)

            assert torch.equal(found, made.resident(0, *told))
            # All rows of an expert are one product of one arm.
            assert max((host.calls + on_card.calls).values()) == 1

        stats = made.store.stats()
    assert sum(use.picks for use in stats.experts.values()) == sum(tokens) * top
    assert stats.memory == {"vram:0": 100 * card, "ram": 100 * (places - card)}


class Timed(Arms):
    """Arms of known speeds."""

    def __init__(self, copy_s: float, row_s: float) -> None:
        stage = Stage()
        super().__init__(FakeSlots(stage, 0, COUNT, 2), FakeSlots(stage, 0, COUNT, 2))
        self._copy_s, self._row_s = copy_s, row_s


@pytest.mark.parametrize(
    ("copy_s", "rows", "uploaded"),
    [
        # One row of each is computed sooner than copied.
        (4.0, {1: 1, 2: 1, 3: 1}, set()),
        # Copying two takes as long as computing the rest.
        (1.0, {1: 1, 2: 1, 3: 1, 4: 1}, {1, 2}),
        # Those with most rows are worth it first.
        (5.0, {1: 1, 2: 9, 3: 2}, {2}),
        (0.0, {1: 1, 2: 1}, {1, 2}),
        (1.0, {}, set()),
    ],
)
def test_what_is_missing_goes_to_the_card_as_far_as_both_arms_finish_together(
    copy_s: float, rows: dict[int, int], uploaded: set[int]
) -> None:
    assert Timed(copy_s, 1.0).uploads(rows) == uploaded


def test_an_expert_takes_a_place_of_the_arm_that_it_is_to_lie_in() -> None:
    places = Places(4, card=2, apart=True)
    for expert, on_card in ((0, False), (1, True), (2, True), (3, False)):
        places.acquire([expert], {expert} if on_card else ())
        places.arrived(expert)
        places.let_go([expert])

    first = places.acquire([5], {5})
    second = places.acquire([6])

    # The least recently used of that arm, not of all.
    assert first.misses == {5: 0}
    assert second.misses == {6: 2}
    assert set(places.held) == {2, 3}


def test_an_arm_without_a_place_to_give_leaves_the_other_one() -> None:
    places = Places(3, card=1, apart=True)

    acquired = places.acquire([0, 1, 2, 3], {0, 1})

    assert acquired.misses == {0: 0, 1: 1, 2: 2}
    assert acquired.left == (3,)
