"""Headers that are well-formed and absurd: a plan comes of them, or a refusal."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localrun.errors import DoesNotFitError, HeaderError, PlanError
from localrun.formats.header import Header, TensorInfo
from localrun.formats.types import GGUF_TYPES
from localrun.hardware.machine import Machine
from localrun.models.describe import describe
from localrun.models.geometries import names
from localrun.models.spec import ModelSpec
from localrun.plan.plan import PlanRequest
from localrun.plan.planner import plan
from tests.planned import GIB, assert_sound, machine_of, source, spec_of
from tests.strategies import machines, requests, specs

BACKENDS = st.sampled_from(["llama.cpp", "torch"])
RELEASED = names()[::4]


def asked(
    spec: ModelSpec, machine: Machine, request: PlanRequest, backend: str, device: bool
) -> None:
    try:
        made = plan(spec, machine, request, source(backend, device=device))
    except PlanError as error:
        refused = error
    else:
        assert_sound(made, spec)
        return
    assert refused.message
    if isinstance(refused, DoesNotFitError):
        assert refused.shortfall
        assert all(size > 0 for size in refused.shortfall.values())


@settings(max_examples=500, deadline=None, derandomize=True)
@given(specs(), machines(), requests(), BACKENDS, st.booleans())
def test_any_model_on_any_machine_is_planned_soundly_or_refused(
    spec: ModelSpec, machine: Machine, request: PlanRequest, backend: str, device: bool
) -> None:
    asked(spec, machine, request, backend, device)


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(max_examples=10_000, deadline=None)
@given(specs(), machines(), requests(), BACKENDS, st.booleans())
def test_ten_thousand_models_are_planned_soundly_or_refused(
    spec: ModelSpec, machine: Machine, request: PlanRequest, backend: str, device: bool
) -> None:
    asked(spec, machine, request, backend, device)


def header(metadata: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> Header:
    """As a reader hands it over: every tensor F16, or as wide as its name says."""
    kinds = {kind.name: kind for kind in GGUF_TYPES.values()}
    found, offset = [], 0
    for name, shape in tensors.items():
        kind = kinds["F32" if "norm" in name else "F16"]
        size = math.prod(shape) * kind.block_bytes
        found.append(TensorInfo(name, kind, shape, offset, size))
        offset += size
    return Header("gguf", ("m.gguf",), tuple(found), metadata)


def keys(architecture: str = "llama", **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "block_count": 2,
        "context_length": 4096,
        "embedding_length": 64,
        "feed_forward_length": 256,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
    }
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    named = {f"{architecture}.{name}": value for name, value in fields.items() if value is not None}
    return {"general.architecture": architecture, **named}


LAYER = {
    "attn_norm.weight": (64,),
    "attn_q.weight": (64, 64),
    "attn_k.weight": (32, 64),
    "attn_v.weight": (32, 64),
    "attn_output.weight": (64, 64),
    "ffn_norm.weight": (64,),
    "ffn_gate.weight": (256, 64),
    "ffn_up.weight": (256, 64),
    "ffn_down.weight": (64, 256),
}


def tensors(layers: int = 2, **more: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    named = {f"blk.{at}.{name}": shape for at in range(layers) for name, shape in LAYER.items()}
    ends = {"token_embd.weight": (500, 64), "output_norm.weight": (64,), "output.weight": (500, 64)}
    return {**ends, **named, **more}


EXPERTS = {f"blk.0.ffn_{name}_exps.weight": (8, 64, 64) for name in ("gate", "up", "down")}
ABSURD: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "one layer": (keys(block_count=1), tensors(1)),
    "no tensors": (keys(), {}),
    "no heads": (keys(attention__head_count=None, attention__head_count_kv=None), tensors()),
    "no number of layers": (keys(block_count=None), tensors()),
    "a context of 2^31": (keys(context_length=2**31 - 1), tensors()),
    "no context": (keys(context_length=None), tensors()),
    "no width": (keys(embedding_length=None), tensors()),
    "tensors of nothing": (keys(), tensors() | {"blk.0.ffn_up.weight": (0, 64)}),
    "only tensors of nothing": (keys(), {"token_embd.weight": (0, 64), "output.weight": (0, 64)}),
    "only a norm": (keys(), {"output_norm.weight": (64,)}),
    "only experts": (keys("qwen3moe", expert_count=8, expert_used_count=2), EXPERTS),
    "experts of which none are used": (keys("qwen3moe", expert_count=8), tensors() | EXPERTS),
    "experts of nothing": (
        keys("qwen3moe", expert_count=8, expert_used_count=2),
        tensors() | dict.fromkeys(EXPERTS, (8, 0, 64)),
    ),
    "layers beyond the last": (keys(block_count=1), tensors(40)),
    "layers without tensors": (keys(block_count=500), tensors()),
    "an architecture that is not known": (keys("nobody"), tensors()),
    "an architecture that is not known and says nothing": (
        {"general.architecture": "nobody"},
        tensors() | EXPERTS,
    ),
    "a name in no language": (keys(), tensors() | {"\u202e\x1b[2J": (3, 3)}),
    "a table of n-grams": (keys(), tensors() | {"per_layer_token_embd.weight": (500, 512)}),
    "half a terabyte": (keys(), tensors() | {"blk.1.ffn_up.weight": (2**19, 2**19)}),
}
MACHINES = (
    "rtx-4090+ddr5-6000x2:64+nvme4",
    "2xrtx-3090+ddr5-5600x2:64",
    "cpu:4+ddr4-3200x2:8",
    "m4-max-128",
)


@pytest.mark.parametrize("case", ABSURD)
def test_an_absurd_header_that_is_accepted_is_planned_soundly_or_refused(case: str) -> None:
    try:
        spec = describe(header(*ABSURD[case]))
    except HeaderError:
        return
    for machine in MACHINES:
        for backend in ("llama.cpp", "torch"):
            asked(spec, machine_of(machine), PlanRequest(), backend, True)


NAMES = st.sampled_from(
    [
        *(
            "token_embd.weight",
            "output.weight",
            "output_norm.weight",
            "per_layer_token_embd.weight",
        ),
        *(f"blk.{at}.{name}" for at in (0, 1, 7) for name in LAYER),
        *(f"blk.{at}.{name[6:]}" for at in (0, 1, 7) for name in EXPERTS),
        *("blk.1.ffn_gate_inp.weight", "blk.1.ffn_up_shexp.weight", "blk.2.nextn.eh_proj.weight"),
        *("v.patch_embd.weight", "engram.emb.weight", "strange", "blk.0.hc_attn_fn.weight"),
    ]
)
SHAPES = st.lists(st.sampled_from([0, 1, 3, 64, 4096, 2**20]), min_size=1, max_size=3).map(tuple)
COUNTS = st.sampled_from([0, 1, 2, 3, 64, 4096, 2**31 - 1])
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "block_count": st.sampled_from([0, 1, 2, 8, 512]),
        "context_length": COUNTS,
        "embedding_length": COUNTS,
        "feed_forward_length": COUNTS,
        "attention__head_count": COUNTS,
        "attention__head_count_kv": COUNTS,
        "attention__key_length": COUNTS,
        "attention__sliding_window": COUNTS,
        "expert_count": COUNTS,
        "expert_used_count": COUNTS,
        "vocab_size": COUNTS,
    },
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from(["llama", "qwen3moe", "gemma3", "deepseek2", "gpt-oss", "nobody"]),
    FIELDS,
    st.dictionaries(NAMES, SHAPES, max_size=14),
    st.sampled_from(MACHINES),
    st.sampled_from(["llama.cpp", "torch"]),
)
def test_any_header_that_is_accepted_is_planned_soundly_or_refused(
    architecture: str,
    fields: dict[str, Any],
    found: dict[str, tuple[int, ...]],
    machine: str,
    backend: str,
) -> None:
    try:
        spec = describe(header(keys(architecture, **fields), found))
    except HeaderError:
        return
    asked(spec, machine_of(machine), PlanRequest(), backend, True)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sampled_from(RELEASED), st.sampled_from([0, 1, 8, 24, 80]), st.integers(1, 512), BACKENDS)
def test_what_does_not_fit_is_refused_with_numbers_and_nothing_over_budget_is_planned(
    name: str, vram: int, ram: int, backend: str
) -> None:
    """Its own answer held against a sum that cannot be wrong: memory is not larger than it is."""
    spec, request = (
        spec_of(name),
        PlanRequest(n_ctx=4096, vram_bytes=vram * GIB, ram_bytes=ram * GIB),
    )
    try:
        made = plan(spec, machine_of("rtx-4090+ddr5-6000x2:64+nvme4"), request, source(backend))
    except DoesNotFitError as error:
        refused = error
    else:
        assert_sound(made, spec)
        held = sum(b.total for b in made.budgets if b.tier != "disk")
        assert held <= (vram + ram) * GIB
        streams = any(item.tier == "disk" for item in made.placements)
        assert streams or spec.tensor_bytes <= (vram + ram) * GIB
        return
    assert set(refused.shortfall) <= {"vram:0", "ram", "disk"}
    for tier, lacks in refused.shortfall.items():
        assert f"{tier} lacks {lacks / GIB:.2f} GiB" in refused.message
