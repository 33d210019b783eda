"""More of a machine is never worse, and more of a context never costs less."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localrun.errors import DoesNotFitError
from localrun.hardware.machine import Machine, Tier
from localrun.models.spec import ModelSpec
from localrun.plan.plan import PlanRequest, Workload
from localrun.plan.planner import plan
from localrun.plan.search import search
from tests.planned import GIB, machine_of, planned, source, spec_of
from tests.strategies import specs

# What speeds are told to, and floating point between them.
SAME = 1 + 1e-6
MODELS = (
    ("qwen3-8b", "Q4_K_M", "llama.cpp"),
    ("qwen3-30b-a3b", "Q4_K_M", "llama.cpp"),
    ("gpt-oss-120b", None, "llama.cpp"),
    ("deepseek-v2-lite", "Q4_K_M", "llama.cpp"),
    ("deepseek-v2-lite", None, "torch"),
    ("deepseek-v4-flash", None, "torch"),
    ("deepseek-v4.1-flash", None, "torch"),
)
MACHINES = (
    "rtx-3060-12gb+ddr5-6000x2:64",
    "rtx-4090+ddr4-3200x8:256",
    "2xrtx-3090+ddr5-5600x2:96",
    "rtx-4090+rtx-3060-12gb+ddr5-5600x2:96",
    "cpu:16+ddr5-5600x2:128",
    "m4-max-128",
)
ASKED = PlanRequest(n_ctx=8192)
cases = st.tuples(st.sampled_from(MODELS), st.sampled_from(MACHINES))


def seconds(
    spec: ModelSpec, machine: Machine, backend: str, request: PlanRequest = ASKED
) -> float | None:
    """Of the workload as the search weighs it; None where nothing fits."""
    found, _ = search(spec, machine, request, source(backend))
    return found.seconds if found else None


def changed(machine: Machine, kind: str, change: Callable[[Tier], Tier]) -> Machine:
    tiers = (change(tier) if tier.kind == kind else tier for tier in machine.tiers)
    return replace(machine, tiers=tuple(tiers))


def sized(machine: Machine, kind: str, size: int) -> Machine:
    return changed(
        machine, kind, lambda tier: replace(tier, capacity_bytes=size, usable_bytes=size)
    )


def faster(machine: Machine, kind: str, times: float) -> Machine:
    return changed(
        machine,
        kind,
        lambda tier: replace(tier, read=replace(tier.read, value=times * tier.read.value)),
    )


def assert_no_worse(before: float | None, after: float | None, tolerance: float = SAME) -> None:
    if before is not None:
        assert after is not None, "fitted with less"
        assert after <= before * tolerance


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    cases,
    st.sampled_from(["vram", "ram", "unified"]),
    st.integers(1, 200),
    st.integers(0, 99),
    st.tuples(st.floats(0.3, 3), st.floats(0.2, 4)),
    st.sampled_from([0, 64, 2048]),
)
def test_more_memory_is_never_slower_and_never_too_little(
    case: tuple[tuple[str, str | None, str], str],
    kind: str,
    size: int,
    more: int,
    speeds: tuple[float, float],
    prompt: int,
) -> None:
    (model, quant, backend), name = case
    spec, machine = spec_of(model, quant), machine_of(name)
    machine = faster(faster(machine, "vram", speeds[0]), "ram", speeds[1])
    asked = PlanRequest(n_ctx=8192, workload=Workload(prompt, 256))
    less = seconds(spec, sized(machine, kind, size * GIB), backend, asked)
    greater = seconds(spec, sized(machine, kind, (size + more) * GIB), backend, asked)
    assert_no_worse(less, greater)


def test_a_head_alone_on_a_small_card_is_better_than_layers_that_wait_for_the_host() -> None:
    """Each layer beside a cache in RAM costs a handover; the output layer costs none."""
    spec, machine = spec_of("qwen3-30b-a3b", "Q4_K_M"), machine_of("2xrtx-3090+ddr5-5600x2:96")
    asked = PlanRequest(n_ctx=32_768, workload=Workload(64, 256))
    quick = faster(machine, "ram", 1.76)
    small, larger = (
        seconds(spec, sized(quick, "vram", size * GIB), "llama.cpp", asked) for size in (1, 2)
    )
    assert_no_worse(small, larger)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(cases, st.sampled_from(["vram", "ram", "unified", "disk"]), st.floats(1.0, 20.0))
def test_more_bandwidth_is_never_slower(
    case: tuple[tuple[str, str | None, str], str], kind: str, times: float
) -> None:
    (model, quant, backend), name = case
    spec, machine = spec_of(model, quant), machine_of(name)
    assert_no_worse(
        seconds(spec, machine, backend), seconds(spec, faster(machine, kind, times), backend)
    )


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    specs(largest=30),
    st.sampled_from(MACHINES),
    st.sampled_from(["llama.cpp", "torch"]),
    st.sampled_from(["vram", "ram", "unified"]),
    st.integers(0, 40_000),
    st.integers(0, 10_000),
)
def test_more_memory_never_turns_any_model_away(
    spec: ModelSpec, name: str, backend: str, kind: str, size: int, more: int
) -> None:
    machine, step = machine_of(name), 1 << 20
    less = seconds(spec, sized(machine, kind, size * step), backend)
    if less is not None:
        assert seconds(spec, sized(machine, kind, (size + more) * step), backend) is not None


@pytest.mark.parametrize("name", ["2xrtx-3090+ddr5-5600x2:96", "rtx-4090+ddr5-5600x2:96"])
def test_one_card_more_is_never_slower(name: str) -> None:
    machine = machine_of(name)
    cards = [tier for tier in machine.tiers if tier.kind == "vram"]
    another = replace(cards[-1], name=f"vram:{len(cards)}")
    more = replace(machine, tiers=(*cards, another, *machine.tiers[len(cards) :]))
    for model, quant, backend in MODELS:
        spec = spec_of(model, quant)
        assert_no_worse(seconds(spec, machine, backend), seconds(spec, more, backend))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases, st.integers(600, 60_000), st.integers(1, 60_000))
def test_a_longer_context_never_takes_less_memory_and_never_decodes_faster(
    case: tuple[tuple[str, str | None, str], str], n_ctx: int, more: int
) -> None:
    (model, quant, backend), name = case
    spec, machine = spec_of(model, quant), machine_of(name)
    flow = Workload(prompt=200, output=300)
    shorter, longer = (
        PlanRequest(n_ctx=length, workload=flow, ubatch=128) for length in (n_ctx, n_ctx + more)
    )
    assert_no_worse(
        seconds(spec, machine, backend, longer), seconds(spec, machine, backend, shorter)
    )
    try:
        less, greater = (
            plan(spec, machine, request, source(backend)) for request in (shorter, longer)
        )
    except DoesNotFitError:
        return
    assert sum(b.kv for b in less.budgets) <= sum(b.kv for b in greater.budgets)


def test_a_deeper_conversation_decodes_slower() -> None:
    speeds = [
        planned(
            "qwen3-8b",
            "rtx-4090+ddr5-5600x2:96",
            PlanRequest(n_ctx=32_768, workload=Workload(64, 64, depth)),
            quant="Q4_K_M",
        ).prediction.decode_tps.mid
        for depth in (0, 8000, 30_000)
    ]
    assert speeds == sorted(speeds, reverse=True)
    assert speeds[0] > 1.2 * speeds[-1]
