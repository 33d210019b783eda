"""Plans for torch: how exactly is computed, what that takes, and what cannot be executed yet."""

from __future__ import annotations

import pytest

from localrun.errors import PlanRequestError
from localrun.plan.engines import engine
from localrun.plan.plan import Budget, Plan, PlanRequest
from localrun.plan.planner import plan
from tests.planned import machine_of, planned, source, spec_of

CPU = "cpu:16+ddr5-5600x2:64+nvme4"
DESKTOP = "rtx-4090+ddr5-6000x2:128+nvme4"
MODES = ("fast", "reference", "float32", "float32-qat")
SMALL = "qwen3-0.6b"
RELEASED = "deepseek-v2-lite"


def small(**asked: object) -> Plan:
    request = PlanRequest(**asked)  # type: ignore[arg-type]  # a table of any fields
    return planned(SMALL, CPU, request, backend="torch")


def ram(made: Plan) -> Budget:
    return next(each for each in made.budgets if each.tier == "ram")


def test_the_modes_are_those_of_the_backend() -> None:
    numerics = pytest.importorskip("localrun.backends.torch.numerics")

    assert engine("torch").numerics == MODES
    assert [numerics.numerics(name).name for name in MODES] == list(MODES)
    assert numerics.numerics("").name == MODES[0]


@pytest.mark.parametrize("name", [None, *MODES])
def test_a_plan_names_how_exactly_is_computed_and_is_read_back(name: str | None) -> None:
    made = small(numerics=name)

    assert made.execution.numerics == (name or "fast")
    assert made.request.numerics == name
    assert Plan.from_json(made.to_json()) == made


@pytest.mark.parametrize("backend", ["llama.cpp", "mlx"])
def test_other_backends_have_one_way_and_refuse_to_be_asked_for_another(backend: str) -> None:
    assert planned(SMALL, CPU, backend=backend).execution.numerics == ""
    with pytest.raises(PlanRequestError, match=f"--numerics float32: {backend} computes in one"):
        planned(SMALL, CPU, PlanRequest(numerics="float32"), backend=backend)


def test_a_mode_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(PlanRequestError, match="--numerics exact: no mode") as caught:
        small(numerics="exact")
    assert all(name in (caught.value.hint or "") for name in MODES)


def test_computing_in_32_bits_keeps_everything_in_them() -> None:
    fast, exact = small(n_ctx=4096), small(n_ctx=4096, numerics="float32")

    assert (fast.execution.kv_type, exact.execution.kv_type) == ("bf16", "f32")
    assert ram(exact).weights == 2 * ram(fast).weights
    assert ram(exact).kv == 2 * ram(fast).kv


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
def test_a_type_of_cache_that_torch_has_not_is_refused_by_its_flag(kv_type: str) -> None:
    with pytest.raises(PlanRequestError, match=f"--kv-type {kv_type}: torch keeps native or bf16"):
        small(kv_type=kv_type)


def test_torch_itself_is_counted_once_wherever_the_model_lies() -> None:
    library = engine("torch").library
    assert library > 100 << 20
    for machine in (CPU, DESKTOP):
        made = planned(SMALL, machine, backend="torch")
        assert library <= ram(made).overhead < 2 * library


def test_experts_that_one_memory_holds_are_held_whole_and_nothing_is_read_ahead() -> None:
    made = planned(RELEASED, "cpu:16+ddr5-5600x2:128+nvme4", backend="torch")

    assert made.execution.slots_per_layer == 0
    assert {each.tier for each in made.placements} == {"ram"}
    assert (made.execution.streams, made.execution.staging_bytes) == (False, 0)


@pytest.mark.parametrize(
    ("model", "machine"),
    [("deepseek-v4-flash", DESKTOP), (RELEASED, "rtx-3060-12gb+ddr5-6000x2:64+nvme4")],
)
def test_a_model_that_is_divided_keeps_its_layers_on_the_card_and_experts_in_slots(
    model: str, machine: str
) -> None:
    made = plan(spec_of(model), machine_of(machine), PlanRequest(), source("torch"))
    told, layers = made.execution, made.model.layers

    assert len({each.tier for each in made.placements if each.group == "experts"}) > 1
    assert told.gpu_layers == layers + 1
    assert 0 < told.card_slots_per_layer < told.slots_per_layer
    assert told.tensor_overrides == ()
    assert not any("yet" in warning for warning in made.warnings)


def test_a_declared_card_is_run_by_the_cpu_and_not_warned_of() -> None:
    made = planned(
        RELEASED, "cpu:16+ddr5-5600x2:128+nvme4", PlanRequest(vram_bytes=8 << 30), backend="torch"
    )

    assert any(tier.device == "simulated" for tier in made.machine.tiers)
    assert made.execution.gpu_layers
    assert not made.warnings


def test_a_shortened_prompt_is_faster_only_where_it_is_asked_for_and_says_so() -> None:
    asked = PlanRequest(approximate_prefill=True)
    whole = planned("deepseek-v4.1-flash", DESKTOP, backend="torch")
    shorter = planned("deepseek-v4.1-flash", DESKTOP, asked, backend="torch")

    assert not whole.execution.approximate_prefill
    assert not any("approximation" in each for each in whole.warnings)
    assert shorter.execution.approximate_prefill
    assert any("an approximation that was asked for" in each for each in shorter.warnings)
    assert shorter.prediction.prefill_tps.mid > whole.prediction.prefill_tps.mid
    assert Plan.from_json(shorter.to_json()) == shorter


@pytest.mark.parametrize(
    ("model", "backend", "problem"),
    [(SMALL, "torch", "keeps rows of a prompt"), ("deepseek-v4.1-flash", "mlx", "prompts whole")],
)
def test_a_prompt_that_cannot_be_shortened_is_refused_by_its_flag(
    model: str, backend: str, problem: str
) -> None:
    with pytest.raises(PlanRequestError, match=f"--approximate-prefill.*{problem}"):
        planned(model, CPU, PlanRequest(approximate_prefill=True), backend=backend)
