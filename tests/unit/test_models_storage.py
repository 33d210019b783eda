"""How releases store a matrix, by their ``quantization_config``."""

from __future__ import annotations

from typing import Any

import pytest

from localrun.errors import HeaderError
from localrun.models.fields import Fields
from localrun.models.storage import Mxfp4Blocks, storage_of

PACKED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*mlp\\.(gate|up|down)_proj.*"],
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32}}},
}
FP8: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def stored(config: dict[str, Any], name: str = "x") -> list[tuple[str, str, tuple[int, ...]]]:
    found = storage_of(Fields(config, "config.json")).linear(name, 300, 260)
    return [(tensor.name, tensor.type.name, tensor.shape) for tensor in found]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param({}, [("x.weight", "BF16", (300, 260))], id="nothing_said"),
        pytest.param({"torch_dtype": "float16"}, [("x.weight", "F16", (300, 260))], id="float16"),
        pytest.param({"dtype": "torch.float32"}, [("x.weight", "F32", (300, 260))], id="float32"),
        pytest.param(
            {"quantization_config": FP8},
            [("x.weight", "F8_E4M3", (300, 260)), ("x.weight_scale_inv", "F32", (3, 3))],
            id="fp8_by_block",
        ),
        pytest.param(
            {"quantization_config": {"quant_method": "fp8"}},
            [("x.weight", "F8_E4M3", (300, 260)), ("x.weight_scale_inv", "F32", ())],
            id="fp8_by_tensor",
        ),
        pytest.param(
            {"quantization_config": {"quant_method": "mxfp4"}},
            [("x.weight", "BF16", (300, 260))],
            id="mxfp4_leaves_matrices",
        ),
        pytest.param(
            {"quantization_config": PACKED},
            [
                ("x.weight_packed", "I32", (300, 33)),
                ("x.weight_scale", "BF16", (300, 9)),
                ("x.weight_shape", "I64", (2,)),
            ],
            id="integers_in_words",
        ),
        pytest.param(
            {"quantization_config": {**PACKED, "format": "mxfp4-pack-quantized"}},
            [("x.weight_packed", "U8", (300, 130)), ("x.weight_scale", "U8", (300, 9))],
            id="floats_in_bytes",
        ),
    ],
)
def test_a_matrix_is_stored_as_the_config_says(
    config: dict[str, Any], expected: list[tuple[str, str, tuple[int, ...]]]
) -> None:
    assert stored(config) == expected


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("lm_head", True),
        ("model.lm_head", True),
        ("model.layers.0.self_attn.o_proj", True),
        ("model.layers.0.mlp.up_proj", True),
        ("model.layers.0.mlp.experts.{e}.up_proj", False),
        ("model.lm_heads", False),
    ],
)
def test_what_is_named_keeps_its_type(name: str, kept: bool) -> None:
    found = stored({"quantization_config": PACKED}, name)

    assert (found == [(f"{name}.weight", "BF16", (300, 260))]) is kept


def test_fp8_keeps_modules_that_are_not_converted() -> None:
    config = {"quantization_config": {**FP8, "modules_to_not_convert": ["a.gate", "vision"]}}

    assert len(stored(config, "a.gate")) == 1
    assert len(stored(config, "vision.blocks.0.attn")) == 1
    assert len(stored(config, "a.gate_proj")) == 2


def test_merged_experts_lie_in_blocks_of_32() -> None:
    storage = storage_of(Fields({"quantization_config": {"quant_method": "mxfp4"}}, "config.json"))
    assert isinstance(storage, Mxfp4Blocks)

    assert [(tensor.name, tensor.shape) for tensor in storage.merged("x", 4, 10, 64)] == [
        ("x_blocks", (4, 10, 2, 16)),
        ("x_scales", (4, 10, 2)),
    ]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another_float": ({"dtype": "float8"}, "dtype"),
    "not_a_text": ({"torch_dtype": 16}, "torch_dtype"),
    "awq": ({"quantization_config": {"quant_method": "awq"}}, "quantization_config.quant_method"),
    "no_method": ({"quantization_config": {}}, "quantization_config.quant_method"),
    "a_list": ({"quantization_config": []}, "quantization_config"),
    "one_block_side": (
        {"quantization_config": {**FP8, "weight_block_size": [128]}},
        "quantization_config.weight_block_size",
    ),
    "block_0": (
        {"quantization_config": {**FP8, "weight_block_size": [128, 0]}},
        "quantization_config.weight_block_size[1]",
    ),
    "another_format": (
        {"quantization_config": {**PACKED, "format": "marlin-24"}},
        "quantization_config.format",
    ),
    "8_bits": (
        {
            "quantization_config": {
                **PACKED,
                "config_groups": {"a": {"weights": {"num_bits": 8, "group_size": 32}}},
            }
        },
        "quantization_config.config_groups.a.weights.num_bits",
    ),
    "no_groups": (
        {"quantization_config": {**PACKED, "config_groups": None}},
        "quantization_config.config_groups",
    ),
    "ignore_a_number": (
        {"quantization_config": {**PACKED, "ignore": 3}},
        "quantization_config.ignore",
    ),
}
PATTERNS = ["(a+)+$", "(.*)*x", "(?:a|aa)+b", ".*.*.*.*x", "a{9}", "[", "(", "\\1", "x" * 300]
for pattern in PATTERNS:
    REFUSED[f"pattern_{pattern[:12]}"] = (
        {"quantization_config": {**PACKED, "ignore": [f"re:{pattern}"]}},
        "quantization_config.ignore",
    )


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_layout_is_known_for_is_refused_by_its_field(name: str) -> None:
    config, field = REFUSED[name]

    with pytest.raises(HeaderError) as caught:
        stored(config)
    assert (caught.value.field, caught.value.file) == (field, "config.json")
