"""Asks for plans in tests, and what every plan must hold whatever it is of."""

from __future__ import annotations

import math
from functools import cache

from localrun.hardware.machine import Machine
from localrun.hardware.profiles import named
from localrun.models.describe import describe_config
from localrun.models.geometries import geometry
from localrun.models.spec import ModelSpec
from localrun.plan import torch_memory
from localrun.plan.plan import Plan, PlanRequest, Prediction, Range
from localrun.plan.planner import plan
from localrun.plan.search import Candidate, Source

GIB = 1 << 30
MEMORY = ("vram", "ram", "unified")


def source(backend: str = "llama.cpp", *, device: bool = True) -> Source:
    return Source("org/model", (), (Candidate(backend, "the test's", device),))


@cache
def spec_of(name: str, quant: str | None = None) -> ModelSpec:
    return describe_config(geometry(name), quant=quant)


@cache
def machine_of(name: str) -> Machine:
    return named(name)


def planned(
    model: str,
    machine: str,
    request: PlanRequest | None = None,
    *,
    quant: str | None = None,
    backend: str = "llama.cpp",
) -> Plan:
    """A plan of a released model on a machine by name."""
    request = request or PlanRequest()
    return plan(spec_of(model, quant), machine_of(machine), request, source(backend))


def assert_sound(made: Plan, spec: ModelSpec) -> None:
    """What holds of every plan of ``spec``."""
    _assert_placed(made, spec)
    _assert_executable(made, spec)
    _assert_predicted(made.prediction)
    assert all(size >= 0 for size in made.bytes_per_token.values())
    assert Plan.from_json(made.to_json()) == made


def _assert_placed(made: Plan, spec: ModelSpec) -> None:
    assert made.fits
    for budget in made.budgets:
        parts = (budget.weights, budget.kv, budget.compute, budget.expert_cache, budget.overhead)
        assert min(parts) >= 0, budget
        assert budget.total <= budget.limit, budget
    assert all(item.bytes > 0 and item.count >= 0 for item in made.placements)
    assert sum(item.bytes for item in made.placements) == _held(made, spec)
    tiers = {budget.tier for budget in made.budgets}
    assert {item.tier for item in made.placements} <= tiers


def _held(made: Plan, spec: ModelSpec) -> int:
    """Of the tensors, as they lie in memory."""
    if made.backend != "torch":
        return spec.tensor_bytes
    exact = made.execution.numerics.startswith("float32")
    return sum(group.bytes for group in torch_memory.held(spec, exact=exact).groups)


def _assert_executable(made: Plan, spec: ModelSpec) -> None:
    told = made.execution
    assert told.n_ctx >= 1
    assert told.parallel >= 1
    assert 1 <= told.ubatch <= told.n_ctx * told.parallel
    assert 1 <= told.threads <= told.threads_max
    assert 0 <= told.gpu_layers <= spec.layers + 1
    cards = [budget for budget in made.budgets if budget.tier.startswith("vram")]
    if told.tensor_split:
        assert len(told.tensor_split) == len(cards)
        assert sum(told.tensor_split) == told.gpu_layers
    assert told.slots_per_layer >= 0


def _assert_predicted(found: Prediction) -> None:
    for each in (found.decode_tps, found.prefill_tps, found.ttft_s, found.cold, found.steady):
        assert _ordered(each), each
    assert found.cold.mid <= found.decode_tps.mid <= found.steady.mid
    assert found.bound_by
    total = sum(found.terms_ms.values())
    assert math.isclose(total, 1e3 / found.decode_tps.mid, rel_tol=0.01)
    assert all(time >= 0 for name, time in found.terms_ms.items() if not name.startswith("hidden"))
    assert all(math.isfinite(time) and time >= 0 for time in found.prefill_terms_ms.values())


def _ordered(found: Range) -> bool:
    values = (found.low, found.mid, found.high)
    return 0 < found.low <= found.mid <= found.high and all(map(math.isfinite, values))
