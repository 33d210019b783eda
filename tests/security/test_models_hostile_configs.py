"""A config.json from a stranger: any of its fields may hold anything."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localrun.errors import HeaderError
from localrun.models.cache import cache_bytes, read_bytes
from localrun.models.describe import describe_config
from localrun.models.geometries import geometry, names
from localrun.models.spec import ModelSpec

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no_model_type": ("llama-3-8b", {"model_type": None}, "model_type"),
    "unknown_model_type": ("llama-3-8b", {"model_type": "llama-9"}, "model_type"),
    "model_type_a_number": ("llama-3-8b", {"model_type": 3}, "model_type"),
    "zero_heads": ("llama-3-8b", {"num_attention_heads": 0}, "num_attention_heads"),
    "no_heads": ("llama-3-8b", {"num_attention_heads": None}, "num_attention_heads"),
    "more_heads_than_width": (
        "llama-3-8b",
        {"num_attention_heads": 8192},
        "num_attention_heads",
    ),
    "zero_kv_heads": ("llama-3-8b", {"num_key_value_heads": 0}, "num_key_value_heads"),
    "kv_heads_for_two_layers": (
        "llama-3-8b",
        {"num_key_value_heads": [8, 8]},
        "num_key_value_heads",
    ),
    "zero_layers": ("llama-3-8b", {"num_hidden_layers": 0}, "num_hidden_layers"),
    "layers_2_40": ("llama-3-8b", {"num_hidden_layers": 2**40}, "num_hidden_layers"),
    "layers_a_boolean": ("llama-3-8b", {"num_hidden_layers": True}, "num_hidden_layers"),
    "negative_context": (
        "llama-3-8b",
        {"max_position_embeddings": -1},
        "max_position_embeddings",
    ),
    "context_2_63": (
        "llama-3-8b",
        {"max_position_embeddings": 2**63},
        "max_position_embeddings",
    ),
    "context_nan": (
        "llama-3-8b",
        {"max_position_embeddings": float("nan")},
        "max_position_embeddings",
    ),
    "zero_vocabulary": ("llama-3-8b", {"vocab_size": 0}, "vocab_size"),
    "no_vocabulary": ("llama-3-8b", {"vocab_size": None}, "vocab_size"),
    "width_negative": ("qwen3-8b", {"hidden_size": -5}, "hidden_size"),
    "tied_perhaps": ("qwen3-8b", {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    "more_experts_used": (
        "qwen3-30b-a3b",
        {"num_experts_per_tok": 129},
        "num_experts_per_tok",
    ),
    "no_experts_used": (
        "qwen3-30b-a3b",
        {"num_experts_per_tok": None},
        "num_experts_per_tok",
    ),
    "dense_layers_a_text": ("qwen3-30b-a3b", {"mlp_only_layers": "1"}, "mlp_only_layers"),
    "layer_types_too_few": ("gpt-oss-20b", {"layer_types": ["full_attention"]}, "layer_types"),
    "layer_types_of_numbers": ("gpt-oss-20b", {"layer_types": [1] * 24}, "layer_types"),
    "window_negative": ("gpt-oss-20b", {"sliding_window": -128}, "sliding_window"),
    "no_window": ("gemma-3-12b", {"text_config": {"sliding_window": None}}, "sliding_window"),
    "text_config_a_list": ("gemma-3-12b", {"text_config": []}, "text_config"),
    "vision_depth": (
        "gemma-3-12b",
        {"vision_config": {"num_hidden_layers": 10**9}},
        "vision_config.num_hidden_layers",
    ),
    "vision_patch_0": (
        "qwen3.6-27b",
        {"vision_config": {"patch_size": 0}},
        "vision_config.patch_size",
    ),
    "state_of_another_type": (
        "qwen3.6-27b",
        {"text_config": {"mamba_ssm_dtype": "int4"}},
        "mamba_ssm_dtype",
    ),
    "linear_heads_0": (
        "qwen3.6-27b",
        {"text_config": {"linear_num_value_heads": 0}},
        "linear_num_value_heads",
    ),
    "drafts_2_40": (
        "qwen3.6-27b",
        {"text_config": {"mtp_num_hidden_layers": 2**40}},
        "mtp_num_hidden_layers",
    ),
    "one_stream": ("qwen3.8-flash-next", {"text_config": {"hc_count": 1}}, "hc_count"),
    "table_layer_beyond": (
        "qwen3.8-flash-next",
        {"text_config": {"ple_layer_ids": [49]}},
        "ple_layer_ids[0]",
    ),
    "a_million_hashes": (
        "qwen3.8-flash-next",
        {"text_config": {"heads_per_ngram": 65_536}},
        "heads_per_ngram",
    ),
    "a_million_shards": (
        "qwen3.8-flash-next",
        {"text_config": {"split_ngram_parts": 10**6}},
        "split_ngram_parts",
    ),
    "quantized_otherwise": (
        "llama-3-8b",
        {"quantization_config": {"quant_method": "gptq"}},
        "quantization_config.quant_method",
    ),
}


def changed(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {key: item for key, item in geometry(name).items() if key[:1] != "_"}
    for key, value in changes.items():
        inside = isinstance(value, dict) and isinstance(config.get(key), dict)
        config[key] = {**config[key], **value} if inside else value
    return {key: item for key, item in config.items() if item is not None}


@pytest.mark.parametrize("name", REFUSED)
def test_an_absurd_field_is_refused_by_its_name(name: str) -> None:
    model, changes, field = REFUSED[name]

    with pytest.raises(HeaderError) as caught:
        describe_config(changed(model, changes))
    assert (caught.value.field, caught.value.file) == (field, "config.json")


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(0, 600),
    st.floats(),
    st.sampled_from(["", "fp8", "bfloat16", "llama", "\x1b[2J"]),
    st.lists(st.integers(-1, 5), max_size=4),
    st.dictionaries(st.sampled_from(["a", "model_type", "hidden_size"]), st.integers(), max_size=2),
)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """A release with one or two fields, of its text part or of the whole, replaced or left out."""
    config = changed(draw(st.sampled_from(names())), {})
    for _ in range(draw(st.integers(1, 2))):
        parts = [config, *(item for item in config.values() if isinstance(item, dict))]
        place = draw(st.sampled_from(parts))
        if place is not config:
            copied = dict(place)
            key = next(name for name, item in config.items() if item is place)
            config[key] = place = copied
        if place:
            place[draw(st.sampled_from(sorted(place)))] = draw(VALUES)
    return config


@settings(max_examples=200, deadline=None, derandomize=True)
@given(configs(), st.sampled_from([None, "Q4_K_M", "MXFP4"]))
def test_any_config_is_described_or_refused(config: dict[str, Any], quant: str | None) -> None:
    try:
        spec = describe_config(config, quant=quant)
    except HeaderError as error:
        refused = error.message
    else:
        refused = ""
        hold(spec)
    assert refused.isprintable()


def hold(spec: ModelSpec) -> None:
    """What a planner relies on."""
    assert sum(group.bytes for group in spec.groups) == spec.tensor_bytes > 0
    assert all(0 <= group.active_bytes <= group.bytes for group in spec.groups)
    assert 0 <= cache_bytes(spec, 1000, "f16") <= cache_bytes(spec, 2000, "f16")
    assert read_bytes(spec, 1000, "q8_0") >= 0
    assert spec.kv_bytes_per_token >= 0
