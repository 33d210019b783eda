"""A checkpoint that mlx quantized: its parameters are counted as they were before."""

from __future__ import annotations

from typing import Any

import pytest

from localrun.errors import HeaderError
from localrun.formats.header import Header, TensorInfo
from localrun.formats.types import SAFETENSORS_TYPES
from localrun.models.describe import describe
from localrun.models.fields import Fields
from localrun.models.mlx_packing import Packing, packing_of

ROWS, COLUMNS = 96, 128


def header(*modules: tuple[str, int, int, str], experts: int = 0) -> Header:
    """Of matrices ``ROWS`` by ``COLUMNS``: (module, weights to a scale, bits, mode)."""
    found = []
    for module, group, bits, mode in modules:
        outer = (experts, ROWS) if experts else (ROWS,)
        scales = "U8" if mode != "affine" else "BF16"
        found.append((f"{module}.weight", (*outer, COLUMNS * bits // 32), "U32"))
        found.append((f"{module}.scales", (*outer, COLUMNS // group), scales))
        if mode == "affine":
            found.append((f"{module}.biases", (*outer, COLUMNS // group), "BF16"))
    tensors, at = [], 0
    for name, shape, kind in found:
        count = SAFETENSORS_TYPES[kind].block_bytes
        for size in shape:
            count *= size
        tensors.append(TensorInfo(name, SAFETENSORS_TYPES[kind], shape, at, count))
        at += count
    return Header("safetensors", ("m.safetensors",), tuple(tensors))


MODES = [
    (64, 4, "affine", "mlx-4bit"),
    (64, 8, "affine", "mlx-8bit"),
    (32, 8, "affine", "mlx-8bit"),
    (128, 3, "affine", "mlx-3bit"),
    (32, 6, "affine", "mlx-6bit"),
    (32, 4, "mxfp4", "mlx-mxfp4"),
    (32, 8, "mxfp8", "mlx-mxfp8"),
    (16, 4, "nvfp4", "mlx-nvfp4"),
]


@pytest.mark.parametrize(("group", "bits", "mode", "called"), MODES)
def test_every_packing_has_the_parameters_it_was_made_of(
    group: int, bits: int, mode: str, called: str
) -> None:
    told = {"group_size": group, "bits": bits, "mode": mode}
    found = header(("model.layers.0.mlp.up_proj", group, bits, mode))

    spec = describe(found, {"model_type": "llama", "quantization": told})

    assert spec.parameters == ROWS * COLUMNS
    assert spec.tensor_bytes == found.tensor_bytes
    assert spec.quantization == called


def test_a_module_may_be_packed_otherwise() -> None:
    name = "model.layers.0.mlp.down_proj"
    told = {
        "group_size": 64,
        "bits": 4,
        name: {"group_size": 32, "bits": 8},
        "lm_head": False,
    }
    found = header(("model.layers.0.mlp.up_proj", 64, 4, "affine"), (name, 32, 8, "affine"))

    assert describe(found, {"quantization": told}).parameters == 2 * ROWS * COLUMNS


def test_stacked_experts_are_experts() -> None:
    found = header(("model.layers.0.mlp.switch_mlp.up_proj", 64, 4, "affine"), experts=8)
    config = {
        "model_type": "qwen3_moe",
        "num_hidden_layers": 1,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "quantization": {"group_size": 64, "bits": 4},
    }

    (group,) = describe(found, config).of("experts")

    assert group.parameters == 8 * ROWS * COLUMNS
    assert group.experts is not None
    assert (group.experts.count, group.experts.used) == (8, 2)
    assert group.experts.bytes == found.tensor_bytes // 8


def test_a_model_without_a_packing_has_none() -> None:
    assert packing_of(Fields({"model_type": "llama"}, "config.json")) is None
    told = {"quantization": {"group_size": 64, "bits": 4}}
    assert packing_of(Fields(told, "config.json")) == Packing(64, 4)


BAD: dict[str, Any] = {
    "a text": "4bit",
    "no group": {"bits": 4},
    "a group of none": {"group_size": 0, "bits": 4},
    "bits of a giant": {"group_size": 64, "bits": 4000},
    "a module without a group": {"group_size": 64, "bits": 4, "lm_head": {"bits": 8}},
    "a mode that is a number": {"group_size": 64, "bits": 4, "mode": 1},
}


@pytest.mark.parametrize("told", BAD.values(), ids=BAD.keys())
def test_a_packing_that_is_none_is_refused(told: object) -> None:
    with pytest.raises(HeaderError, match=r"config\.json"):
        describe(header(("x", 64, 4, "affine")), {"quantization": told})
