"""What a plan predicts of a token, term by term, beside what a runner measured of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrun.cli.comparison import (
    Compared,
    Hits,
    compared,
    computing,
    expert_lines,
    held,
    hits,
    lines,
    middle,
    spent,
)
from localrun.engine.runner import ExpertUse, RunnerStats
from localrun.plan.plan import (
    Budget,
    Execution,
    PlannedMachine,
    PlannedTier,
    Prediction,
)
from localrun.plan.rooms import SIMULATED
from tests.plans import bare_plan

PREDICTED = Prediction(
    terms_ms={
        "ram dense": 4.0,
        "ram launches": 0.5,
        "ram kv": 0.25,
        "ram experts": 2.0,
        "disk": 3.0,
        "handover": 0.125,
        "step": 0.1,
        "hidden behind computing": -1.0,
    },
    terms_bytes={"ram dense": 1000, "ram kv": 24, "ram experts": 500, "disk": 700},
)


def stats(tokens: int, **seconds: float) -> RunnerStats:
    terms = {name.replace("_", " "): each for name, each in seconds.items()}
    return RunnerStats({}, {}, tokens, terms_s=terms)


def terms(measured: RunnerStats, told: Prediction = PREDICTED) -> dict[str, tuple[object, ...]]:
    found = compared(told, spent(stats(0), measured, measured.tokens), 0.2)
    return {each.term: (each.predicted_ms, each.measured_ms) for each in found}


def test_what_is_measured_together_is_predicted_together() -> None:
    found = terms(stats(10, ram_dense=0.05, ram_experts=0.03, disk=0.02))

    assert found == {
        "ram dense": (4.75, 5.0),
        "ram experts": (2.0, 3.0),
        "disk": (2.0, 2.0),
        "handover": (0.125, None),
        "step": (0.1, 0.2),
    }


def test_what_is_measured_apart_stays_apart() -> None:
    found = terms(stats(10, ram_dense=0.05, ram_kv=0.01, ram_launches=0.02))

    assert found["ram dense"] == (4.0, 5.0)
    assert found["ram kv"] == (0.25, 1.0)
    assert found["ram launches"] == (0.5, 2.0)
    # Nobody waited for a disk: what was to be hidden is hidden from nothing.
    assert found["disk"] == (3.0, None)
    assert found["hidden behind computing"] == (-1.0, None)


def test_bytes_are_joined_as_times_are() -> None:
    after = replace(stats(10, ram_dense=0.05), terms_bytes={"ram dense": 9990, "n-gram rows": 5})

    found = {each.term: each for each in compared(PREDICTED, spent(stats(0), after, 10), 0.2)}

    dense, rows = found["ram dense"], found["n-gram rows"]
    assert (dense.predicted_bytes, dense.measured_bytes) == (1024, 999)
    assert (rows.predicted_bytes, rows.measured_bytes) == (None, 0)


KINDS = st.sampled_from([*PREDICTED.terms_ms, "vram:0 dense", "vram:0 launches", "n-gram rows"])
TIMES = st.dictionaries(KINDS, st.floats(-5, 50))


@given(TIMES, TIMES)
def test_joining_loses_no_predicted_time(told: dict[str, float], seconds: dict[str, float]) -> None:
    after = RunnerStats({}, {}, 1, terms_s=seconds)

    found = compared(Prediction(terms_ms=told), spent(stats(0), after, 1), 0.0)

    assert sum(each.predicted_ms or 0.0 for each in found) == pytest.approx(sum(told.values()))
    assert {*told, *seconds} >= {each.term for each in found} - {"step"}
    assert all(any(each.term == name for each in found) for name in seconds)


def test_a_line_says_what_was_measured_first_and_what_nobody_measured() -> None:
    after = replace(stats(10, ram_dense=0.05, disk=0.02), terms_bytes={"ram dense": 9990})

    said = list(lines(compared(PREDICTED, spent(stats(0), after, 10), 0.2)))

    assert said[0] == "ram dense      5.00 ms, 4.75 ms predicted; 999 B, 1.0 KB predicted"
    assert any(line.startswith("handover") and "not measured, 0.12 ms predicted" in line
               for line in said)  # fmt: skip


def test_what_a_tier_computes_is_added_up_on_both_sides() -> None:
    """Kernels are started in every term, and predicted in none of those that are measured."""
    after = stats(10, ram_dense=0.05, ram_kv=0.01, ram_experts=0.03, disk=0.02)

    found = compared(PREDICTED, spent(stats(0), after, 10), 0.2)

    assert computing(found) == [Compared("ram computing", 6.75, 9.0, 1524, None)]
    assert "ram computing  9.00 ms, 6.75 ms predicted" in [*lines(found)][-1]
    assert computing([each for each in found if each.measured_ms is None]) == []


def test_of_several_runs_the_middle_counts_term_by_term() -> None:
    runs = [spent(stats(0), stats(2, a=2 * a, b=2 * b), 2) for a, b in ((1, 9), (5, 8), (2, 7))]

    found = middle(runs)

    assert found.seconds == {"a": 2, "b": 8}
    assert found.tokens == 6


def test_shares_of_experts_are_told_by_tier_the_fastest_first() -> None:
    def used(*picks: int) -> RunnerStats:
        tiers = ("disk", "ram", "vram:0")
        uses = (ExpertUse(count, 10 * count) for count in picks)
        return replace(stats(0), experts=dict(zip(tiers, uses, strict=True)))

    found = hits(spent(used(100, 0, 5), used(120, 30, 55), 10))

    assert found == [Hits("vram:0", 5.0, 0.5), Hits("ram", 3.0, 0.3), Hits("disk", 2.0, 0.2)]
    assert list(expert_lines(found, 4.0, 3.0)) == [
        "of 10.0 experts a token: 50.0% in vram:0, 30.0% in ram, 20.0% in disk",
        "read ahead 4.0 experts a token, 75% of them needed",
    ]
    assert list(expert_lines([], 0.0, 0.0)) == []
    assert hits(spent(used(1, 1, 1), used(1, 1, 1), 10)) == hits(spent(stats(0), stats(5), 5)) == []


def test_memory_is_told_of_each_tier_that_holds_or_was_to_hold_something() -> None:
    execution = Execution(512, 512, "f16", 1, 1, False, 0)
    plan = replace(
        bare_plan(execution),
        machine=PlannedMachine(tiers=(
            PlannedTier("vram:0", 9, 9, 1.0, "measured", SIMULATED),
            PlannedTier("ram", 9, 9, 1.0, "measured"),
        )),
        budgets=(
            Budget("vram:0", 10, 2, 3, 99, expert_cache=30),
            Budget("ram", 5, 0, 0, 99, expert_cache=7, overhead=4),
            Budget("vram:1", 1, 0, 0, 99),
            Budget("vram:2", 0, 0, 0, 99),
            Budget("disk", 1000, 0, 0, 9999),
        ),
    )  # fmt: skip
    now = RunnerStats(
        {"vram:0": 44, "unified": 1},
        {},
        0,
        memory_parts={"vram:0": {"weights": 39, "kv": 2, "compute": 2, "output": 1}},
    )

    found = {each["tier"]: each for each in held(plan, now)}

    assert found.keys() == {"vram:0", "unified", "ram", "vram:1"}
    assert found["vram:0"] == {
        "tier": "vram:0",
        "simulated": True,
        "planned": 45,
        "measured": 44,
        "parts": {
            "weights": {"planned": 40, "measured": 39},
            "kv": {"planned": 2, "measured": 2},
            "compute": {"planned": 3, "measured": 3},
        },
    }
    assert (found["ram"]["planned"], found["ram"]["measured"]) == (12, None)
    assert (found["unified"]["planned"], found["unified"]["measured"]) == (None, 1)
    assert not found["ram"]["simulated"]
