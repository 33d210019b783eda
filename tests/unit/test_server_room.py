"""What memory is left beside loaded models, counted so that no byte is promised twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrun.errors import DoesNotFitError, MemoryInUseError
from localrun.server.room import Holding, Tenant, left, make_room, taken
from tests.loads import FakeMemory

SIZES = st.integers(0, 20)


def holding(promised: int, took: int) -> Holding:
    return Holding({"ram": promised}, {"ram": took})


LEFT: dict[str, tuple[int, list[Holding], list[Holding], int]] = {
    "nothing loaded": (10, [], [], 10),
    "all taken": (4, [holding(6, 6)], [holding(6, 6)], 4),
    "mapped weights stay available to the system": (
        10,
        [holding(6, 0)],
        [holding(6, 0)],
        4,
    ),
    "part of it mapped": (8, [holding(6, 2)], [holding(6, 2)], 4),
    "one that goes gives back what it took": (4, [holding(6, 6)], [], 10),
    "one that goes gives back no more": (8, [holding(6, 2)], [], 10),
    "other programs count": (1, [holding(6, 6)], [holding(6, 6)], 1),
    "less than nothing is nothing": (2, [holding(6, 0)], [holding(6, 0)], 0),
}


@pytest.mark.parametrize(
    ("available", "loaded", "staying", "expected"), LEFT.values(), ids=LEFT.keys()
)
def test_what_is_left_beside_those_that_stay(
    available: int, loaded: list[Holding], staying: list[Holding], expected: int
) -> None:
    assert left({"ram": available}, loaded, staying) == {"ram": expected}


def test_tiers_are_counted_apart() -> None:
    both = Holding({"vram:0": 5, "ram": 2}, {"vram:0": 5, "ram": 1})

    assert left({"vram:0": 3, "vram:1": 8, "ram": 9}, [both], [both]) == {
        "vram:0": 3,
        "vram:1": 8,
        "ram": 8,
    }


def test_a_load_took_what_is_gone_but_no_more_than_its_promise() -> None:
    promised = {"ram": 6, "vram:0": 4, "vram:1": 1}
    before, after = {"ram": 20, "vram:0": 9, "vram:1": 5}, {"ram": 3, "vram:0": 7, "vram:1": 6}

    assert taken(before, after, promised) == {"ram": 6, "vram:0": 2, "vram:1": 0}


@given(
    capacity=st.integers(1, 40),
    sizes=st.lists(SIZES, min_size=1, max_size=6),
    mapped=SIZES,
    data=st.data(),
)
def test_room_is_made_by_idle_models_alone_no_more_than_needed_and_never_beyond_the_memory(
    capacity: int, sizes: list[int], mapped: int, data: st.DataObject
) -> None:
    *others, last = (str(at) for at in range(len(sizes)))
    memory = FakeMemory(capacity, dict(zip((*others, last), sizes, strict=True)), mapped=mapped)
    tenants = []
    for used, name in enumerate(others):
        size = memory.sizes[name]
        if size + sum(each.holding.promised["ram"] for each in tenants) > capacity:
            continue
        took = max(0, size - mapped)
        memory.taken[name] = took
        requests = data.draw(st.integers(0, 1), label=f"requests of {name}")
        tenants.append(Tenant(name, holding(size, took), requests, used))
    size = memory.sizes[last]
    stay = sum(each.holding.promised["ram"] for each in tenants if each.requests)

    if size > capacity:
        with pytest.raises(DoesNotFitError) as never:
            make_room(memory(last), last, tenants)
        assert not isinstance(never.value, MemoryInUseError)
    elif size + stay > capacity:
        with pytest.raises(MemoryInUseError):
            make_room(memory(last), last, tenants)
    else:
        _, gone = make_room(memory(last), last, tenants)
        idle = [each for each in tenants if not each.requests]
        assert gone == tuple(each.name for each in idle[: len(gone)])
        rest = [each.holding.promised["ram"] for each in tenants if each.name not in gone]
        assert size + sum(rest) <= capacity
        if gone:
            assert size + sum(rest) + memory.sizes[gone[-1]] > capacity
