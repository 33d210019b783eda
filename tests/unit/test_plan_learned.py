"""What earlier runs taught: speeds move to what was measured, bands narrow, hits follow counts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localrun.plan.constants import BANDS, LEAST_BAND
from localrun.plan.hits import TYPICAL_SKEW, Picking, hit_rate, picked
from localrun.plan.learned import Learned, Residual
from localrun.plan.plan import Plan, PlanRequest
from localrun.plan.planner import plan
from localrun.plan.search import search
from tests.planned import assert_sound, machine_of, source, spec_of

DESKTOP = "rtx-4090+ddr5-6000x2:128+nvme4"
CPU = "cpu:16+ddr5-5600x2:64+nvme4"
STREAMED = "deepseek-v4.1-flash"
COUNT, USED = 384, 6
ratios, spreads = st.floats(0.2, 5), st.floats(0, 2)


def made(model: str, machine: str, learned: Learned, *, explore: bool = False) -> Plan:
    spec = spec_of(model)
    told = replace(source("torch"), learned=learned)
    found = plan(spec, machine_of(machine), PlanRequest(), told, explore=explore)
    assert_sound(found, spec)
    return found


@settings(max_examples=25, deadline=None, derandomize=True)
@given(ratios, spreads, ratios, spreads)
def test_times_are_as_many_times_longer_as_runs_were(
    slower: float, spread: float, prompts: float, prompts_spread: float
) -> None:
    learned = Learned(Residual(slower, spread, 3), Residual(prompts, prompts_spread, 2))
    bare = made("qwen3-0.6b", CPU, Learned()).prediction
    found = made("qwen3-0.6b", CPU, learned).prediction

    assert found.decode_tps.mid * slower == pytest.approx(bare.decode_tps.mid, rel=1e-3)
    assert found.prefill_tps.mid * prompts == pytest.approx(bare.prefill_tps.mid, rel=1e-3)
    band = found.decode_tps.high / found.decode_tps.mid - 1
    least = max(LEAST_BAND, BANDS["cpu"] / 4)  # of three runs
    assert band == pytest.approx(max(least, spread, min(BANDS["cpu"], 2 * spread)), abs=1e-3)
    assert found.runs == 3
    assert bare.runs == 0


def test_a_second_run_has_a_narrower_band_that_says_what_it_rests_on() -> None:
    first = made(STREAMED, DESKTOP, Learned())
    second = made(STREAMED, DESKTOP, Learned(decode=Residual(1.2, 0.03, 2)))

    def width(found: Plan) -> float:
        return found.prediction.cold.high / found.prediction.cold.low

    assert width(second) < width(first)
    assert "as 2 runs here showed" in second.verdict
    assert "showed" not in first.verdict


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 20), st.floats(0, 0.3))
def test_each_further_run_that_lies_as_near_makes_the_band_no_wider(
    count: int, spread: float
) -> None:
    def width(runs: int, apart: float) -> float:
        told = made("qwen3-0.6b", CPU, Learned(decode=Residual(1.5, apart, runs))).prediction
        return told.decode_tps.high / told.decode_tps.mid - 1

    unknown = made("qwen3-0.6b", CPU, Learned()).prediction.decode_tps
    assert width(count + 1, spread) <= width(count, spread) + 1e-4
    assert width(count, 0.0) < unknown.high / unknown.mid - 1
    assert width(1, 0.0) == pytest.approx(max(LEAST_BAND, BANDS["cpu"] / 2), abs=1e-3)


def test_what_else_would_be_faster_is_told_in_the_same_measure() -> None:
    learned = Learned(decode=Residual(2.0, 0.0, 1))
    bare, found = (made(STREAMED, DESKTOP, each, explore=True) for each in (Learned(), learned))

    assert {each.change for each in bare.what_if} == {each.change for each in found.what_if}
    for before, after in zip(bare.what_if, found.what_if, strict=True):
        assert after.decode_tps * 2 == pytest.approx(before.decode_tps, abs=2e-3)


def test_a_choice_does_not_depend_on_how_far_speeds_were_off() -> None:
    learned = Learned(decode=Residual(3.0, 0.0, 1), prefill=Residual(0.3, 0.0, 1))
    for model in (STREAMED, "deepseek-v2-lite"):
        bare, found = (made(model, DESKTOP, each) for each in (Learned(), learned))
        assert found.execution == bare.execution


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(0.3, 2.2), st.integers(0, COUNT), st.integers(0, COUNT))
def test_counted_picks_are_the_curve_and_more_slots_find_no_less(
    skew: float, few: int, more: int
) -> None:
    """Counts of a router of a skew give what that skew does."""
    counted = picked(COUNT, USED, skew)
    picking = Picking(TYPICAL_SKEW, counted)
    few, more = sorted((few, more))

    assert math.isclose(
        picking.hits(few, COUNT, USED), hit_rate(few, COUNT, USED, skew), abs_tol=0.01
    )
    assert picking.hits(few, COUNT, USED) <= picking.hits(more, COUNT, USED) + 1e-6
    assert Picking(0.9, counted).hits(few, COUNT, USED) <= picking.hits(few, COUNT, USED) + 0.02


def test_counts_of_a_steeper_router_make_a_streaming_plan_faster() -> None:
    flat, steep = (made(STREAMED, DESKTOP, Learned(picks=picked(COUNT, USED, s))) for s in (0.5, 2))
    bare = made(STREAMED, DESKTOP, Learned())

    speeds = [each.prediction.decode_tps.mid for each in (flat, bare, steep)]
    assert speeds == sorted(speeds)
    assert speeds[0] < speeds[2]
    for each in (flat, steep):
        assert each.prediction.cold.mid < each.prediction.steady.mid


def test_counts_of_other_layers_are_not_used() -> None:
    other = made(STREAMED, DESKTOP, Learned(picks=picked(64, 8, 2.0)))
    assert other.prediction == made(STREAMED, DESKTOP, Learned()).prediction


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.floats(0.5, 2.0), st.integers(60, 200), st.integers(0, 64))
def test_more_memory_is_never_slower_whatever_was_counted(skew: float, size: int, add: int) -> None:
    spec, machine = spec_of(STREAMED), machine_of(DESKTOP)
    told = replace(source("torch"), learned=Learned(picks=picked(COUNT, USED, skew)))
    found = [
        search(spec, machine, PlanRequest(n_ctx=8192, ram_bytes=each << 30), told)[0]
        for each in (size, size + add)
    ]
    if found[0] is not None:
        assert found[1] is not None
        assert found[1].seconds <= found[0].seconds * (1 + 1e-6)
