"""Tensors of a header and tensors of a layout make the same groups."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from localrun.formats.header import Header, TensorInfo
from localrun.formats.types import GGUF_TYPES, SAFETENSORS_TYPES
from localrun.models.describe import describe, describe_config, layout_of
from localrun.models.geometries import geometry, names
from localrun.models.grouping import Entry, groups, merged, parameters_of, scales
from localrun.models.layout import LayoutTensor
from localrun.models.spec import Experts

GGUF = {kind.name: kind for kind in GGUF_TYPES.values()}
# The largest takes a second to spell out; the others are of every storage and family.
SPELT_OUT = [name for name in names() if name != "kimi-k3"]


def header(tensors: Iterable[LayoutTensor]) -> Header:
    infos, place = [], 0
    for tensor in tensors:
        for name in tensor.names():
            infos.append(TensorInfo(name, tensor.type, tensor.shape, place, tensor.bytes))
            place += tensor.bytes
    return Header("safetensors", ("model.safetensors",), tuple(infos))


@pytest.mark.parametrize("name", SPELT_OUT)
def test_a_header_says_what_the_bare_config_says(name: str) -> None:
    config = {key: item for key, item in geometry(name).items() if key[:1] != "_"}

    assert describe(header(layout_of(config)), config) == describe_config(config)


@pytest.mark.parametrize("name", SPELT_OUT)
def test_groups_add_up_to_the_file(name: str) -> None:
    spec = describe_config(geometry(name))

    assert sum(group.bytes for group in spec.groups) == spec.tensor_bytes
    assert sum(group.tensors for group in spec.groups) == spec.tensors
    assert sum(sum(group.types.values()) for group in spec.groups) == spec.tensor_bytes
    assert all(0 <= group.active_bytes <= group.bytes for group in spec.groups)
    assert all(0 <= group.active_parameters <= group.parameters for group in spec.groups)


def test_the_experts_of_a_layer_are_told_by_number() -> None:
    spec = describe_config(geometry("deepseek-v4.1-flash"))

    assert len(spec.of("experts")) == 40
    assert {group.experts for group in spec.of("experts")} == {Experts(384, 6, 18_800_640)}


@pytest.mark.parametrize("quant", [None, "MXFP4", "Q4_K_M"])
def test_merged_experts_are_told_by_their_first_dimension(quant: str | None) -> None:
    spec = describe_config(geometry("gpt-oss-20b"), quant=quant)
    found = [group.experts for group in spec.of("experts")]

    assert all(experts and (experts.count, experts.used) == (32, 4) for experts in found)
    assert all(group.active_bytes * 8 == group.bytes for group in spec.of("experts"))


def test_an_embedding_costs_a_row_or_is_the_head_and_read_whole() -> None:
    (apart,) = describe_config(geometry("llama-3-8b")).of("embedding")
    (tied,) = describe_config(geometry("llama-3.2-3b")).of("embedding")

    assert (apart.active_parameters, apart.active_bytes) == (0, 2 * 4096)
    assert (tied.active_parameters, tied.active_bytes) == (tied.parameters, tied.bytes)


def entry(name: str, shape: tuple[int, ...], kind: str) -> Entry:
    tensor = LayoutTensor(name, shape, {**SAFETENSORS_TYPES, **GGUF}[kind])
    return Entry(name, shape, kind, 1, tensor.bytes)


PACKED = {
    "fp4_in_bytes": ([("x.weight", (8, 32), "I8"), ("x.scale", (8, 2), "F8_E8M0")], 8 * 64),
    "int8": ([("x.weight", (8, 64), "I8"), ("x.scale", (8, 1), "F32")], 8 * 64),
    "int8_scaled_by_row": (
        [("x.weight", (8, 64), "I8"), ("x.weight_scale", (8, 1), "F32")],
        8 * 64,
    ),
    "fp8_block": (
        [("x.weight", (8, 64), "F8_E4M3"), ("x.weight_scale_inv", (1, 1), "F32")],
        8 * 64,
    ),
    "nvfp4": (
        [
            ("x.weight", (8, 32), "U8"),
            ("x.weight_scale", (8, 4), "F8_E4M3"),
            ("x.weight_scale_2", (), "F32"),
            ("x.input_scale", (), "F32"),
        ],
        8 * 64,
    ),
    "mxfp4_blocks": (
        [("x_blocks", (8, 2, 16), "U8"), ("x_scales", (8, 2), "U8")],
        8 * 64,
    ),
    "int4_in_words": (
        [
            ("x.weight_packed", (8, 8), "I32"),
            ("x.weight_scale", (8, 2), "BF16"),
            ("x.weight_shape", (2,), "I64"),
        ],
        8 * 64,
    ),
    "awq": (
        [("x.qweight", (64, 1), "I32"), ("x.qzeros", (2, 1), "I32"), ("x.scales", (2, 8), "F16")],
        8 * 64,
    ),
    "mlx_4bit": (
        [("x.weight", (8, 8), "U32"), ("x.scales", (8, 2), "F16"), ("x.biases", (8, 2), "F16")],
        8 * 64,
    ),
    "gguf": ([("blk.0.attn_q.weight", (8, 256), "Q4_K")], 8 * 256),
    "routing_table": ([("layers.0.ffn.gate.tid2eid", (100, 6), "I64")], 0),
    "bias": ([("x.bias", (8,), "BF16")], 8),
}


@pytest.mark.parametrize("name", PACKED)
def test_parameters_are_counted_as_the_model_has_them(name: str) -> None:
    tensors, expected = PACKED[name]
    found = [entry(*tensor) for tensor in tensors]

    assert sum(parameters_of(each, scales(found)) for each in found) == expected


def test_a_token_reads_one_row_of_a_table_of_experts_by_token() -> None:
    found = [
        entry("layers.0.ffn.gate.tid2eid", (1000, 6), "I64"),
        entry("layers.0.ffn.gate.weight", (8, 16), "BF16"),
    ]
    (router,) = groups(found, layers=1)

    assert (router.bytes, router.active_bytes) == (1000 * 48 + 256, 48 + 256)


def test_experts_that_differ_stay_apart() -> None:
    wide, narrow = SAFETENSORS_TYPES["BF16"], SAFETENSORS_TYPES["F8_E4M3"]
    kinds = [wide, wide, narrow, wide]
    infos = [
        TensorInfo(f"layers.0.ffn.experts.{number}.w1.weight", kind, (4, 4), 0, 16)
        for number, kind in enumerate(kinds)
    ]

    assert [(each.type, each.copies) for each in merged(infos)] == [("BF16", 3), ("F8_E4M3", 1)]


def test_empty_tensors_and_scalars_are_taken_as_they_are() -> None:
    kind = SAFETENSORS_TYPES["BF16"]
    tensors = [LayoutTensor("a", (0,), kind), LayoutTensor("b", (3, 0), kind)]
    spec = describe(header([*tensors, LayoutTensor("c", (), kind)]))

    assert (spec.tensors, spec.tensor_bytes, spec.parameters) == (3, 2, 1)


@pytest.mark.timeout(30)
def test_a_hundred_thousand_different_names_are_told_one_by_one() -> None:
    kind = SAFETENSORS_TYPES["BF16"]
    tensors = (
        LayoutTensor(f"model.layers.{number % 60}.part{number}.weight", (8, 8), kind)
        for number in range(100_000)
    )

    spec = describe(header(tensors), {"model_type": "llama", "num_hidden_layers": 60})

    assert (spec.tensors, len(spec.of("attention"))) == (100_000, 60)
    assert spec.guessed
