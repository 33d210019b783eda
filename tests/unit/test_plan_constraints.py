"""What a user fixed stays fixed, and what cannot be is refused by its flag's name."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from localrun.errors import DoesNotFitError, PlanRequestError
from localrun.models.spec import ModelSpec
from localrun.plan.plan import EngramPlace, KvType, PlanRequest, Workload
from localrun.plan.planner import plan
from localrun.plan.whatif import shrunk
from tests.planned import GIB, assert_sound, machine_of, planned, source, spec_of

DESKTOP = "rtx-4090+ddr5-6000x2:128+nvme4"
CPU = "cpu:16+ddr5-5600x2:64+nvme4"
MAC = "m4-max-128"
SMALL = ("qwen3-8b", "Q4_K_M", "llama.cpp")
EXPERTS = ("qwen3-30b-a3b", "Q4_K_M", "llama.cpp")
STREAMED = ("deepseek-v4-flash", None, "torch")
TABLES = ("deepseek-v4.1-flash", None, "torch")
Model = tuple[str, str | None, str]

CONTRADICTIONS: dict[str, tuple[Model, str, PlanRequest, str]] = {
    "no context": (SMALL, CPU, PlanRequest(n_ctx=0), "--ctx"),
    "a context beyond counting": (SMALL, CPU, PlanRequest(n_ctx=2**40), "--ctx"),
    "no sequence": (SMALL, CPU, PlanRequest(parallel=0), "--parallel"),
    "a thousand sequences": (SMALL, CPU, PlanRequest(parallel=1000), "--parallel"),
    "no micro-batch": (SMALL, CPU, PlanRequest(ubatch=0), "--ubatch"),
    "a batch beyond the context": (SMALL, CPU, PlanRequest(n_ctx=512, ubatch=1024), "--ubatch"),
    "no threads": (SMALL, CPU, PlanRequest(threads=0), "--threads"),
    "more threads than there are": (SMALL, CPU, PlanRequest(threads=17), "--threads"),
    "negative VRAM": (SMALL, DESKTOP, PlanRequest(vram_bytes=-1), "--vram"),
    "negative RAM": (SMALL, CPU, PlanRequest(ram_bytes=-1), "--ram"),
    "a disk that stands still": (SMALL, CPU, PlanRequest(disk_read=0), "--disk-speed"),
    "nothing to answer": (SMALL, CPU, PlanRequest(workload=Workload(8, 0)), "--workload"),
    "a negative prompt": (SMALL, CPU, PlanRequest(workload=Workload(-8, 8)), "--workload"),
    "a workload beyond the context": (
        *(SMALL, CPU, PlanRequest(n_ctx=1000, workload=Workload(900, 101))),
        r"--workload 900:101 needs 1001 .* --ctx 1000",
    ),
    "a workload beyond counting": (
        *(SMALL, CPU, PlanRequest(workload=Workload(2**31, 2**31))),
        "--workload",
    ),
    "VRAM of no GPU": (SMALL, CPU, PlanRequest(vram_bytes=GIB), "--vram"),
    "VRAM of one memory": (SMALL, MAC, PlanRequest(vram_bytes=GIB), "--vram"),
    "layers on no GPU": (SMALL, CPU, PlanRequest(gpu_layers=3), "gpu layers"),
    "some layers of one memory": (SMALL, MAC, PlanRequest(gpu_layers=3), "gpu layers"),
    "negative layers": (SMALL, DESKTOP, PlanRequest(gpu_layers=-1), "gpu layers"),
    "experts of a dense model": (SMALL, DESKTOP, PlanRequest(cpu_expert_layers=3), "expert"),
    "experts beside one memory": (EXPERTS, MAC, PlanRequest(cpu_expert_layers=3), "expert"),
    "a cache of no experts": (SMALL, CPU, PlanRequest(expert_cache_bytes=GIB), "expert cache"),
    "a cache of whole layers": (EXPERTS, CPU, PlanRequest(expert_cache_bytes=GIB), "expert cache"),
    "n-gram tables of none": (EXPERTS, DESKTOP, PlanRequest(engram="disk"), "--engram"),
    "n-gram tables in no VRAM": (TABLES, CPU, PlanRequest(engram="vram"), "--engram vram"),
    "some layers of an engine of one place": (
        *(TABLES, DESKTOP, PlanRequest(gpu_layers=3)),
        "gpu layers 3: torch computes all",
    ),
    "whole experts of an engine of slots": (
        *(TABLES, DESKTOP, PlanRequest(cpu_expert_layers=3)),
        "expert layers on the CPU: torch keeps",
    ),
    "tables in another's memory": (TABLES, DESKTOP, PlanRequest(engram="unified"), "--engram"),
    "native rows of llama.cpp": (EXPERTS, CPU, PlanRequest(kv_type="native"), "--kv-type native"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_what_contradicts_itself_or_the_machine_is_refused_by_flag(case: str) -> None:
    (model, quant, backend), machine, request, flag = CONTRADICTIONS[case]
    with pytest.raises(PlanRequestError, match=flag):
        planned(model, machine, request, quant=quant, backend=backend)


def test_a_machine_without_a_disk_has_no_disk_speed() -> None:
    machine = machine_of(CPU)
    tiers = tuple(tier for tier in machine.tiers if tier.kind != "disk")
    with pytest.raises(PlanRequestError, match="--disk-speed"):
        plan(
            spec_of("qwen3-0.6b"),
            replace(machine, tiers=tiers),
            PlanRequest(disk_read=10**9),
            source(),
        )


def test_a_machine_without_memory_is_refused() -> None:
    with pytest.raises(PlanRequestError, match="neither"):
        plan(spec_of("qwen3-0.6b"), replace(machine_of(CPU), tiers=()), PlanRequest(), source())


def test_what_an_execution_was_asked_for_is_in_it() -> None:
    asked = PlanRequest(
        n_ctx=5000, kv_type="q8_0", threads=3, parallel=2, ubatch=100, gpu_layers=11
    )
    told = planned("qwen3-8b", DESKTOP, asked, quant="Q4_K_M").execution
    assert (told.n_ctx, told.kv_type) == (5000, "q8_0")
    assert {told.threads_min, told.threads, told.threads_max} == {3}
    assert (told.parallel, told.ubatch, told.gpu_layers) == (2, 100, 11)


@pytest.mark.parametrize("kv_type", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_the_type_of_the_cache_decides_its_size(kv_type: KvType) -> None:
    asked = PlanRequest(n_ctx=4096, kv_type=kv_type)
    made = planned("qwen3-8b", DESKTOP, asked, quant="Q4_K_M")
    row = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}[kv_type]
    assert sum(budget.kv for budget in made.budgets) == 4096 * 36 * 2 * 8 * 128 * row


@pytest.mark.parametrize("layers", [0, 1, 17, 36, 37, 999])
def test_as_many_layers_are_on_the_card_as_were_asked_for(layers: int) -> None:
    asked = PlanRequest(n_ctx=4096, gpu_layers=layers)
    made = planned("qwen3-8b", DESKTOP, asked, quant="Q4_K_M")
    assert made.execution.gpu_layers == min(layers, 37)
    assert_sound(made, spec_of("qwen3-8b", "Q4_K_M"))


@pytest.mark.parametrize("layers", [0, 5, 48, 999])
def test_as_many_layers_leave_their_experts_in_ram_as_were_asked_for(layers: int) -> None:
    asked = PlanRequest(n_ctx=4096, cpu_expert_layers=layers)
    made = planned("qwen3-30b-a3b", DESKTOP, asked, quant="Q4_K_M")

    in_ram = [i for i in made.placements if (i.group, i.tier) == ("experts", "ram")]
    count = min(layers, 48)
    assert sum(item.count for item in in_ram) == 128 * count
    named = [
        re.compile(pattern) for pattern, tier in made.execution.tensor_overrides if tier == "ram"
    ]
    held = [
        layer
        for layer in range(48)
        if any(name.search(f"blk.{layer}.ffn_up_exps.weight") for name in named)
    ]
    assert held == list(range(count))
    assert not any(name.search("blk.0.ffn_gate_inp.weight") for name in named)


@pytest.mark.parametrize("size", [3 * GIB, 10 * GIB, 20 * GIB])
def test_no_card_holds_more_than_was_allowed(size: int) -> None:
    asked = PlanRequest(n_ctx=4096, vram_bytes=size)
    made = planned("qwen3-32b", "2xrtx-3090+ddr5-5600x2:96", asked, quant="Q4_K_M")
    cards = [budget for budget in made.budgets if budget.tier.startswith("vram")]
    assert [budget.limit for budget in cards] == [size, size]
    assert all(budget.total <= size for budget in cards)
    assert cards[0].total > size / 2


def test_no_vram_is_no_card() -> None:
    made = planned("qwen3-8b", DESKTOP, PlanRequest(vram_bytes=0), quant="Q4_K_M")
    assert made.execution.gpu_layers == 0


@pytest.mark.parametrize("ram", [16 * GIB, None])
def test_a_simulated_card_is_counted_apart_and_takes_of_ram_that_nobody_limits(
    ram: int | None,
) -> None:
    spec, machine = spec_of("deepseek-v2-lite", "Q4_K_M"), machine_of(CPU)
    asked = PlanRequest(n_ctx=4096, ram_bytes=ram, vram_bytes=4 * GIB)
    made = plan(spec, machine, asked, source("torch"))
    usable = next(tier.usable_bytes for tier in machine.tiers if tier.name == "ram")
    assert {b.tier: b.limit for b in made.budgets if b.tier != "disk"} == {
        "vram:0": 4 * GIB,
        "ram": ram or usable - 4 * GIB,
    }
    assert_sound(made, spec)


def test_a_faster_disk_by_flag_is_a_faster_stream() -> None:
    slow, fast = (
        planned("deepseek-v4.1-flash", DESKTOP, PlanRequest(disk_read=speed), backend="torch")
        for speed in (10**9, 10**10)
    )
    assert slow.prediction.terms_ms["disk"] > 3 * fast.prediction.terms_ms["disk"]


def test_an_expert_cache_takes_what_was_asked_for_in_ram() -> None:
    asked = PlanRequest(expert_cache_bytes=20 * GIB)
    made = planned("deepseek-v4.1-flash", DESKTOP, asked, backend="torch")
    ram = next(budget for budget in made.budgets if budget.tier == "ram")
    # A slot in every layer is the least that a cache grows by.
    slot = 40 * 18_824_192
    assert 20 * GIB - 2 * slot < ram.expert_cache <= 20 * GIB


@pytest.mark.parametrize("place", ["ram", "disk"])
def test_n_gram_tables_lie_where_they_were_asked_for(place: EngramPlace) -> None:
    big = "rtx-4090+ddr5-6000x8:768+nvme4"
    made = planned("deepseek-v4.1-flash", big, PlanRequest(engram=place), backend="torch")
    assert {i.tier for i in made.placements if i.group == "engram"} == {place}
    assert (made.execution.engram, made.engram.tier) == (place, place)


def shortfall(spec: ModelSpec, machine: str, request: PlanRequest, backend: str) -> DoesNotFitError:
    with pytest.raises(DoesNotFitError) as caught:
        plan(spec, machine_of(machine), request, source(backend))
    return caught.value


def test_a_refusal_says_by_tier_what_is_lacking_in_bytes_and_in_words() -> None:
    spec = spec_of("deepseek-v3", "Q4_K_M")
    refused = shortfall(spec, "cpu:16+ddr5-5600x2:64+nvme4", PlanRequest(), "llama.cpp")

    lacks = refused.shortfall["ram"]
    assert lacks > 300 * GIB
    assert f"ram lacks {lacks / GIB:.2f} GiB" in refused.message
    assert re.search(r"\d+\.\d\d needed: \d+\.\d\d weights, .* KV for \d+ tokens", refused.message)
    assert re.search(r"\d+\.\d\d usable", refused.message)


def test_a_limit_that_is_too_low_is_told_by_its_flag() -> None:
    spec = spec_of("qwen3-8b", "Q4_K_M")
    for size in (0, GIB):
        refused = shortfall(spec, CPU, PlanRequest(ram_bytes=size), "llama.cpp")
        assert f"{size / GIB:.2f} allowed by --ram" in refused.message


def test_the_context_of_a_hint_fits_and_twice_of_it_does_not() -> None:
    spec = spec_of("llama-3.1-8b", "Q4_K_M")
    refused = shortfall(spec, CPU, PlanRequest(n_ctx=1 << 20), "llama.cpp")

    told = re.search(r"--ctx (\d+)", refused.hint)
    assert told
    n_ctx = int(told[1])
    assert_sound(plan(spec, machine_of(CPU), PlanRequest(n_ctx=n_ctx), source()), spec)
    shortfall(spec, CPU, PlanRequest(n_ctx=2 * n_ctx), "llama.cpp")


def test_a_hint_never_names_a_context_that_the_workload_does_not_fit() -> None:
    spec = spec_of("llama-3.1-8b", "Q4_K_M")
    asked = PlanRequest(n_ctx=600_000, workload=Workload(590_000, 100))
    refused = shortfall(spec, CPU, asked, "llama.cpp")

    assert "--ctx" not in refused.hint
    assert "--kv-type q8_0" in refused.hint
    plan(spec, machine_of(CPU), replace(asked, kv_type="q8_0"), source())


def test_the_quantization_of_a_hint_fits() -> None:
    spec = spec_of("llama-3-70b")
    refused = shortfall(spec, "cpu:16+ddr5-5600x2:64+nvme4", PlanRequest(), "llama.cpp")

    told = re.search(r"it would fit as (\w+)", refused.hint)
    assert told
    smaller, name = spec, ""
    while name != told[1]:
        step = shrunk(smaller)
        assert step is not None
        name, smaller = step
    plan(smaller, machine_of(CPU), PlanRequest(), source())
    assert plan(spec_of("llama-3-70b", "Q4_K_M"), machine_of(CPU), PlanRequest(), source())


def test_what_was_lacking_is_enough_when_it_is_given() -> None:
    spec = spec_of("qwen3-32b", "Q4_K_M")
    asked = PlanRequest(n_ctx=8192, ram_bytes=10 * GIB)
    refused = shortfall(spec, CPU, asked, "llama.cpp")
    given = replace(asked, ram_bytes=10 * GIB + refused.shortfall["ram"])
    assert_sound(plan(spec, machine_of(CPU), given, source()), spec)


def test_speeds_for_more_than_the_context_holds_are_told() -> None:
    small = planned("qwen3-8b", "cpu:16+ddr5-5600x2:64+nvme4", PlanRequest(n_ctx=512))
    large = planned("qwen3-8b", "cpu:16+ddr5-5600x2:64+nvme4", PlanRequest(n_ctx=4096))

    assert any("more than a context of 512 holds" in warning for warning in small.warnings)
    assert not any("more than a context" in warning for warning in large.warnings)


def test_cards_that_hold_nothing_are_not_counted() -> None:
    made = planned("deepseek-v2-lite", "8xh100-sxm-80gb+ddr5-4800x12:1024", backend="torch")
    busy = sum(budget.total > 0 for budget in made.budgets if budget.tier.startswith("vram"))

    assert busy < 8
    assert f"over {busy} GPUs" in made.verdict if busy > 1 else "from GPU memory" in made.verdict


def test_files_without_weights_are_no_model_to_plan() -> None:
    spec = replace(spec_of("qwen3-4b"), groups=(), tensor_bytes=0, tensors=0)

    with pytest.raises(PlanRequestError, match="hold no weights"):
        plan(spec, machine_of("m4-max-128"), PlanRequest(), source())
