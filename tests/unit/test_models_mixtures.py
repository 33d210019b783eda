"""What ``--quant`` makes of a release: names, types and bytes of the GGUF file."""

from __future__ import annotations

from pathlib import Path

import pytest

from localrun.errors import UsageError
from localrun.formats.read import read_header
from localrun.formats.types import GGUF_TYPES
from localrun.models.describe import describe_config, layout_of
from localrun.models.geometries import geometry, names
from localrun.models.layout import LayoutTensor
from localrun.models.mixtures import Model, known, mixture_name, retyped

TYPES = {kind.name: kind for kind in GGUF_TYPES.values()}

# Sizes of published files in GB, as their repositories list them.
PUBLISHED = [
    ("llama-3-8b", "Q8_0", 8.54),
    ("llama-3-8b", "Q6_K", 6.60),
    ("llama-3-8b", "Q5_K_M", 5.73),
    ("llama-3-8b", "Q4_K_M", 4.92),
    ("llama-3-8b", "Q4_0", 4.66),
    ("llama-3-8b", "Q3_K_M", 4.02),
    ("llama-3-8b", "Q2_K", 3.18),
    ("llama-3-8b", "IQ2_XXS", 2.40),
    ("llama-3-70b", "Q4_K_M", 42.52),
    ("qwen3-30b-a3b", "Q4_K_M", 18.6),
    ("qwen3-8b", "Q4_K_M", 5.03),
    ("phi-4", "Q4_K_M", 9.05),
    ("gemma-3-12b", "Q4_K_M", 7.30),
    ("olmoe-1b-7b", "Q4_K_M", 4.21),
    ("gpt-oss-120b", "MXFP4", 63.4),
    ("gpt-oss-20b", "MXFP4", 12.1),
    ("deepseek-v3", "Q4_K_M", 404.0),
    ("kimi-k2.6", "Q4_K_M", 621.0),
]


@pytest.mark.parametrize(("name", "quant", "size"), PUBLISHED)
def test_files_are_as_large_as_published(name: str, quant: str, size: float) -> None:
    spec = describe_config(geometry(name), quant=quant)

    assert spec.tensor_bytes / 1e9 == pytest.approx(size, rel=0.01)
    assert spec.quantization == quant


def test_the_default_model_s_file_is_met_tensor_by_tensor(smollm2_path: Path) -> None:
    header = read_header([smollm2_path])
    made = layout_of(geometry("smollm2-135m"), "Q4_1")

    assert {(tensor.name, tensor.type, tensor.shape) for tensor in made} == {
        (tensor.name, tensor.type, tensor.shape) for tensor in header.tensors
    }


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("quant", ["BF16", "IQ1_S"])
def test_a_conversion_loses_no_parameter_of_the_backbone(name: str, quant: str) -> None:
    released, converted = (
        describe_config(geometry(name)),
        describe_config(geometry(name), quant=quant),
    )
    # Kimi-K3's converter folds the norms of what weighs its blocks into projections.
    folded = (2 * 93 + 1) * 7168 if name == "kimi-k3" else 0

    assert converted.backbone_parameters == released.backbone_parameters - folded
    assert converted.active_parameters == released.active_parameters - folded
    assert not converted.of("vision", "other")


@pytest.mark.parametrize("name", names())
def test_names_are_those_of_gguf_and_come_once_by_layer(name: str) -> None:
    tensors = list(layout_of(geometry(name), "Q4_K_M"))
    found = [tensor.name for tensor in tensors]
    roots = {item.partition(".")[0] for item in found}

    assert len(set(found)) == len(found)
    assert all(tensor.copies == 1 for tensor in tensors)
    assert roots <= {
        "blk",
        "token_embd",
        "output",
        "output_norm",
        "output_hc_fn",
        "output_hc_base",
        "output_hc_scale",
        "output_hc_norm",
        "output_hc_down",
        "output_hc_up",
        "output_res_score",
        "per_layer_token_embd",
    }
    numbers = [int(item.split(".")[1]) for item in found if item.startswith("blk.")]
    assert numbers == sorted(numbers)
    assert not any("proj" in item.split(".")[2] for item in found if item.count(".") == 3)


