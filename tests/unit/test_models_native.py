"""What is planned from config.json alone is what a conversion writes, tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import pytest

from localrun.models.describe import describe_config, layout_of
from localrun.models.native import fixed, settled, stays, table
from localrun.quantize.conversion import plan_conversion
from localrun.quantize.families.passthrough import gguf_model_of
from localrun.quantize.recipe import Recipe
from localrun.quantize.types.choice import choose, target_bytes
from tests.deepseek import base, convert_opened, gguf_file, opened, write, written

ARCHITECTURES = ("deepseek_v4", "deepseek_v41")
MIXTURES = ("F32", "BF16", "Q8_0", "Q4_K_M", "MXFP4", "IQ4_XS", "Q2_K")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("release") / request.param, base(request.param))


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_plan_from_the_configuration_has_the_types_and_bytes_of_the_file(
    release: Path, mixture: str
) -> None:
    with opened(release) as checkpoint:
        told = {each.name: each for each in layout_of(checkpoint.config, mixture)}
        spec = describe_config(checkpoint.config, quant=mixture)
        conversion = plan_conversion(checkpoint, Recipe((mixture,)))
        model, types = conversion.gguf, conversion.choices[0].types
    assert model is not None

    written = {each.target.name: each for each in model.tensors}
    assert {name: each.type.name for name, each in told.items()} == types
    assert {name: each.shape for name, each in told.items()} == {
        name: each.target.shape for name, each in written.items()
    }
    whole = sum(target_bytes(each, types[name]) for name, each in written.items())
    assert spec.tensor_bytes == whole == sum(each.bytes for each in told.values())
    assert conversion.outputs[0].files[0].bytes > whole


def test_tables_in_bytes_count_no_more_parameters_than_in_floats() -> None:
    config = base("deepseek_v41")
    found = [
        sum(g.parameters for g in describe_config(config, quant=quant).of("engram"))
        for quant in ("BF16", "Q4_K_M")
    ]
    released = sum(group.parameters for group in describe_config(config).of("engram"))
    assert found == [released, released]


def test_a_release_of_floats_has_tables_of_q8_0_and_experts_of_the_mixture() -> None:
    config = base("deepseek_v41")
    text = config.get("text_config", config)
    for each in (config, text):
        each.pop("quantization_config", None)
        each["expert_dtype"] = "bf16"
    types = {each.name: each.type.name for each in layout_of(config, "Q4_K_M")}
    assert types["blk.1.engram_embd.weight"] == "Q8_0"
    assert types["blk.1.ffn_gate_exps.weight"] == "Q4_K"
    assert {kind for name, kind in types.items() if ".hc_" in name} == {"F32"}


def test_a_file_that_is_quantized_again_keeps_how_streams_are_mixed(release: Path) -> None:
    """Stored F32, where every bit of it is needed, and where llama.cpp's quantizer narrows it."""
    path = release.parent / f"{release.name}.gguf"
    with opened(release) as checkpoint:
        written(convert_opened(checkpoint), path, {})
        config = checkpoint.config
    with gguf_file(path) as file:
        model = gguf_model_of(file)
        types = choose(model, "Q4_K_M", overrides=()).types

    kept = [name for name in types if fixed(model.architecture, name)]
    assert any("hc_attn_fn" in name for name in kept)
    mark = {"deepseek_v4": "compressor_ape", "deepseek_v41": "engram_q_weight"}[release.name]
    assert any(mark in name for name in kept)
    told = {each.name: each.type.name for each in layout_of(config, "F32")}
    assert {name: types[name] for name in kept} == {name: told[name] for name in kept}


def test_four_bits_are_left_where_as_many_or_more_are_wanted() -> None:
    assert {type: stays(type, 64) for type in ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "F16")} == {
        "Q2_K": False, "Q3_K": False, "IQ4_XS": True, "Q4_K": True, "F16": True,
    }  # fmt: skip
    assert not stays("Q8_0", 48)


def test_a_table_is_bytes_and_scales_or_nothing_below_eight_bits() -> None:
    name = "blk.1.engram_embd.weight"
    joined = table(name, (9, 64), (9, 2))
    assert (joined.name, joined.shape, joined.type.name) == (name, (9, 66), "I8")
    assert table(name, (9, 64), (1, 1)).type.name == "Q8_0"
    assert table(name, (9, 64), None).type.name == "Q8_0"
    assert table(name, (9, 48), (9, 1)).type.name == "BF16"
    assert (settled(name, "Q2_K"), settled(name, "F16"), settled("output.weight")) == (
        "Q8_0", None, None,
    )  # fmt: skip
