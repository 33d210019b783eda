"""Names as people publish them: what belongs together, and what a tag means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrun.errors import ModelNotFoundError
from localrun.store.quants import (
    PREFERENCE,
    choose,
    choose_projector,
    containing,
    group,
    quant_tag,
)

TAGS = {
    "Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf": "Q4_K_M",
    "qwen2.5-7b-instruct-q4_k_m.gguf": "Q4_K_M",
    "qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf": "Q4_K_M",
    "llama-2-7b.Q4_K_M.gguf": "Q4_K_M",
    "ggml-model-q4_0.gguf": "Q4_0",
    "ggml-model-Q4_0_4_4.gguf": "Q4_0_4_4",
    "Phi-3.5-mini-instruct-Q4_0_8_8.gguf": "Q4_0_8_8",
    "Phi-3-mini-4k-instruct-q4.gguf": "Q4",
    "Phi-3-mini-4k-instruct-fp16.gguf": "F16",
    "Qwen3-30B-A3B-UD-Q4_K_XL.gguf": "UD-Q4_K_XL",
    "UD-Q2_K_XL/DeepSeek-V3.1-UD-Q2_K_XL-00001-of-00006.gguf": "UD-Q2_K_XL",
    "DeepSeek-R1-UD-IQ1_S/DeepSeek-R1-UD-IQ1_S-00001-of-00003.gguf": "UD-IQ1_S",
    "DeepSeek-V3.1-UD-TQ1_0.gguf": "UD-TQ1_0",
    "Q4_K_M/model-00001-of-00009.gguf": "Q4_K_M",
    "BF16/Qwen3-30B-A3B-BF16-00001-of-00002.gguf": "BF16",
    "gpt-oss-20b-mxfp4.gguf": "MXFP4",
    "gpt-oss-120b-mxfp4-00001-of-00003.gguf": "MXFP4",
    "gpt-oss-20b-MXFP4.gguf": "MXFP4",
    "Qwen3-Coder-30B-A3B-Instruct-MXFP4_MOE.gguf": "MXFP4_MOE",
    "gemma-3-4b-it-q4_0.gguf": "Q4_0",
    "gemma-3-27b-it-qat-Q4_0.gguf": "Q4_0",
    "gemma-3-1b-it-bf16.gguf": "BF16",
    "Mistral-7B-Instruct-v0.3.IQ4_XS.gguf": "IQ4_XS",
    "Mistral-7B-Instruct-v0.3.i1-IQ2_XXS.gguf": "IQ2_XXS",
    "Model.i1-Q4_K_M.gguf": "Q4_K_M",
    "Llama-3.2-1B-Instruct-Q6_K_L.gguf": "Q6_K_L",
    "Llama-3.2-1B-Instruct-Q3_K_XL.gguf": "Q3_K_XL",
    "Llama-3.2-1B-Instruct-IQ4_NL.gguf": "IQ4_NL",
    "Llama-3.2-1B-Instruct-IQ3_M.gguf": "IQ3_M",
    "Llama-3.2-1B-Instruct-f16.gguf": "F16",
    "Llama-3.2-1B-Instruct-F32.gguf": "F32",
    "SmolLM2-135M-Instruct.Q4_1.gguf": "Q4_1",
    "DeepSeek-V3-0324-IQ4_KSS-00001-of-00010.gguf": "IQ4_KSS",
    "DeepSeek-R1-0528-IQ2_K_R4-00001-of-00005.gguf": "IQ2_K_R4",
    "Qwen2-0.5B-Q8_0-Q4_K_S.gguf": "Q4_K_S",
    "tinyllama.gguf": "",
    "EQ2-Q4U.gguf": "",
    "Q8B-chat.gguf": "",
}


@pytest.mark.parametrize(("name", "tag"), TAGS.items())
def test_quant_tag_is_read_from_names_in_the_wild(name: str, tag: str) -> None:
    assert quant_tag(name) == tag


@given(st.text(max_size=60))
def test_grouping_never_fails_whatever_the_names_are(name: str) -> None:
    files = [(name + suffix, 1) for suffix in (".gguf", ".safetensors", "-00001-of-00001.gguf", "")]

    for variant in group(files).variants:
        assert variant.bytes == len(variant.files)


def test_single_split_and_directory_variants_are_told_apart() -> None:
    grouped = group(
        [
            ("m-Q4_K_M.gguf", 4),
            ("m-Q8_0-00002-of-00002.gguf", 3),
            ("m-Q8_0-00001-of-00002.gguf", 5),
            ("BF16/m-00001-of-00001.gguf", 16),
            ("README.md", 1),
        ]
    )

    assert {(v.tag, v.files, v.bytes) for v in grouped.variants} == {
        ("Q4_K_M", ("m-Q4_K_M.gguf",), 4),
        ("Q8_0", ("m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"), 8),
        ("BF16", ("BF16/m-00001-of-00001.gguf",), 16),
    }


@pytest.mark.parametrize(
    "names",
    [
        ["m-Q8_0-00001-of-00003.gguf", "m-Q8_0-00003-of-00003.gguf"],
        ["m-Q8_0-00002-of-00002.gguf"],
        ["m-Q8_0-00000-of-00001.gguf"],
        ["m-Q8_0-00001-of-00001.gguf", "m-Q8_0-00002-of-00001.gguf"],
        ["model-00001-of-00002.safetensors"],
    ],
)
def test_incomplete_split_sets_are_no_variants_and_are_named(names: list[str]) -> None:
    grouped = group([(name, 1) for name in names])

    assert grouped.variants == ()
    assert len(grouped.broken) == 1


def test_projectors_stand_apart_and_importance_matrices_are_ignored() -> None:
    grouped = group(
        [
            ("m-Q4_K_M.gguf", 1),
            ("m-imatrix-Q6_K.gguf", 1),
            ("mmproj-F32.gguf", 1),
            ("mmproj-F16.gguf", 1),
            ("m.mmproj-bf16.gguf", 1),
            ("imatrix_unsloth.gguf", 1),
            ("m.imatrix.gguf", 1),
        ]
    )

    assert grouped.tags == ("Q4_K_M", "Q6_K")
    projector = choose_projector(grouped.projectors)
    assert projector is not None
    assert projector.files == ("mmproj-F16.gguf",)


SAFETENSORS = {
    "single": (["model.safetensors"], ["model.safetensors"]),
    "numbered": (
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
    ),
    "numbered after the suffix": (
        ["model.safetensors-00001-of-00001.safetensors"],
        ["model.safetensors-00001-of-00001.safetensors"],
    ),
    "beside the trainer's layout": (
        ["consolidated.safetensors", "model.safetensors"],
        ["model.safetensors"],
    ),
    "beside an adapter": (
        ["adapter_model.safetensors", "model.safetensors"],
        ["model.safetensors"],
    ),
    "beside deeper ones": (
        ["original/model.safetensors", "model.safetensors"],
        ["model.safetensors"],
    ),
    "unnumbered with an index": (
        ["layers-a.safetensors", "layers-b.safetensors", "model.safetensors.index.json"],
        ["layers-a.safetensors", "layers-b.safetensors"],
    ),
    "adapter only": (["adapter_model.safetensors"], []),
}


@pytest.mark.parametrize(("names", "expected"), SAFETENSORS.values(), ids=SAFETENSORS)
def test_one_safetensors_model_is_found(names: list[str], expected: list[str]) -> None:
    found = [file for variant in group([(n, 1) for n in names]).variants for file in variant.files]

    assert found == expected


CHOICES = {
    "exact": ("Q8_0", ["m-Q8_0.gguf", "m-Q4_K_M.gguf"], "m-Q8_0.gguf"),
    "any case": ("q8_0", ["m-Q8_0.gguf", "m-Q4_K_M.gguf"], "m-Q8_0.gguf"),
    "fp16 is f16": ("FP16", ["m-f16.gguf"], "m-f16.gguf"),
    "default is Q4_K_M": (
        None,
        ["m-Q8_0.gguf", "m-UD-Q4_K_XL.gguf", "m-Q4_K_M.gguf"],
        "m-Q4_K_M.gguf",
    ),
    "else four bits": (None, ["m-Q8_0.gguf", "m-Q4_0.gguf", "m-Q5_K_M.gguf"], "m-Q4_0.gguf"),
    "else more bits": (None, ["m-Q8_0.gguf", "m-Q3_K_M.gguf", "m-F16.gguf"], "m-Q8_0.gguf"),
    "sixteen bits last": (None, ["m-Q2_K.gguf", "m-BF16.gguf"], "m-Q2_K.gguf"),
    "unknown before safetensors": (None, ["model.safetensors", "tiny.gguf"], "tiny.gguf"),
    "safetensors by name": (
        "safetensors",
        ["model.safetensors", "m-Q4_0.gguf"],
        "model.safetensors",
    ),
    "dynamic for plain": ("Q3_K_M", ["m-UD-Q3_K_M.gguf", "m-Q4_K_M.gguf"], "m-UD-Q3_K_M.gguf"),
    "plain before dynamic": ("Q4_K_M", ["m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf"], "m-Q4_K_M.gguf"),
    "odd word in the name": ("HIFI", ["m-Q4_K_M.gguf", "m-HIFI.gguf"], "m-HIFI.gguf"),
}


@pytest.mark.parametrize(("tag", "names", "expected"), CHOICES.values(), ids=CHOICES)
def test_choice_follows_the_tag_or_the_stated_preference(
    tag: str | None, names: list[str], expected: str
) -> None:
    assert choose(group([(name, 1) for name in names]).variants, tag).files == (expected,)


def test_unknown_tag_lists_what_exists() -> None:
    variants = group([("m-Q8_0.gguf", 1), ("m-Q4_0.gguf", 1), ("plain.gguf", 1)]).variants

    with pytest.raises(ModelNotFoundError, match=r"no Q5_K_M .* Q4_0, Q8_0, plain\.gguf"):
        choose(variants, "Q5_K_M")


def test_two_models_of_one_tag_are_not_guessed_between() -> None:
    variants = group([("m-7b-Q4_K_M.gguf", 1), ("m-13b-Q4_K_M.gguf", 1)]).variants

    with pytest.raises(ModelNotFoundError, match=r"m-13b-Q4_K_M\.gguf, m-7b") as caught:
        choose(variants, None)
    assert "FILE.gguf" in caught.value.hint


def test_any_shard_names_its_whole_set() -> None:
    variants = group([(f"m-Q8_0-0000{n}-of-00003.gguf", 1) for n in (1, 2, 3)]).variants

    assert containing(variants, "m-Q8_0-00002-of-00003.gguf") == variants[0]
    assert containing(variants, "m.gguf") is None


def test_preference_names_each_tag_once_as_it_is_read() -> None:
    assert len(set(PREFERENCE)) == len(PREFERENCE)
    assert all(quant_tag(f"m-{tag}.gguf") == tag for tag in PREFERENCE)