def test_latent_keys_and_values_are_apart() -> None:
    shapes = {tensor.name: tensor.shape for tensor in layout_of(geometry("deepseek-v3"), "Q8_0")}

    assert shapes["blk.0.attn_k_b.weight"] == (128, 512, 128)
    assert shapes["blk.0.attn_v_b.weight"] == (128, 128, 512)
    assert shapes["blk.3.ffn_gate_exps.weight"] == (256, 2048, 7168)
    assert "blk.61.attn_norm.weight" not in shapes


def test_numbered_drafts_stay_in_the_file_where_the_converter_keeps_them() -> None:
    spec = describe_config(geometry("glm-5.1"), quant="Q4_K_M")

    assert [group.layer for group in spec.of("draft")] == [0]
    assert not describe_config(geometry("qwen3.6-27b"), quant="Q4_K_M").of("draft")


def test_a_quantization_that_no_layout_is_known_for_may_be_replaced() -> None:
    config = geometry("llama-3-8b")
    quantized = {**config, "quantization_config": {"quant_method": "gptq"}}

    assert describe_config(quantized, quant="Q8_0") == describe_config(config, quant="Q8_0")


def test_what_a_file_of_its_own_holds_is_said_not_to_be_counted() -> None:
    both = describe_config(geometry("qwen3.6-27b"), quant="Q4_K_M")
    neither = describe_config(geometry("qwen3-8b"), quant="Q4_K_M")

    assert "draft and vision tensors in files of their own" in both.notes[0]
    assert neither.notes == ()


def one(name: str, *shape: int) -> list[LayoutTensor]:
    return [LayoutTensor(name, shape, TYPES["BF16"])]


DENSE = Model("llama", 32, 0, 4)

FITTING = [
    ("Q4_K_M", 4096, "Q4_K"),
    ("Q4_K_M", 2880, "Q5_0"),
    ("Q5_K_S", 2880, "Q5_1"),
    ("Q6_K", 2880, "Q8_0"),
    ("Q3_K_S", 2880, "Q4_0"),
    ("IQ4_XS", 2880, "IQ4_NL"),
    ("IQ3_S", 2880, "IQ4_NL"),
    ("Q8_0", 80, "F16"),
    ("Q4_K_M", 80, "F16"),
    ("NVFP4", 4096, "NVFP4"),
    ("MXFP4", 4096, "Q8_0"),
    ("F32", 80, "F32"),
]


@pytest.mark.parametrize(("quant", "width", "kind"), FITTING)
def test_a_row_that_blocks_do_not_divide_gets_smaller_ones(
    quant: str, width: int, kind: str
) -> None:
    (tensor,) = retyped(one("blk.9.attn_q.weight", 64, width), quant, DENSE)

    assert tensor.type.name == kind


@pytest.mark.parametrize(
    "name", ["blk.0.attn_norm.weight", "blk.0.ffn_gate_inp.weight", "blk.0.ssm_conv1d.weight"]
)
def test_small_tensors_keep_their_type(name: str) -> None:
    (tensor,) = retyped(one(name, 64, 256), "Q4_K_M", DENSE)

    assert tensor.type.name == "BF16"


@pytest.mark.parametrize("quant", known())
def test_every_mixture_goes_by_its_name_in_any_case(quant: str) -> None:
    assert mixture_name(quant.lower()) == quant


@pytest.mark.parametrize(
    ("alias", "quant"),
    [("mxfp4_moe", "MXFP4"), ("Q3_K", "Q3_K_M"), ("Q4_K", "Q4_K_M"), ("q5_k", "Q5_K_M")],
)
def test_a_mixture_may_go_by_an_older_name(alias: str, quant: str) -> None:
    assert mixture_name(alias) == quant


@pytest.mark.parametrize("quant", ["Q4_K_XL", "", "q9", "Q4_K_M\x1b[31m", "4"])
def test_a_mixture_that_there_is_not_is_refused(quant: str) -> None:
    with pytest.raises(UsageError, match="--quant") as caught:
        describe_config(geometry("llama-3-8b"), quant=quant)
    assert "Q4_K_M" in caught.value.hint
    assert caught.value.message.isprintable()
