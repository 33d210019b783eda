"""Which experts of a layer keep their places."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from localrun.backends.tiers.places import Places

COUNT = 10
GROUPS = st.lists(st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=4, unique=True))


class Model:
    """LRU as a list, the least recently used first; what a group needs is not given up for it."""

    def __init__(self, count: int) -> None:
        self.count, self.order = count, list[int]()

    def use(self, group: list[int]) -> set[int]:
        """The hits."""
        hits = set(group) & set(self.order)
        for expert in group:
            if expert in self.order:
                self.order.remove(expert)
            elif len(self.order) == self.count:
                self.order.remove(next(each for each in self.order if each not in hits))
            hits.add(expert)
            self.order.append(expert)
        return hits


def used(places: Places, group: list[int]) -> set[int]:
    acquired = places.acquire(group)
    for expert in acquired.misses:
        places.arrived(expert)
    places.let_go(group)
    assert not acquired.left
    return set(acquired.hits)


@given(GROUPS, st.integers(4, COUNT))
def test_places_hold_what_a_plain_lru_of_as_many_holds(groups: list[list[int]], count: int) -> None:
    places, model = Places(count), Model(count)

    for group in groups:
        before = set(model.order)
        model.use(group)

        assert used(places, group) == before & set(group)
        assert list(places.held) == model.order


@given(GROUPS, st.integers(4, COUNT), st.integers(0, COUNT))
@example([[0], [1], [0], [2], [0]], 4, 2)
def test_what_belongs_on_devices_is_what_a_smaller_lru_would_hold(
    groups: list[list[int]], count: int, card: int
) -> None:
    places = Places(count, card)

    for group in groups:
        recent = places.held[max(0, len(places.held) - places.card) :] if places.card else ()
        acquired = places.acquire(group)
        for expert in acquired.misses:
            places.arrived(expert)
        places.let_go(group)

        assert acquired.near == set(group) & set(recent)


@given(st.data(), st.integers(1, 5))
def test_no_two_experts_share_a_place_and_no_needed_one_loses_its_own(
    data: st.DataObject, count: int
) -> None:
    places = Places(count, data.draw(st.integers(0, count)))
    needed: dict[int, int] = {}
    for _ in range(data.draw(st.integers(1, 30))):
        what = data.draw(st.sampled_from(["acquire", "arrive", "let go", "drop", "abandon"]))
        expert = data.draw(st.integers(0, COUNT - 1))
        if what == "acquire" and expert not in needed:
            found = places.acquire([expert])
            needed |= found.hits | found.misses
            assert found.left == ((expert,) if expert not in needed else ())
            assert not found.left or len(needed) == count
        elif what == "arrive":
            places.arrived(expert)
        elif what == "let go" and expert in places:
            places.let_go([expert])
            needed.pop(expert, None)
        elif what == "drop" and expert in needed:
            places.drop(expert)
            del needed[expert]
        elif what == "abandon":
            places.abandon()
            needed = {}
        assert len(set(needed.values())) == len(needed)
        assert set(needed.values()) <= set(range(count))
        assert len(places.held) <= count


def test_what_has_not_arrived_is_not_there() -> None:
    places = Places(2)

    places.acquire([3])

    assert 3 not in places
    assert places.held == ()


def test_what_does_not_arrive_leaves_its_place_to_others() -> None:
    places = Places(2)
    places.acquire([3, 4])

    places.arrived(4)
    places.abandon()

    assert places.held == (4,)
    assert places.acquire([5]).misses == {5: 0}


def test_places_that_are_taken_away_lose_what_lies_in_them() -> None:
    places = Places(4, card=3)
    used(places, [0, 1, 2, 3])

    places.shrink(2)

    assert places.held == (0, 1)
    assert places.count == places.card == 2
    assert used(places, [5]) == set()
    assert places.held == (1, 5)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_more_than_there_are_places_for_are_left_in_their_order(count: int) -> None:
    places = Places(count)

    acquired = places.acquire([7, 5, 3, 1])

    assert acquired.left == (7, 5, 3, 1)[count:]
