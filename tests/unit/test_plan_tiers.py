"""Experts and n-gram tables between VRAM, RAM and disk."""

from __future__ import annotations

from dataclasses import replace

import pytest

from localrun.errors import DoesNotFitError
from localrun.hardware.machine import Machine
from localrun.plan.plan import Plan, PlanRequest
from localrun.plan.planner import plan
from tests.planned import GIB, assert_sound, machine_of, planned, source, spec_of

DESKTOP = "rtx-4090+ddr5-6000x2:128+nvme4"
BIG = "rtx-4090+ddr5-6000x8:768+nvme4"
# One expert of DeepSeek-V4.1-Flash's release: 40 layers of 384, 6 a token.
EXPERT, LAYERS, COUNT, USED = 18_800_640, 40, 384, 6


def held(made: Plan, group: str) -> dict[str, int]:
    return {item.tier: item.bytes for item in made.placements if item.group == group}


def with_ram(machine: Machine, size: int) -> Machine:
    tiers = (
        replace(tier, capacity_bytes=size, usable_bytes=size) if tier.kind == "ram" else tier
        for tier in machine.tiers
    )
    return replace(machine, tiers=tuple(tiers))


def test_the_largest_model_on_a_desktop_streams_its_experts_and_reads_its_tables() -> None:
    spec = spec_of("deepseek-v4.1-flash")
    made = planned("deepseek-v4.1-flash", DESKTOP, backend="torch")

    assert_sound(made, spec)
    tables = sum(group.bytes for group in spec.of("engram"))
    assert held(made, "engram") == {"disk": tables}
    assert made.execution.engram == "disk"
    assert (made.engram.tier, made.engram.rows_per_token) == ("disk", 48)
    assert made.engram.bytes_per_token == 12_672
    for dense in ("attention", "shared_experts", "router", "head"):
        assert set(held(made, dense)) == {"vram:0"}
    assert set(held(made, "experts")) == {"vram:0", "ram", "disk"}
    assert made.prediction.bound_by == "disk"
    assert "disk" in made.verdict
    slots = made.execution.slots_per_layer
    assert USED < slots < COUNT
    kept = [i.count for i in made.placements if i.group == "experts" and i.tier != "disk"]
    assert sum(kept) == slots * LAYERS


def test_tables_stay_out_of_memory_while_experts_want_it_and_out_of_vram_always() -> None:
    tight = planned("deepseek-v4.1-flash", DESKTOP, backend="torch")
    roomy = planned("deepseek-v4.1-flash", BIG, backend="torch")

    assert set(held(tight, "engram")) == {"disk"}
    assert "vram:0" not in held(roomy, "engram")
    assert "disk" not in held(roomy, "experts")


def test_experts_that_memory_holds_are_not_streamed() -> None:
    made = planned("deepseek-v4-flash", "rtx-4090+ddr5-6000x8:512+nvme4", backend="torch")
    assert made.execution.slots_per_layer == 256
    assert set(held(made, "experts")) == {"vram:0", "ram"}
    assert "disk" not in made.prediction.terms_ms


def test_a_cache_of_less_than_one_tokens_experts_is_refused() -> None:
    """Each pick would evict what the next token needs: such a cache finds nothing."""
    spec, machine = spec_of("deepseek-v4.1-flash"), machine_of(DESKTOP)
    expert = next(group.experts for group in spec.of("experts") if group.experts)
    slot = LAYERS * expert.bytes
    # Without a card, nothing else keeps experts.
    alone = PlanRequest(vram_bytes=0)
    for slots, fits in ((USED - 1, False), (USED, True)):
        asked = replace(alone, expert_cache_bytes=slots * slot + 1000)
        if fits:
            made = plan(spec, machine, asked, source("torch"))
            assert made.execution.slots_per_layer == USED
            continue
        with pytest.raises(DoesNotFitError) as caught:
            plan(spec, machine, asked, source("torch"))
        assert caught.value.shortfall == {"ram": slot}


def test_memory_that_leaves_no_room_for_one_tokens_experts_is_refused() -> None:
    spec, machine = spec_of("deepseek-v4.1-flash"), machine_of("cpu:16+ddr5-6000x2:128+nvme4")
    apart = ("experts", "engram", "draft", "vision")
    dense = sum(group.bytes for group in spec.groups if group.kind not in apart)
    with pytest.raises(DoesNotFitError):
        plan(spec, with_ram(machine, dense + 4 * GIB), PlanRequest(), source("torch"))
    made = plan(spec, with_ram(machine, dense + 10 * GIB), PlanRequest(), source("torch"))
    assert made.execution.slots_per_layer >= USED


def test_a_cache_beyond_usable_memory_is_refused() -> None:
    """A hit would become a page fault."""
    spec, machine = spec_of("deepseek-v4.1-flash"), machine_of(DESKTOP)
    with pytest.raises(DoesNotFitError) as caught:
        plan(spec, machine, PlanRequest(expert_cache_bytes=200 * GIB), source("torch"))
    lacks = caught.value.shortfall["ram"]
    assert 60 * GIB < lacks < 100 * GIB
    assert "lacks" in caught.value.message


def test_an_engine_that_does_not_stream_refuses_what_memory_does_not_hold() -> None:
    with pytest.raises(DoesNotFitError):
        planned("deepseek-v4-flash", "rtx-4090+ddr5-6000x2:64+nvme4", backend="llama.cpp")


def test_a_disk_that_cannot_hold_the_model_is_refused() -> None:
    machine = machine_of(DESKTOP)
    small = replace(
        machine,
        tiers=tuple(
            replace(tier, capacity_bytes=100 * GIB) if tier.kind == "disk" else tier
            for tier in machine.tiers
        ),
    )
    spec = spec_of("deepseek-v4.1-flash")
    with pytest.raises(DoesNotFitError, match="disk lacks") as caught:
        plan(spec, small, PlanRequest(), source("torch"))
    assert "disk" in caught.value.shortfall


def test_a_disk_that_is_full_of_the_model_is_no_obstacle() -> None:
    machine = machine_of(DESKTOP)
    full = replace(
        machine,
        tiers=tuple(
            replace(tier, usable_bytes=0) if tier.kind == "disk" else tier for tier in machine.tiers
        ),
    )
    spec = spec_of("deepseek-v4.1-flash")
    assert plan(spec, full, PlanRequest(), source("torch")).fits


def test_two_cards_share_the_slots_of_the_layers_that_each_computes() -> None:
    made = planned("deepseek-v4-pro", "2xrtx-4090+ddr5-6000x8:512+nvme4", backend="freetoken")
    experts = held(made, "experts")
    assert experts["vram:0"] > GIB
    assert experts["vram:1"] > GIB
    assert held(made, "head").keys() == {"vram:1"}


def test_a_layer_with_fewer_experts_keeps_no_more_than_it_has() -> None:
    spec = spec_of("deepseek-v4-flash")
    fewer = []
    for group in spec.groups:
        if group.kind == "experts" and group.layer == 3 and group.experts:
            size = 16 * group.experts.bytes
            group = replace(
                group, bytes=size, types={"I8": size}, experts=replace(group.experts, count=16)
            )
        fewer.append(group)
    odd = replace(spec, groups=tuple(fewer), tensor_bytes=sum(g.bytes for g in fewer))
    for machine in (DESKTOP, BIG):
        assert_sound(plan(odd, machine_of(machine), PlanRequest(), source("torch")), odd)
