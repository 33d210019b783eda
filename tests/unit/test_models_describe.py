"""What a header says of a model, and the numbers that no model has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localrun.errors import HeaderError
from localrun.formats.gguf import read_gguf
from localrun.formats.header import Header
from localrun.formats.read import read_header
from localrun.formats.reader import BytesSource
from localrun.formats.safetensors import read_safetensors
from localrun.models.describe import describe
from localrun.models.spec import CacheRows, ModelSpec, Tokenizer
from tests.gguf_builder import (
    F32,
    I32,
    STRING,
    As,
    gguf_bytes,
    llama_metadata,
    safetensors_bytes,
)

TENSORS = [("a", (4, 64), "Q4_0"), ("b", (2, 64), "Q4_0"), ("c", (64,), "F32")]


def gguf(metadata: dict[str, Any], tensors: Any = ()) -> Header:
    return read_gguf(BytesSource(gguf_bytes(metadata, tensors)), "m.gguf")


def renamed(metadata: dict[str, Any], architecture: str) -> dict[str, Any]:
    """The same file of another architecture."""
    named = {key.replace("llama.", f"{architecture}.", 1): item for key, item in metadata.items()}
    return {**named, "general.architecture": architecture}


def test_a_llama_is_described() -> None:
    spec = describe(gguf(llama_metadata(), TENSORS))

    assert spec.groups
    assert replace(spec, groups=()) == ModelSpec(
        architecture="llama",
        name="Tiny",
        parameters=4 * 64 + 2 * 64 + 64,
        tensor_bytes=144 + 72 + 256,
        tensors=3,
        layers=2,
        n_ctx_train=128,
        kv_bytes_per_token=2 * 2 * 2 * (16 + 16),
        tensor_types={"Q4_0": (2, 216), "F32": (1, 256)},
        tokenizer=Tokenizer("gpt2", "default", 4),
        chat_template="{{ messages[0].content }}",
        licence="apache-2.0",
        caches=(CacheRows("full", (0, 1), 2 * 32),),
        width=64,
        vocabulary=4,
        heads=4,
        ffn_width=128,
        quantization="F32",
    )


def test_the_default_model_is_described(smollm2_path: Path) -> None:
    spec = describe(read_header([smollm2_path]))

    assert (spec.architecture, spec.layers, spec.n_ctx_train) == ("llama", 30, 8192)
    assert spec.parameters == 134_515_008
    assert spec.kv_bytes_per_token == 2 * 30 * 3 * (64 + 64)
    assert spec.tokenizer == Tokenizer("gpt2", "smollm", 49_152)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, 2 * 2 * 2 * 32, id="head_size_from_the_width"),
        pytest.param({"attention__key_length": 24}, 2 * 2 * 2 * (24 + 16), id="key_length_given"),
        pytest.param(
            {"attention__key_length": 8, "attention__value_length": 4},
            2 * 2 * 2 * 12,
            id="both_given",
        ),
        pytest.param({"attention__head_count_kv": [2, 0]}, 2 * 2 * 32, id="per_layer"),
        pytest.param(
            {"attention__head_count": [4, 8], "attention__head_count_kv": [1, 2]},
            2 * 3 * (8 + 8),
            id="heads_per_layer",
        ),
    ],
)
def test_the_cache_is_counted_from_heads(changes: dict[str, Any], expected: int) -> None:
    known = llama_metadata(**changes)
    unknown = renamed(known, "novel")

    assert describe(gguf(known)).kv_bytes_per_token == expected
    assert describe(gguf(unknown)).kv_bytes_per_token == expected


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"attention__kv_lora_rank": 512}, id="latent"),
        pytest.param({"ssm__state_size": 16, "attention__head_count": 0}, id="recurrent"),
        pytest.param({"attention__compress_ratios": [4, 128]}, id="compressed"),
        pytest.param({"attention__shared_kv_layers": 1}, id="shared"),
    ],
)
def test_the_cache_of_an_unknown_architecture_may_be_unknown(changes: dict[str, Any]) -> None:
    spec = describe(gguf(renamed(llama_metadata(**changes), "novel")))

    assert (spec.kv_bytes_per_token, spec.caches, spec.guessed) == (0, (), True)
    assert "the cache is not known" in spec.notes[0]


def test_every_head_has_its_own_cache_where_the_file_names_no_groups() -> None:
    metadata = llama_metadata()
    del metadata["llama.attention.head_count_kv"]

    assert describe(gguf(metadata)).kv_bytes_per_token == 2 * 2 * 4 * 32


def test_what_the_file_does_not_say_is_zero_or_none() -> None:
    spec = describe(gguf({"general.architecture": "clip"}))

    assert (spec.layers, spec.n_ctx_train, spec.kv_bytes_per_token, spec.experts) == (0, 0, 0, 0)
    assert (spec.tokenizer, spec.chat_template, spec.licence, spec.name) == (None, None, None, "")


def test_experts_are_counted() -> None:
    spec = describe(gguf(llama_metadata(expert_count=8, expert_used_count=2)))

    assert (spec.experts, spec.experts_used) == (8, 2)


ABSURD = {
    "architecture_absent": ({"general.architecture": None}, "general.architecture"),
    "architecture_empty": ({"general.architecture": ""}, "general.architecture"),
    "architecture_a_number": ({"general.architecture": 3}, "general.architecture"),
    "blocks_0": ({"llama.block_count": 0}, "llama.block_count"),
    "blocks_2_32": ({"llama.block_count": 2**32 - 1}, "llama.block_count"),
    "blocks_a_string": ({"llama.block_count": "2"}, "llama.block_count"),
    "blocks_an_array": ({"llama.block_count": [2]}, "llama.block_count"),
    "blocks_a_boolean": ({"llama.block_count": True}, "llama.block_count"),
    "blocks_a_float": ({"llama.block_count": 2.0}, "llama.block_count"),
    "blocks_nan": ({"llama.block_count": float("nan")}, "llama.block_count"),
    "context_0": ({"llama.context_length": 0}, "llama.context_length"),
    "context_2_63": ({"llama.context_length": 2**63}, "llama.context_length"),
    "context_negative": ({"llama.context_length": As(I32, -1)}, "llama.context_length"),
    "width_0": ({"llama.embedding_length": 0}, "llama.embedding_length"),
    "heads_0": ({"llama.attention.head_count": 0}, "llama.attention.head_count"),
    "heads_2_31": ({"llama.attention.head_count": 2**31}, "llama.attention.head_count"),
    "kv_heads_0": ({"llama.attention.head_count_kv": 0}, "llama.attention.head_count_kv"),
    "kv_heads_for_3_layers": (
        {"llama.attention.head_count_kv": [1, 1, 1]},
        "llama.attention.head_count_kv",
    ),
    "kv_heads_negative": (
        {"llama.attention.head_count_kv": As(I32, [1, -1])},
        "llama.attention.head_count_kv[1]",
    ),
    "kv_heads_floats": (
        {"llama.attention.head_count_kv": As(F32, [1.0, 2.0])},
        "llama.attention.head_count_kv[0]",
    ),
    "key_length_0": ({"llama.attention.key_length": 0}, "llama.attention.key_length"),
    "value_length_2_40": (
        {"llama.attention.value_length": 2**40},
        "llama.attention.value_length",
    ),
    "vocabulary_0": ({"llama.vocab_size": 0}, "llama.vocab_size"),
    "tokens_none": ({"tokenizer.ggml.tokens": As(STRING, [])}, "tokenizer.ggml.tokens"),
    "tokens_numbers": ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens"),
    "tokens_a_string": ({"tokenizer.ggml.tokens": "abc"}, "tokenizer.ggml.tokens"),
    "tokenizer_a_number": ({"tokenizer.ggml.model": 1}, "tokenizer.ggml.model"),
    "template_an_array": ({"tokenizer.chat_template": ["a"]}, "tokenizer.chat_template"),
    "licence_a_number": ({"general.license": 2}, "general.license"),
    "experts_2_31": ({"llama.expert_count": 2**31}, "llama.expert_count"),
    "experts_negative": ({"llama.expert_count": As(I32, -8)}, "llama.expert_count"),
    "more_experts_used_than_there_are": (
        {"llama.expert_count": 4, "llama.expert_used_count": 5},
        "llama.expert_used_count",
    ),
}


@pytest.mark.parametrize("name", ABSURD)
def test_a_number_that_no_model_has_is_refused_by_its_field(name: str) -> None:
    changes, field = ABSURD[name]
    merged = {**llama_metadata(), **changes}
    metadata = {key: value for key, value in merged.items() if value is not None}

    with pytest.raises(HeaderError) as caught:
        describe(gguf(metadata))
    assert (caught.value.field, caught.value.file) == (field, "m.gguf")


CONFIG = {
    "model_type": "qwen3",
    "num_hidden_layers": 28,
    "max_position_embeddings": 40960,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "rope_scaling": None,
    "tie_word_embeddings": True,
}


def safetensors_header() -> Header:
    data = safetensors_bytes([("w", (16, 4), "BF16")])
    return read_safetensors(BytesSource(data), "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, 2 * 28 * 8 * 256, id="head_size_given"),
        pytest.param({"head_dim": None}, 2 * 28 * 8 * 128, id="head_size_from_the_width"),
        pytest.param({"num_key_value_heads": None}, 2 * 28 * 16 * 256, id="no_groups"),
        pytest.param({"num_key_value_heads": [1] * 28}, 2 * 28 * 256, id="per_layer"),
        pytest.param({"model_type": "novel", "kv_lora_rank": 512}, 0, id="latent"),
        pytest.param(
            {"model_type": "novel", "full_attention_interval": 4}, 0, id="linear_attention"
        ),
    ],
)
def test_a_config_gives_the_geometry_of_safetensors(changes: dict[str, Any], expected: int) -> None:
    spec = describe(safetensors_header(), {**CONFIG, **changes})

    assert (spec.layers, spec.n_ctx_train) == (28, 40960)
    assert (spec.parameters, spec.tensor_bytes) == (64, 128)
    assert spec.kv_bytes_per_token == expected


def test_the_text_part_of_a_vision_model_counts() -> None:
    config = {"model_type": "gemma3", "text_config": {"num_hidden_layers": 34}}

    spec = describe(safetensors_header(), config)
    assert (spec.architecture, spec.layers) == ("gemma3", 34)


@pytest.mark.parametrize("key", ["num_local_experts", "num_experts", "n_routed_experts"])
def test_experts_of_a_config_are_counted(key: str) -> None:
    spec = describe(safetensors_header(), {**CONFIG, key: 128, "num_experts_per_tok": 8})

    assert (spec.experts, spec.experts_used) == (128, 8)


def test_safetensors_without_a_config_still_have_tensors() -> None:
    spec = describe(safetensors_header())

    assert (spec.architecture, spec.tensors, spec.layers) == ("unknown", 1, 0)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": -1}, "num_key_value_heads"),
        ({"num_key_value_heads": [1]}, "num_key_value_heads"),
        ({"head_dim": 0}, "head_dim"),
        ({"hidden_size": 1.5}, "hidden_size"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"max_position_embeddings": 2**63}, "max_position_embeddings"),
        ({"model_type": 7}, "model_type"),
        ({"text_config": []}, "text_config"),
        ({"num_experts": 4, "num_experts_per_tok": 8}, "num_experts_per_tok"),
    ],
)
def test_an_absurd_config_is_refused_by_its_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(HeaderError) as caught:
        describe(safetensors_header(), {**CONFIG, **changes})
    assert (caught.value.field, caught.value.file) == (field, "config.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
KEYS = [*CONFIG, "text_config", "num_experts", "num_experts_per_tok", "kv_lora_rank"]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(KEYS), JSON))
def test_any_config_is_described_or_refused(config: dict[str, Any]) -> None:
    try:
        spec = describe(safetensors_header(), config)
    except HeaderError:
        return
    assert spec.kv_bytes_per_token >= 0
    assert spec.experts_used <= spec.experts
