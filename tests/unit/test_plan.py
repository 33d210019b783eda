"""What the planner decides for released models on machines by name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from localrun.errors import DoesNotFitError
from localrun.hardware.machine import Machine, Tier
from localrun.plan.plan import Plan, PlanRequest
from localrun.plan.planner import plan
from localrun.plan.search import DEFAULT_N_CTX
from tests.planned import GIB, assert_sound, machine_of, planned, source, spec_of

DESKTOP = "rtx-4090+ddr5-6000x2:64+nvme4"
CASES = {
    "a small model on one card": ("llama-3-8b", None, DESKTOP, "llama.cpp"),
    "a tied model": ("qwen3-4b", "Q4_K_M", DESKTOP, "llama.cpp"),
    "experts in RAM": ("qwen3-30b-a3b", "Q4_K_M", "rtx-3060-12gb+ddr5-6000x2:64", "llama.cpp"),
    "two cards": ("llama-3-70b", "Q4_K_M", "2xrtx-3090+ddr5-5600x2:96", "llama.cpp"),
    "uneven cards": (
        *("llama-3-70b", "Q4_K_M"),
        *("rtx-3090+rtx-4090+rtx-3060-12gb+ddr5-5600x2:96", "llama.cpp"),
    ),
    "no card": ("gpt-oss-20b", None, "cpu:16+ddr5-5600x2:64", "llama.cpp"),
    "one memory": ("gpt-oss-120b", None, "m4-max-128", "llama.cpp"),
    "windows": ("gemma-3-27b", "Q4_K_M", DESKTOP, "llama.cpp"),
    "states": ("kimi-linear-48b-a3b", None, "m4-max-128", "torch"),
    "layers without experts": ("deepseek-v2-lite", None, DESKTOP, "torch"),
    "n-gram tables": ("deepseek-v4.1-flash", None, "rtx-4090+ddr5-6000x2:128", "torch"),
    "streamed by two cards": ("deepseek-v4-pro", None, "2xrtx-4090+ddr5-6000x8:512", "torch"),
    "streamed to one memory": ("deepseek-v4-flash", None, "m4-max-128", "torch"),
}


def budgets(made: Plan) -> dict[str, int]:
    return {budget.tier: budget.total for budget in made.budgets}


def with_memory(machine: Machine, kind: str, size: int) -> Machine:
    def sized(tier: Tier) -> Tier:
        return replace(tier, capacity_bytes=size, usable_bytes=size) if tier.kind == kind else tier

    return replace(machine, tiers=tuple(sized(tier) for tier in machine.tiers))


@pytest.mark.parametrize("case", CASES)
def test_released_models_are_planned_soundly(case: str) -> None:
    model, quant, machine, backend = CASES[case]
    assert_sound(planned(model, machine, quant=quant, backend=backend), spec_of(model, quant))


def test_the_context_is_what_fits_and_at_most_the_default() -> None:
    spec, host = spec_of("qwen3-8b", "Q4_K_M"), machine_of("cpu:8+ddr5-5600x2:64")

    roomy = plan(spec, host, PlanRequest(), source())
    tight = plan(spec, with_memory(host, "ram", 7 * GIB), PlanRequest(), source())

    assert roomy.execution.n_ctx == DEFAULT_N_CTX
    assert 512 <= tight.execution.n_ctx < DEFAULT_N_CTX
    assert tight.budgets[0].total <= 7 * GIB


def test_a_short_model_keeps_its_own_context_and_a_longer_request_is_warned_about() -> None:
    assert planned("llama-3-8b", DESKTOP).execution.n_ctx == 8192
    longer = planned("llama-3-8b", DESKTOP, PlanRequest(n_ctx=9000))
    assert longer.execution.n_ctx == 9000
    assert any("8192" in warning for warning in longer.warnings)


def test_a_device_the_library_was_not_built_for_is_named_and_not_used() -> None:
    made = plan(
        spec_of("llama-3-8b", "Q4_K_M"),
        machine_of(DESKTOP),
        PlanRequest(),
        source(device=False),
    )
    assert made.execution.gpu_layers == 0
    assert any("rtx-4090" in warning for warning in made.warnings)


def test_threads_are_the_cores_that_the_process_may_use() -> None:
    host = machine_of("cpu:16+ddr5-5600x2:64")
    few = replace(host, cpu=replace(host.cpu, usable=3))
    spec = spec_of("qwen3-0.6b")
    assert plan(spec, host, PlanRequest(), source()).execution.threads == 16
    assert plan(spec, few, PlanRequest(), source()).execution.threads == 3
    # Where none was asked for, the engine may find that fewer are faster.
    assert plan(spec, few, PlanRequest(), source()).execution.threads_min == 1


def test_layers_are_contiguous_over_cards_and_the_output_is_with_the_last() -> None:
    made = planned("llama-3-70b", "2xrtx-3090+ddr5-5600x2:96", quant="Q4_K_M")

    split = made.execution.tensor_split
    assert made.execution.gpu_layers == 81
    assert sum(split) == 81
    assert all(share > 0 for share in split)
    head = [item for item in made.placements if item.group == "head"]
    assert [item.tier for item in head] == ["vram:1"]


def test_the_slower_of_two_cards_takes_what_the_faster_has_no_room_for() -> None:
    spec = spec_of("qwen3-32b", "Q4_K_M")
    slow_first = machine_of("rtx-3060-12gb+rtx-4090+ddr5-5600x2:96")
    fast_first = machine_of("rtx-4090+rtx-3060-12gb+ddr5-5600x2:96")

    for machine, fast in ((slow_first, "vram:1"), (fast_first, "vram:0")):
        asked = PlanRequest(n_ctx=32_768, ubatch=512)
        held = budgets(plan(spec, machine, asked, source()))
        slow = "vram:0" if fast == "vram:1" else "vram:1"
        limit = next(tier.usable_bytes for tier in machine.tiers if tier.name == fast)
        layer = spec.tensor_bytes // spec.layers
        assert held[fast] > limit - 2 * layer
        assert 0 < held[slow] < held[fast]


def test_a_card_that_is_not_needed_holds_nothing_and_costs_nothing() -> None:
    spec = spec_of("qwen3-8b", "Q4_K_M")
    one = plan(spec, machine_of("rtx-4090+ddr5-5600x2:96"), PlanRequest(), source())
    two = plan(spec, machine_of("2xrtx-4090+ddr5-5600x2:96"), PlanRequest(), source())

    assert budgets(two)["vram:1"] == 0
    assert two.prediction.decode_tps == one.prediction.decode_tps


def test_the_cache_goes_to_ram_where_cards_have_no_room_for_it() -> None:
    asked = PlanRequest(n_ctx=131_072, ubatch=128)
    made = planned("llama-3.1-8b", "rtx-3060-12gb+ddr5-6000x2:64", asked, quant="Q4_K_M")

    assert not made.execution.kv_on_device
    kept = {budget.tier: budget.kv for budget in made.budgets}
    assert kept["vram:0"] == 0
    assert kept["ram"] == 131_072 * 131_072


def test_experts_are_split_where_neither_memory_holds_them_all() -> None:
    """All of them fit neither the card nor RAM, together they do."""
    spec = spec_of("qwen3-30b-a3b", "Q4_K_M")
    machine = with_memory(machine_of("rtx-3060-12gb+ddr5-6000x2:64"), "ram", 11 * GIB)

    made = plan(spec, machine, PlanRequest(n_ctx=4096), source())

    assert_sound(made, spec)
    where = {item.tier for item in made.placements if item.group == "experts"}
    assert where == {"vram:0", "ram"}


def test_a_tied_table_is_read_as_the_output_of_every_token() -> None:
    spec = spec_of("qwen3-0.6b")
    table = next(group.bytes for group in spec.of("embedding"))
    on_cpu = planned("qwen3-0.6b", "cpu:8+ddr5-5600x2:64")
    on_card = planned("qwen3-0.6b", DESKTOP)

    assert on_cpu.bytes_per_token["ram"] >= spec.tensor_bytes
    assert on_card.bytes_per_token["vram:0"] >= spec.tensor_bytes
    held = {budget.tier: budget.weights for budget in on_card.budgets}
    assert held == {"vram:0": spec.tensor_bytes, "ram": table}


def test_more_sequences_take_as_much_more_of_cache() -> None:
    one, four = (
        planned("qwen3-8b", DESKTOP, PlanRequest(n_ctx=4096, parallel=count), quant="Q4_K_M")
        for count in (1, 4)
    )
    assert four.execution.parallel == 4
    assert sum(b.kv for b in four.budgets) == 4 * sum(b.kv for b in one.budgets)


def test_the_fastest_of_several_backends_is_taken() -> None:
    candidates = (source("llama.cpp").candidates[0], source("torch").candidates[0])
    both = replace(source(), candidates=candidates)
    spec, machine = spec_of("deepseek-v4-flash"), machine_of("rtx-4090+ddr5-6000x2:64")

    assert plan(spec, machine, PlanRequest(), both).backend == "torch"
    with pytest.raises(DoesNotFitError):
        plan(spec, machine, PlanRequest(), source("llama.cpp"))
