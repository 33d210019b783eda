"""Plans that read experts while they run: what a runner is told, and what of the reads shows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrun.errors import PlanRequestError
from localrun.hardware.machine import Compute, HostFigures, Machine, Speed
from localrun.plan import terms
from localrun.plan.constants import (
    FITTED,
    HOT_ROWS,
    PAGE,
    ROWS_READ,
    STAGED_EXPERTS,
    STAGING,
    TORCH_MISS_MS,
)
from localrun.plan.engines import engine
from localrun.plan.plan import Plan, PlanRequest, Workload
from localrun.plan.planner import plan
from localrun.plan.predict import token_terms
from localrun.plan.rates import host_launch, host_miss, host_rate, tuned
from localrun.plan.rooms import rooms
from localrun.plan.search import search
from localrun.plan.stack import Weights
from localrun.plan.work import Share, Token
from tests.planned import assert_sound, machine_of, source, spec_of

GIB = 1 << 30
STREAMED = "deepseek-v4.1-flash"
DESKTOP = "rtx-4090+ddr5-6000x2:128+nvme4"
CPU = "cpu:16+ddr5-6000x2:64+nvme4"


def made(machine: str, **asked: object) -> Plan:
    spec = spec_of(STREAMED)
    request = PlanRequest(**asked)  # type: ignore[arg-type]  # a table of any fields
    found = plan(spec, machine_of(machine), request, source("torch"))
    assert_sound(found, spec)
    return found


def test_a_runner_is_told_all_that_it_needs_to_stream() -> None:
    told = made(DESKTOP).execution

    assert told.streams
    assert 0 < told.card_slots_per_layer < told.slots_per_layer < 384
    assert 0 < told.staging_bytes <= STAGING
    assert told.engram == "disk"
    assert told.engram_cache_bytes == HOT_ROWS


def test_terms_have_their_names_and_bytes() -> None:
    found = made(DESKTOP).prediction
    tiers = {terms.term("vram:0", each) for each in (terms.DENSE, terms.EXPERTS, terms.LAUNCHES)}

    assert tiers < set(found.terms_ms)
    assert {terms.DISK, terms.HIDDEN, terms.SYNC, terms.STEP} < set(found.terms_ms)
    assert {"ram experts", "vram:0 dense", terms.DISK, terms.ENGRAM} < set(found.terms_bytes)
    # Each read is a page, or two where it goes over an edge; numbers and scales lie apart.
    rows = made(DESKTOP).engram
    pages = found.terms_bytes[terms.ENGRAM] / PAGE
    assert rows.bytes_per_token == 12_672
    assert rows.reads_per_token < pages < rows.reads_per_token * 1.1
    assert all(size > 0 for size in found.terms_bytes.values())


def test_bytes_of_the_terms_are_the_bytes_a_token_reads() -> None:
    for machine in (DESKTOP, CPU):
        found = made(machine)
        read = found.prediction.terms_bytes
        for tier in ("vram:0", "ram"):
            mine = sum(size for name, size in read.items() if name.startswith(tier))
            assert mine == pytest.approx(found.bytes_per_token.get(tier, 0), abs=8)
        away = read[terms.DISK] + read[terms.ENGRAM]
        assert away == pytest.approx(found.bytes_per_token["disk"], abs=8)


@pytest.mark.parametrize("numerics", ["fast", "float32"])
def test_what_is_read_of_disk_is_as_large_as_in_the_files(numerics: str) -> None:
    """Numbers of 16 bits take 32 in memory; codes of four bits stay what they are."""
    spec = spec_of("deepseek-v2-lite")
    asked = PlanRequest(ram_bytes=24 * GIB, numerics=numerics, vram_bytes=0)
    found = plan(spec, machine_of("cpu:16+ddr5-6000x2:64+nvme4"), asked, source("torch"))
    misses = found.prediction.terms_bytes[terms.DISK]
    expert = next(group.experts for group in spec.of("experts") if group.experts)

    layers = len(spec.of("experts"))
    assert misses <= layers * expert.used * expert.bytes


def test_staging_follows_memory_and_holds_a_few_experts_at_least() -> None:
    expert = next(g.experts for g in spec_of(STREAMED).of("experts") if g.experts)
    sizes = [made(CPU, ram_bytes=size * GIB).execution.staging_bytes for size in (22, 26, 40, 60)]

    assert sizes == sorted(sizes)
    assert STAGED_EXPERTS * (expert.bytes + PAGE) <= sizes[0] <= sizes[-1] <= STAGING


def test_scales_are_kept_in_memory_where_they_halve_the_reads() -> None:
    kept, apart = made(CPU), made(CPU, ram_bytes=24 * GIB)
    for found in (kept, apart):
        rows = found.engram.rows_per_token
        expected = rows if found.execution.engram_scales else 2 * rows
        assert found.engram.reads_per_token == expected


def test_a_mirror_is_a_second_disk() -> None:
    one, two = made(DESKTOP), made(DESKTOP, mirrors=("/mnt/copy",))
    assert two.execution.mirrors == ("/mnt/copy",)
    assert one.execution.mirrors == ()
    slow, fast = (each.prediction.terms_ms[terms.DISK] for each in (one, two))
    assert slow / 2 < fast < slow * 0.7


def test_the_same_mirror_named_twice_is_one() -> None:
    once, twice = (made(DESKTOP, mirrors=("/mnt/copy",) * n) for n in (1, 2))
    assert once.prediction == twice.prediction


def token(missed: float, misses: float) -> Token:
    """40 layers of 4 blocks; the experts and what all share are half of what is read."""
    share = Share("ram", Weights(packed=2e9), Weights(packed=2e9), layers=40, blocks=160)
    return Token(
        *((), share, 0, missed, misses, 0, 0, 0, 0, False),
        streaming=40, used=4, beside=1e9, beside_blocks=80,
    )  # fmt: skip


@pytest.mark.parametrize("missed", [0.0, 1e6, 1e8, 1e10])
def test_reads_hide_behind_what_their_layers_compute_and_no_more(missed: float) -> None:
    """Every layer misses all of its four experts, so chance has no part in it."""
    kind = engine("torch")
    there = rooms(machine_of(CPU), PlanRequest(), kind, device=False)
    found = token_terms(token(missed, 160 if missed else 0), there, kind, FITTED)
    parts = found.parts
    # Half of the dense weights, half of the blocks, all but one of a layer's experts, and what
    # fetching all but one takes of the host.
    most = parts["ram dense"] / 2 + parts["ram launches"] / 2 + parts["ram experts"] * 3 / 4
    most += parts.get("ram misses", 0.0) * 3 / 4

    if not missed:
        assert terms.DISK not in parts
        assert found.hidden == 0
    else:
        assert found.hidden == pytest.approx(min(parts[terms.DISK], most))


@pytest.mark.parametrize("misses", [10, 40, 100])
def test_what_misses_nothing_hides_nothing(misses: int) -> None:
    """Of a disk that is always waited for."""
    kind = engine("torch")
    there = rooms(machine_of(CPU), PlanRequest(), kind, device=False)
    found = token_terms(token(1e12, misses), there, kind, FITTED)
    parts = found.parts

    some = 1 - (1 - misses / 160) ** 4  # of a layer's four experts one at least
    beside = parts["ram dense"] / 2 + parts["ram launches"] / 2 + parts["ram experts"] * 3 / 4
    others = parts["ram misses"] / misses * (misses - 40 * some)
    assert found.hidden == pytest.approx(beside * some + others)


@given(st.floats(1e5, 1e10), st.floats(0.1, 160))
def test_no_more_hides_than_is_read_or_computed(missed: float, misses: float) -> None:
    kind = engine("torch")
    there = rooms(machine_of(CPU), PlanRequest(), kind, device=False)
    found = token_terms(token(missed, misses), there, kind, FITTED)
    computed = sum(found.parts.values()) - found.parts[terms.DISK]
    assert 0 < found.hidden <= min(found.parts[terms.DISK], computed) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [(1, 1.0), (50e3, 1.0), (425e3, 1.5), (800e3, 2.0), (2.4e6, 3.0), (13e6, 4.0)],
)
def test_what_an_expert_takes_beside_its_read_grows_as_it_was_seen_to(
    nbytes: float, expected: float
) -> None:
    seen = {50_000: 1.0, 800_000: 2.0, 4_000_000: 4.0}
    misses = {size: Speed(took, "measured") for size, took in seen.items()}
    known = Compute(4, hosts={"torch": HostFigures(misses=misses)})
    assert host_miss(known, engine("torch"), nbytes) == pytest.approx(expected)
    assert host_miss(Compute(4), engine("torch"), nbytes) == TORCH_MISS_MS
    assert host_miss(known, engine("mlx"), nbytes) == 0


def calibrated(machine: Machine, **launches: float) -> Machine:
    def speeds(values: dict[str, float]) -> dict[str, Speed]:
        return {name: Speed(value, "measured") for name, value in values.items()}

    own = HostFigures(speeds({"F8_E4M3": 4.0, "F32": 20.0}), speeds(launches))
    gemv = speeds({"MXFP4": 10.0, "BF16": 20.0, "Q8_0": 16.0})
    return replace(machine, compute=Compute(16, gemv=gemv, hosts={"torch": own}))


def test_each_kind_of_weights_has_the_rate_of_its_types() -> None:
    spec, machine = spec_of(STREAMED), machine_of(CPU)
    known = calibrated(machine)
    ram = machine.tier("ram")
    assert ram is not None

    def rate(name: str, kind: str) -> float:
        own = engine(name)
        return host_rate(ram, tuned(known.compute, spec, own), own, FITTED, kind=kind)

    assert rate("torch", terms.EXPERTS) == pytest.approx(10.0, rel=0.01)
    assert 4.0 < rate("torch", terms.DENSE) < 8.0
    # Without kernels of its own for eight bits, those of the nearest type count.
    assert rate("llama.cpp", terms.DENSE) > 12.0


def test_blocks_cost_what_was_measured_of_their_architecture() -> None:
    spec, machine = spec_of(STREAMED), machine_of(CPU)
    torch = engine("torch")

    def block(**launches: float) -> float:
        return host_launch(tuned(calibrated(machine, **launches).compute, spec, torch), torch)

    assert block(deepseek_v41=0.7, llama=0.1) == 0.7
    assert block(llama=0.1) == 0.1
    assert block() == torch.block > 0
    assert host_launch(machine.compute, engine("llama.cpp")) == 0


def test_a_card_beside_others_is_used_alone_and_said_so() -> None:
    found = made("2xrtx-4090+ddr5-6000x2:128+nvme4")
    assert {budget.tier for budget in found.budgets} == {"vram:0", "ram", "disk"}
    assert any("computes on one card" in each for each in found.warnings)


def test_rows_of_tables_lie_on_a_card_only_where_that_is_asked_for() -> None:
    spec, machine = spec_of(STREAMED), machine_of(DESKTOP)
    large = replace(
        machine,
        tiers=tuple(
            replace(tier, capacity_bytes=400 * GIB, usable_bytes=390 * GIB)
            if tier.kind == "vram"
            else tier
            for tier in machine.tiers
        ),
    )
    asked, left = (
        plan(spec, large, PlanRequest(engram=place), source("torch")) for place in ("vram", None)
    )
    assert asked.engram.tier == "vram:0"
    assert left.engram.tier == "disk"
    assert_sound(asked, spec)


def test_an_engine_of_one_place_divides_no_layers_beside_a_card() -> None:
    with pytest.raises(PlanRequestError, match="gpu layers 3"):
        made(DESKTOP, gpu_layers=3)
    assert made(DESKTOP, gpu_layers=0).execution.gpu_layers == 0
    assert made(DESKTOP, gpu_layers=41).execution.gpu_layers == 41


def test_a_card_is_declared_only_for_a_backend_that_computes_for_it() -> None:
    spec, machine, asked = spec_of(STREAMED), machine_of(CPU), PlanRequest(vram_bytes=24 * GIB)
    assert plan(spec, machine, asked, source("torch", device=False)).execution.gpu_layers
    with pytest.raises(PlanRequestError, match="no GPU"):
        plan(spec, machine, asked, source("mlx", device=False))


def test_memory_that_was_told_of_and_is_not_there_is_said() -> None:
    spec, machine = spec_of("deepseek-v2-lite"), machine_of("cpu:16+ddr5-6000x2:16+nvme4")

    def said(**asked: int) -> list[str]:
        request = PlanRequest(**asked)  # type: ignore[arg-type]  # sizes of any name
        found = plan(spec, machine, request, source("torch", device=False))
        return [each for each in found.warnings if "told to" in each or "--vram" in each]

    assert said() == said(ram_bytes=12 * GIB) == []
    [beyond] = said(ram_bytes=40 * GIB)
    assert "of ram, the machine has 16.0 GiB" in beyond
    [together] = said(ram_bytes=12 * GIB, vram_bytes=12 * GIB)
    assert "of ram" in together
    [idle] = said(ram_bytes=12 * GIB, vram_bytes=1 * GIB)
    assert "--vram 1.0 GiB is not used" in idle


@pytest.mark.parametrize("tokens", [1, 64, 512])
def test_a_short_prompt_takes_at_least_what_its_blocks_do(tokens: int) -> None:
    """Each chunk is computed block by block, whatever it holds."""
    machine = calibrated(machine_of(CPU), deepseek_v3=0.25)
    spec = spec_of("deepseek-v2-lite")
    asked = PlanRequest(workload=Workload(prompt=tokens, output=8), numerics="fast")
    for card in (0, 40 * GIB):
        found = plan(spec, machine, replace(asked, vram_bytes=card), source("torch", device=False))
        terms_ms = found.prediction.prefill_terms_ms
        decode = sum(
            time for name, time in found.prediction.terms_ms.items() if name.endswith("launches")
        )
        assert terms_ms[terms.LAUNCHES] == pytest.approx(decode, rel=1e-3)
        most = 1e3 * tokens / terms_ms[terms.LAUNCHES]
        assert found.prediction.prefill_tps.mid <= most


def test_rows_that_are_read_ahead_have_memory_in_the_plan() -> None:
    held = {}
    for name in ("torch", "mlx", "colibri"):
        spec = spec_of(STREAMED)
        asked = PlanRequest(ram_bytes=60 * GIB, vram_bytes=0, engram="disk")
        found = search(spec, machine_of(CPU), asked, source(name, device=False))[0]
        assert found is not None
        host = found.assignment.host
        assert host is not None
        held[name] = (
            host.overhead - host.staging - host.rows - found.assignment.choice.buffers.library
        )
    assert held == {"torch": ROWS_READ, "mlx": ROWS_READ, "colibri": 0}


def test_one_memory_keeps_some_for_experts_on_their_way() -> None:
    found = plan(spec_of(STREAMED), machine_of("m4-max-128"), PlanRequest(), source("mlx"))
    expert = next(g.experts for g in spec_of(STREAMED).of("experts") if g.experts)
    [budget] = [each for each in found.budgets if each.tier == "unified"]

    assert found.execution.streams
    assert STAGED_EXPERTS * expert.bytes <= found.execution.staging_bytes <= STAGING
    assert budget.overhead == found.execution.staging_bytes + ROWS_READ
