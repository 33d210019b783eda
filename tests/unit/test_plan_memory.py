"""Where llama.cpp will put what, for devices that no test machine has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrun.formats.header import Header
from localrun.formats.read import read_header
from localrun.models.describe import describe
from localrun.models.spec import CacheRows, ModelSpec
from localrun.plan.memory import (
    device_compute_bytes,
    layer_floats,
    llamacpp_kv_bytes,
    llamacpp_memory,
    plain_attention,
)
from localrun.plan.plan import Execution, PlanRequest
from localrun.plan.seats import Seats, repacked_types
from tests.planned import planned, spec_of
from tests.shapes import Shape, write

RAM = Execution(4096, 512, "f16", 4, 4, True, gpu_layers=0)
DENSE = Shape(layers=8, width=256, ffn=1024)
EXPERTS = Shape(layers=8, width=256, experts=8, used=2, ffn=512)


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> dict[Shape, Header]:
    folder = tmp_path_factory.mktemp("shapes")
    shapes = (DENSE, EXPERTS, replace(DENSE, tied=True))
    return {
        shape: read_header([write(folder / f"{number}.gguf", shape)])
        for number, shape in enumerate(shapes)
    }


def size(header: Header, *parts: str) -> int:
    return sum(tensor.bytes for tensor in header.tensors if any(p in tensor.name for p in parts))


def test_whole_models_go_to_the_device_but_for_the_table_that_is_looked_up(
    headers: dict[Shape, Header],
) -> None:
    header = headers[DENSE]
    found = llamacpp_memory(
        describe(header), replace(RAM, gpu_layers=9, tensor_split=(1.0,)), header.tensors
    )

    assert set(found) == {"ram", "vram:0"}
    assert found["ram"].weights == size(header, "token_embd")
    assert found["ram"].weights + found["vram:0"].weights == header.tensor_bytes
    assert found["ram"].kv == 0
    assert found["vram:0"].kv == 4096 * 8 * 2 * 64 * 2 * 2
    assert found["ram"].compute < found["vram:0"].compute
    assert found["vram:0"].output == found["vram:0"].scratch == found["vram:0"].mapped == 0


def test_a_table_that_is_the_output_too_is_on_both_sides(headers: dict[Shape, Header]) -> None:
    header = headers[replace(DENSE, tied=True)]
    spec = describe(header)
    table = size(header, "token_embd")

    in_ram = llamacpp_memory(spec, RAM, header.tensors)["ram"]
    split = llamacpp_memory(spec, replace(RAM, gpu_layers=9), header.tensors)

    assert in_ram.weights == header.tensor_bytes
    assert split["ram"].weights == table
    assert split["vram:0"].weights == header.tensor_bytes


@pytest.mark.parametrize(
    ("gpu_layers", "shares", "tiers"),
    [
        (0, (), ["ram"] * 9),
        (1, (1.0,), ["ram"] * 8 + ["vram:0"]),
        (5, (1.0,), ["ram"] * 4 + ["vram:0"] * 5),
        (9, (3.0, 1.0), ["vram:0"] * 7 + ["vram:1"] * 2),
        (9, (1.0, 1.0, 1.0), ["vram:0"] * 3 + ["vram:1"] * 3 + ["vram:2"] * 3),
        (6, (1.0, 1.0), ["ram"] * 3 + ["vram:0"] * 3 + ["vram:1"] * 3),
        (99, (1.0,), ["vram:0"] * 9),
    ],
)
def test_layers_are_shared_out_as_llama_cpp_does(
    headers: dict[Shape, Header], gpu_layers: int, shares: tuple[float, ...], tiers: list[str]
) -> None:
    """The output behind the last layer counts as one (llama_model::load_tensors)."""
    seats = Seats(
        describe(headers[DENSE]), replace(RAM, gpu_layers=gpu_layers, tensor_split=shares)
    )
    assert [seats.layer(index) for index in range(9)] == tiers


@pytest.mark.parametrize("known", ["tensors", "groups"])
def test_experts_stay_where_an_override_puts_them(headers: dict[Shape, Header], known: str) -> None:
    header = headers[EXPERTS]
    execution = replace(
        RAM, gpu_layers=9, tensor_overrides=((r"blk\.[0-3]\.ffn_.*_exps", "ram"),), mmap=False
    )
    tensors = header.tensors if known == "tensors" else ()

    found = llamacpp_memory(describe(header), execution, tensors)

    experts = size(header, *(f"blk.{layer}.ffn_{x}_exps" for layer in range(4) for x in NAMES))
    assert found["ram"].weights == experts + size(header, "token_embd")
    assert found["ram"].weights + found["vram:0"].weights == header.tensor_bytes
    # One matrix of the experts in RAM is copied over at a time.
    without = llamacpp_memory(describe(header), replace(execution, tensor_overrides=()), tensors)
    copied = found["vram:0"].compute - without["vram:0"].compute
    assert copied == size(header, "blk.0.ffn_up_exps")


NAMES = ("gate", "up", "down")


def test_the_cache_stays_in_ram_when_the_plan_says_so(headers: dict[Shape, Header]) -> None:
    execution = replace(RAM, gpu_layers=9, kv_on_device=False)
    found = llamacpp_memory(describe(headers[DENSE]), execution)
    assert (found["vram:0"].kv, found["ram"].kv) == (0, 4096 * 8 * 2 * 64 * 2 * 2)


def test_the_cache_is_whole_steps_of_cells_and_never_a_window() -> None:
    spec = _spec(CacheRows("sliding", (0, 1), 256, window=128), CacheRows("full", (2,), 256))

    def kept(n_ctx: int, **changes: int) -> int:
        return llamacpp_kv_bytes(spec, replace(RAM, n_ctx=n_ctx, **changes))  # type: ignore[arg-type]  # counts

    assert kept(1) == kept(256) == 256 * 3 * 256 * 2
    assert kept(257) == kept(300) == 512 * 3 * 256 * 2
    assert kept(1, parallel=50) == 50 * kept(1)
    assert kept(257, parallel=3) == 3 * kept(257)
    assert llamacpp_kv_bytes(spec, replace(RAM, n_ctx=256, kv_type="q8_0")) == 256 * 3 * 8 * 34


def test_fixed_states_are_kept_for_every_sequence() -> None:
    spec = replace(_spec(CacheRows("full", (0,), 256)), state_bytes=((1, 5000), (2, 5000)))
    rows = 4096 * 256 * 2
    assert llamacpp_kv_bytes(spec, RAM) == rows + 4 * 10_000
    assert llamacpp_kv_bytes(spec, replace(RAM, parallel=6)) == 6 * (rows + 10_000)


def test_repacked_weights_leave_their_place_in_the_file_unused(tmp_path: Path) -> None:
    header = read_header([write(tmp_path / "m.gguf", replace(DENSE, type="Q4_0"))])
    spec = describe(header)
    repacked = repacked_types(["sse2", "avx2"])
    packed = sum(tensor.bytes for tensor in header.tensors if tensor.type.name == "Q4_0")
    packed -= size(header, "token_embd")

    mapped = llamacpp_memory(spec, RAM, header.tensors, repacked=repacked)["ram"]
    read = llamacpp_memory(spec, replace(RAM, mmap=False), header.tensors, repacked=repacked)
    plain = llamacpp_memory(spec, RAM, header.tensors)["ram"]
    beside_a_device = llamacpp_memory(
        spec, replace(RAM, gpu_layers=1), header.tensors, repacked=repacked
    )

    # Blocks of tensors lie at whole steps of 32 bytes.
    assert mapped.mapped == pytest.approx(packed, abs=32 * len(header.tensors))
    assert mapped.weights == plain.weights == header.tensor_bytes
    assert read["ram"].mapped == 0
    assert plain.mapped < 32 * len(header.tensors)
    assert beside_a_device["ram"].mapped < 32 * len(header.tensors)
    assert repacked_types(["ssse3"]) == frozenset()


@given(st.integers(1, 4096), st.integers(1, 1 << 20), st.booleans())
def test_a_compute_buffer_grows_with_the_micro_batch_and_with_the_context(
    ubatch: int, n_ctx: int, head: bool
) -> None:
    spec = replace(_spec(CacheRows("full", (0,), 256)), vocabulary=5000)
    # A mask of one to two rows may leave a hole; beyond it nothing shrinks.
    n_ctx += 2048
    here = device_compute_bytes(spec, ubatch, n_ctx, head=head)
    assert here > 0
    assert device_compute_bytes(spec, ubatch + 1, n_ctx, head=head) >= here
    assert device_compute_bytes(spec, ubatch, n_ctx + 256, head=head) >= here
    known = layer_floats(spec)
    assert device_compute_bytes(spec, ubatch, n_ctx, head=head, floats=known) == here


def _spec(*caches: CacheRows) -> ModelSpec:
    return ModelSpec(
        "llama", "", 0, 0, 0, 4, 0, 0, {}, None, None, None,
        caches=caches, width=256, heads=4, ffn_width=1024,
    )  # fmt: skip


ATTENTION = {
    "one stream": (PlanRequest(parallel=1), "cpu:16+ddr5-5600x2:64+nvme4", True),
    "several streams": (PlanRequest(parallel=4), "cpu:16+ddr5-5600x2:64+nvme4", False),
    "a quantized cache": (
        PlanRequest(parallel=4, kv_type="q8_0"),
        "cpu:16+ddr5-5600x2:64+nvme4",
        True,
    ),
    "layers on a card": (PlanRequest(parallel=4), "rtx-4090+ddr5-6000x2:128+nvme4", True),
}


@pytest.mark.parametrize(("request_", "machine", "flash"), ATTENTION.values(), ids=list(ATTENTION))
def test_streams_on_the_host_compute_attention_so_that_none_changes_another(
    request_: PlanRequest, machine: str, flash: bool
) -> None:
    made = planned("qwen3-8b", machine, request_, quant="Q4_K_M")

    assert made.fits
    assert made.execution.flash_attention is flash


def test_scores_count_where_they_are_written_down() -> None:
    spec = spec_of("qwen3-8b", "Q4_K_M")
    told = replace(RAM, n_ctx=16384, parallel=4)
    with_scores = llamacpp_memory(spec, replace(told, flash_attention=False))["ram"]

    assert with_scores.compute > llamacpp_memory(spec, told)["ram"].compute + 2**29
    assert plain_attention(spec, "f16", 4)
    assert not plain_attention(spec_of("deepseek-v4-flash"), "f16", 4)
