"""Knows no machine: what the planner decides for machines and requests made up here."""

from __future__ import annotations

import ast
import inspect
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrun.errors import DoesNotFitError, UsageError
from localrun.hardware.machine import Cpu, Gpu, Machine, Memory
from localrun.models.spec import ModelSpec, Tokenizer
from localrun.plan import planner
from localrun.plan.plan import Plan, PlanRequest
from localrun.plan.planner import Source, plan

GB = 10**9
SPEC = ModelSpec(
    architecture="llama",
    name="A model of 8 B",
    parameters=8 * GB,
    tensor_bytes=5 * GB,
    tensors=291,
    layers=32,
    n_ctx_train=131_072,
    kv_bytes_per_token=131_072,
    tensor_types={},
    tokenizer=Tokenizer("gpt2", "llama-bpe", 128_256),
    chat_template=None,
    licence=None,
)
GPU = Gpu("A GPU of 24 GB", "cuda", total=24 * GB, free=24 * GB, driver="1")


def machine(available: int = 32 * GB, *, gpus: tuple[Gpu, ...] = (), usable: int = 8) -> Machine:
    return Machine(
        system="Linux",
        architecture="x86_64",
        cpu=Cpu("A CPU", cores=8, logical=16, usable=usable),
        memory=Memory(total=64 * GB, available=available, limit=64 * GB),
        gpus=gpus,
        disks=(),
    )


def source(*, device: bool = False) -> Source:
    return Source("hf:org/repo", ("/model.gguf",), "llama.cpp", device)


def test_the_context_is_what_fits_and_at_most_the_default() -> None:
    roomy = plan(SPEC, machine(), PlanRequest(), source())
    tight = plan(SPEC, machine(8 * GB), PlanRequest(), source())

    assert roomy.execution.n_ctx == planner.DEFAULT_N_CTX
    assert planner.SMALLEST_N_CTX <= tight.execution.n_ctx < planner.DEFAULT_N_CTX
    assert tight.budgets[0].total <= tight.budgets[0].limit


def test_a_context_the_user_names_is_kept_or_refused_with_both_numbers() -> None:
    kept = plan(SPEC, machine(), PlanRequest(n_ctx=65_536), source())

    assert kept.execution.n_ctx == 65_536
    with pytest.raises(DoesNotFitError, match=r"17\.\d+ KV for 131072 tokens.*11\.\d+ GB are free"):
        plan(SPEC, machine(12 * GB), PlanRequest(n_ctx=131_072), source())


@pytest.mark.parametrize("ram", [0, GB])
def test_a_limit_that_is_too_low_is_refused_by_its_flags_name(ram: int) -> None:
    with pytest.raises(DoesNotFitError, match=rf"{ram / GB:.2f} GB are allowed by --ram"):
        plan(SPEC, machine(), PlanRequest(ram_bytes=ram), source())


def test_a_short_model_keeps_its_own_context_and_a_longer_request_is_warned_about() -> None:
    short = replace(SPEC, n_ctx_train=2048)

    assert plan(short, machine(), PlanRequest(), source()).execution.n_ctx == 2048
    longer = plan(short, machine(), PlanRequest(n_ctx=4096), source())
    assert any("2048" in warning for warning in longer.warnings)


def test_weights_beyond_memory_do_not_fit() -> None:
    with pytest.raises(DoesNotFitError, match=r"5\.00 weights"):
        plan(SPEC, machine(4 * GB), PlanRequest(), source())


def test_a_flag_may_raise_or_lower_the_limit() -> None:
    assert plan(SPEC, machine(4 * GB), PlanRequest(ram_bytes=16 * GB), source()).budgets
    with pytest.raises(DoesNotFitError):
        plan(SPEC, machine(), PlanRequest(ram_bytes=2 * GB), source())


def test_layers_go_to_the_device_as_far_as_its_memory_reaches() -> None:
    whole = plan(SPEC, machine(gpus=(GPU,)), PlanRequest(n_ctx=8192), source(device=True))
    part = plan(
        SPEC, machine(gpus=(GPU,)), PlanRequest(n_ctx=8192, vram_bytes=3 * GB), source(device=True)
    )

    assert whole.execution.gpu_layers == SPEC.layers + 1
    assert 0 < part.execution.gpu_layers < SPEC.layers
    assert part.budgets[0].total <= 3 * GB


def test_a_device_the_library_was_not_built_for_is_named_and_not_used() -> None:
    made = plan(SPEC, machine(gpus=(GPU,)), PlanRequest(), source())

    assert made.execution.gpu_layers == 0
    assert any(GPU.name in warning for warning in made.warnings)


def test_threads_are_the_usable_cores_unless_the_user_names_them() -> None:
    assert plan(SPEC, machine(usable=3), PlanRequest(), source()).execution.threads == 3
    assert plan(SPEC, machine(usable=16), PlanRequest(), source()).execution.threads == 8
    assert plan(SPEC, machine(), PlanRequest(threads=2), source()).execution.threads == 2


@pytest.mark.parametrize(
    "wrong", [PlanRequest(n_ctx=0), PlanRequest(threads=0), PlanRequest(threads=17)]
)
def test_a_flag_no_plan_can_satisfy_is_a_usage_error(wrong: PlanRequest) -> None:
    with pytest.raises(UsageError, match="--"):
        plan(SPEC, machine(), wrong, source())


@given(
    available=st.integers(0, 2**50),
    vram=st.integers(0, 2**45),
    n_ctx=st.none() | st.integers(1, 2**40),
    kv=st.integers(0, 2**30),
    weights=st.integers(0, 2**45),
    layers=st.integers(0, 1000),
)
def test_every_plan_fits_or_is_refused(
    available: int, vram: int, n_ctx: int | None, kv: int, weights: int, layers: int
) -> None:
    spec = replace(SPEC, kv_bytes_per_token=kv, tensor_bytes=weights, layers=layers)
    here = machine(available, gpus=(replace(GPU, free=vram),))

    try:
        made = plan(spec, here, PlanRequest(n_ctx=n_ctx), source(device=True))
    except DoesNotFitError:
        return

    assert all(0 <= budget.total <= budget.limit for budget in made.budgets)
    assert made.execution.n_ctx >= 1
    assert Plan.from_json(made.to_json()) == made


@given(n_ctx=st.integers(1, 100_000), more=st.integers(0, 100_000))
def test_a_longer_context_never_needs_less(n_ctx: int, more: int) -> None:
    here = machine(10**13)

    less, greater = (
        plan(SPEC, here, PlanRequest(n_ctx=length), source()).budgets[0].total
        for length in (n_ctx, n_ctx + more)
    )

    assert less <= greater


BAD_DOCUMENTS = {
    "not JSON": "{",
    "another version": '{"version": 99}',
    "not an object": "[]",
    "a missing field": '{"version": 1, "ref": "x"}',
    "an unknown execution field": '{"version": 1, "ref": "x", "files": [], "architecture": "a", '
    '"backend": "b", "execution": {"n": 1}, "budgets": [], "warnings": []}',
}


@pytest.mark.parametrize("text", BAD_DOCUMENTS.values(), ids=BAD_DOCUMENTS.keys())
def test_a_document_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="plan"):
        Plan.from_json(text)


def test_planning_does_no_io() -> None:
    names = {
        node.id if isinstance(node, ast.Name) else node.attr
        for module in (planner, inspect.getmodule(Plan))
        if module is not None
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Name | ast.Attribute)
    }

    assert not names & {"open", "read_text", "read_bytes", "stat", "os", "Path", "subprocess"}
