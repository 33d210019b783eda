"""Whom a plan is for: mlx on Macs where it is predicted to be faster, elsewhere where it alone runs
the model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from localrun.cli.loading import candidates, plan_found, planned
from localrun.cli.lookup import Found
from localrun.cli.machines import AUTO
from localrun.errors import DoesNotFitError, PlanRequestError
from localrun.hardware.machine import Machine
from localrun.plan.plan import PlanRequest
from localrun.plan.planner import plan
from localrun.plan.search import Candidate, Source, search
from localrun.plan.terms import DISK, HIDDEN
from tests.planned import machine_of, spec_of

MAC, PC = "m4-max-64", "rtx-4090+ddr5-6000x2:128+nvme4"


def release(name: str) -> Found:
    """A model of safetensors, described by its configuration."""
    return Found(name, spec_of(name), "safetensors", None, "config")


def here(name: str) -> Machine:
    """A machine by name as though it were this one."""
    return replace(machine_of(name), name=AUTO)


def names(found: Found, machine: Machine) -> list[tuple[str, bool]]:
    """The backends to plan for, and whether each can execute a plan."""
    return [(each.backend, not each.problem) for each in candidates(found, machine)]


def test_a_mac_runs_safetensors_with_mlx() -> None:
    made = plan_found(release("llama-3.1-8b"), machine_of(MAC), PlanRequest())

    assert made.backend == "mlx"
    assert made.execution.gpu_layers == 33
    assert made.execution.kv_type == "f16"
    assert [budget.tier for budget in made.budgets if budget.weights] == ["unified"]


def test_a_pc_by_name_is_not_planned_for_mlx() -> None:
    assert names(release("llama-3.1-8b"), machine_of(PC)) == [("torch", True)]
    assert names(release("qwen3-0.6b"), machine_of(PC)) == [("torch", False)]


def test_torch_goes_before_mlx_where_both_run_a_model_on_a_cpu() -> None:
    machine = here("cpu:16+ddr5-5600x2:64+nvme4")

    assert names(release("llama-3.1-8b"), machine) == [("torch", True)]


def test_a_macs_gpu_is_planned_for_torch_only_where_mlx_does_not_run_the_model() -> None:
    """Torch has its CPU only, and is taken if it is asked for; streaming waits for what comes."""
    found = release("llama-3.1-8b")
    listed = [("mlx", True), ("torch", False)]

    assert sorted(names(found, machine_of(MAC))) == sorted(listed)
    assert plan_found(found, machine_of(MAC), PlanRequest()).backend == "mlx"
    made = plan_found(found, machine_of(MAC), PlanRequest(backend="torch"))
    assert (made.backend, made.execution.gpu_layers) == ("torch", 0)


def test_this_pc_runs_with_mlx_what_nothing_else_runs() -> None:
    found, machine = release("qwen3-0.6b"), here(PC)
    machine = replace(machine, gpus=(), tiers=tuple(t for t in machine.tiers if t.kind != "vram"))

    assert names(found, machine) == [("mlx", True), ("torch", False)]
    made = plan_found(found, machine, PlanRequest())
    assert (made.backend, made.execution.kv_type, made.execution.gpu_layers) == ("mlx", "f32", 0)
    # Slow, and said so: the kernels are there to be correct.
    assert made.prediction.decode_tps.mid < 10


def test_what_must_stream_is_torchs() -> None:
    found, machine = release("deepseek-v4.1-flash"), here(PC)

    made = plan_found(found, machine, PlanRequest())
    assert made.backend == "torch"
    assert any(each.group == "experts" and each.tier == "disk" for each in made.placements)
    assert made.execution.streams


def test_what_no_backend_runs_here_is_planned_and_not_prepared() -> None:
    found, machine = release("kimi-linear-48b-a3b"), here("rtx-4090+ddr5-6000x2:4+nvme4")

    assert plan_found(found, machine, PlanRequest()).backend == "torch"
    with pytest.raises(DoesNotFitError):
        planned(found, PlanRequest(), machine)


def test_a_mac_with_too_little_memory_streams_experts_with_mlx() -> None:
    made = plan_found(release("deepseek-v4.1-flash"), machine_of("m4-max-128"), PlanRequest())

    assert (made.backend, made.execution.streams, made.execution.engram) == ("mlx", True, "disk")
    assert made.execution.slots_per_layer > 0
    # Its memory and its disk share a controller: what is read adds to what is computed.
    terms = made.prediction.terms_ms
    assert terms[DISK] > 0
    assert not any(name.startswith(HIDDEN) for name in terms)


def test_gguf_is_llama_cpps_everywhere() -> None:
    found = replace(release("llama-3.1-8b"), spec=spec_of("llama-3.1-8b", "Q4_K_M"), format="gguf")
    found = replace(found, spec=replace(found.spec, architecture="llama"))

    for name in (MAC, PC):
        assert names(found, machine_of(name)) == [("llama.cpp", True)]


def both() -> Source:
    """Of a form that both could run."""
    order = ("llama.cpp", "mlx")
    return Source("org/model", (), tuple(Candidate(name, "a test's", True) for name in order))


@pytest.mark.parametrize(
    ("model", "faster"), [("gemma-3-12b", "mlx"), ("llama-3.1-8b", "llama.cpp")]
)
def test_of_two_that_run_a_model_the_one_predicted_to_be_faster_is_taken(
    model: str, faster: str
) -> None:
    """llama.cpp keeps windows in full, which leaves less room for a micro-batch; of equals the
    first in the registry's order is taken."""
    spec, machine, request = spec_of(model), machine_of(MAC), PlanRequest(n_ctx=65536)
    seconds = {}
    for name in ("llama.cpp", "mlx"):
        alone, _ = search(spec, machine, request, Source("m", (), (Candidate(name, "", True),)))
        assert alone is not None
        seconds[name] = alone.seconds

    assert seconds[faster] == min(seconds.values())
    assert plan(spec, machine, request, both()).backend == faster


@pytest.mark.parametrize(("device", "kept"), [(True, "f16"), (False, "f32")])
def test_a_type_of_cache_that_mlx_has_not_is_refused_by_its_flag(device: bool, kept: str) -> None:
    spec = spec_of("qwen3-0.6b")
    source = Source("m", (), (Candidate("mlx", "", device),))
    machine = machine_of(MAC if device else "cpu:16+ddr5-5600x2:64+nvme4")

    with pytest.raises(PlanRequestError, match=f"--kv-type q8_0: mlx keeps {kept}"):
        plan(spec, machine, PlanRequest(kv_type="q8_0"), source)
    assert plan(spec, machine, PlanRequest(), source).execution.kv_type == kept


def test_a_backend_without_the_type_of_cache_gives_way_to_one_with_it() -> None:
    made = plan(spec_of("qwen3-0.6b"), machine_of(MAC), PlanRequest(kv_type="q8_0"), both())

    assert (made.backend, made.execution.kv_type) == ("llama.cpp", "q8_0")
