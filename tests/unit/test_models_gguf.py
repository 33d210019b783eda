"""GGUF metadata is read as the config.json it was converted from."""

from __future__ import annotations

from typing import Any

import pytest

from localrun.errors import HeaderError
from localrun.formats.header import Header, TensorInfo
from localrun.models.describe import describe, describe_config, layout_of
from localrun.models.geometries import geometry

LATENT = {
    "attention.key_length": 576,
    "attention.value_length": 512,
    "attention.kv_lora_rank": 512,
    "rope.dimension_count": 64,
}
DELTA = {
    "ssm.conv_kernel": 4,
    "ssm.state_size": 128,
    "ssm.group_count": 16,
    "full_attention_interval": 4,
}
# What llama.cpp's converters write of each, but for what every file has.
WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-3-8b": ("llama", {"attention.sliding_window": 4096}),
    "phi-4": ("phi3", {"attention.sliding_window": 131_072}),
    "qwen3-30b-a3b": ("qwen3moe", {"attention.key_length": 128, "attention.value_length": 128}),
    "gemma-3-12b": (
        "gemma3",
        {
            "attention.key_length": 256,
            "attention.value_length": 256,
            "attention.sliding_window": 1024,
        },
    ),
    "gpt-oss-20b": (
        "gpt-oss",
        {
            "attention.key_length": 64,
            "attention.value_length": 64,
            "attention.sliding_window": 128,
        },
    ),
    "qwen3-coder-next-80b-a3b": (
        "qwen3next",
        {
            **DELTA,
            "attention.key_length": 256,
            "attention.value_length": 256,
            "ssm.time_step_rank": 32,
            "ssm.inner_size": 4096,
        },
    ),
    "qwen3.6-35b-a3b": (
        "qwen35moe",
        {
            **DELTA,
            "attention.key_length": 256,
            "attention.value_length": 256,
            "ssm.time_step_rank": 32,
            "ssm.inner_size": 4096,
            "attention.recurrent_layers": tuple(layer % 4 != 3 for layer in range(40)),
        },
    ),
    "qwen3.8-flash-next": (
        "qwen4exp",
        {
            **DELTA,
            "attention.key_length": 256,
            "attention.value_length": 256,
            "ssm.time_step_rank": 48,
            "ssm.inner_size": 6144,
            "hyper_connection.count": 4,
            "attention.indexer.head_count": 4,
            "attention.indexer.key_length": 128,
            "attention.indexer.top_k": 2048,
            "attention.compress_ratios": tuple(4 * (layer % 4 == 3) for layer in range(48)),
            "ple.layers": (1,),
            "ple.ngram_size": 3,
            "ple.heads_per_ngram": 8,
            "ple.conv_kernel": 4,
        },
    ),
    "deepseek-v3": (
        "deepseek2",
        {
            **LATENT,
            "attention.head_count_kv": 1,
            "attention.key_length_mla": 192,
            "attention.value_length_mla": 128,
        },
    ),
    "glm-5.1": (
        "glm-dsa",
        {
            **LATENT,
            "block_count": 79,
            "nextn_predict_layers": 1,
            "attention.head_count_kv": 1,
            "attention.key_length_mla": 256,
            "attention.value_length_mla": 256,
            "attention.indexer.head_count": 32,
            "attention.indexer.key_length": 128,
            "attention.indexer.top_k": 2048,
        },
    ),
    "glm-4.7": (
        "glm4moe",
        {
            "block_count": 93,
            "nextn_predict_layers": 1,
            "attention.key_length": 128,
            "attention.value_length": 128,
        },
    ),
    "kimi-linear-48b-a3b": (
        "kimi-linear",
        {
            **LATENT,
            "attention.head_count_kv": tuple(
                int(layer % 4 == 3 or layer == 26) for layer in range(27)
            ),
            "attention.key_length_mla": 192,
            "attention.value_length_mla": 128,
            "kda.head_dim": 128,
            "ssm.conv_kernel": 4,
        },
    ),
    "deepseek-v4-flash": (
        "deepseek4",
        {
            "attention.key_length": 512,
            "attention.value_length": 512,
            "rope.dimension_count": 64,
            "attention.sliding_window": 128,
            "attention.indexer.head_count": 64,
            "attention.indexer.key_length": 128,
            "attention.indexer.top_k": 512,
            "attention.compress_ratios": tuple(
                0 if layer < 2 or layer > 42 else 128 if layer % 2 else 4 for layer in range(44)
            ),
        },
    ),
}


def metadata(name: str) -> dict[str, Any]:
    spec = describe_config(geometry(name))
    architecture, own = WRITTEN[name]
    config: Any = geometry(name)
    text = config.get("text_config", config)
    common = {
        "block_count": spec.layers,
        "context_length": spec.n_ctx_train,
        "embedding_length": spec.width,
        "feed_forward_length": spec.ffn_width,
        "vocab_size": spec.vocabulary,
        "attention.head_count": spec.heads,
        "attention.head_count_kv": text["num_key_value_heads"],
        **own,
    }
    if spec.experts:
        common |= {"expert_count": spec.experts, "expert_used_count": spec.experts_used}
    keyed = {f"{architecture}.{key}": item for key, item in common.items()}
    return {"general.architecture": architecture, **keyed}


def file(name: str, quant: str = "Q4_K_M", **changes: Any) -> Header:
    tensors = tuple(
        TensorInfo(tensor.name, tensor.type, tensor.shape, 0, tensor.bytes)
        for tensor in layout_of(geometry(name), quant)
    )
    values = {**metadata(name), **changes}
    known = {key: item for key, item in values.items() if item is not None}
    return Header("gguf", ("m.gguf",), tensors, known)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_converted_file_keeps_the_same_cache_and_groups(name: str) -> None:
    spec, converted = describe(file(name)), describe_config(geometry(name), quant="Q4_K_M")

    def unformatted(found: Any) -> Any:
        return [(rows.kind, rows.layers, rows.elements, rows.window) for rows in found.caches]

    assert unformatted(spec) == unformatted(converted)
    assert spec.state_bytes == converted.state_bytes
    assert spec.groups == converted.groups
    assert (spec.layers, spec.experts, spec.experts_used) == (
        converted.layers,
        converted.experts,
        converted.experts_used,
    )
    assert not spec.guessed


def test_a_file_from_before_latent_caches_keeps_plain_keys_and_values() -> None:
    header = file(
        "deepseek-v3",
        **{
            "deepseek2.attention.key_length_mla": None,
            "deepseek2.attention.value_length_mla": None,
            "deepseek2.attention.head_count_kv": 128,
            "deepseek2.attention.key_length": 192,
            "deepseek2.attention.value_length": 128,
        },
    )
    spec = describe(header)

    assert spec.kv_bytes_per_token == 2 * 61 * 128 * (192 + 128)
    assert "leaves out what its cache is computed from" in spec.notes[0]


def test_a_file_that_leaves_the_cache_out_says_so() -> None:
    spec = describe(file("gemma-3-12b", **{"gemma3.attention.sliding_window": None}))

    assert spec.guessed
    assert "counted from its heads" in spec.notes[0]
    assert spec.kv_bytes_per_token == 2 * 48 * 2 * 8 * 256


def test_an_unknown_architecture_is_told_by_the_names_of_its_tensors() -> None:
    header = file("qwen3-30b-a3b")
    renamed = {
        key.replace("qwen3moe", "novel"): "novel" if item == "qwen3moe" else item
        for key, item in header.metadata.items()
    }
    spec = describe(Header("gguf", header.files, header.tensors, renamed))

    assert spec.guessed
    assert "novel is not known" in spec.notes[0]
    assert spec.groups == describe(header).groups
    assert spec.kv_bytes_per_token == 98_304


@pytest.mark.parametrize(
    ("number", "quantization"), [(15, "Q4_K_M"), (38, "MXFP4"), (5, "Q4_K"), (None, "Q4_K")]
)
def test_a_file_may_say_which_mixture_it_is(number: int | None, quantization: str) -> None:
    header = file("llama-3-8b", **{"general.file_type": number})

    assert describe(header).quantization == quantization


ABSURD = {
    "drafts_negative": ("glm-4.7", "glm4moe.nextn_predict_layers", -1),
    "heads_differ_in_a_family_where_they_do_not": (
        "qwen3-30b-a3b",
        "qwen3moe.attention.head_count_kv",
        (4, 8) * 24,
    ),
    "kv_heads_of_another_number_of_layers": (
        "kimi-linear-48b-a3b",
        "kimi-linear.attention.head_count_kv",
        (1, 0),
    ),
    "recurrent_layers_too_few": (
        "qwen3.6-35b-a3b",
        "qwen35moe.attention.recurrent_layers",
        (True, False),
    ),
    "inner_size_negative": ("qwen3.6-35b-a3b", "qwen35moe.ssm.inner_size", -4),
    "value_heads_0": ("qwen3.6-35b-a3b", "qwen35moe.ssm.time_step_rank", 0),
    "window_a_string": ("gpt-oss-20b", "gpt-oss.attention.sliding_window", "128"),
    "rank_0": ("deepseek-v3", "deepseek2.attention.kv_lora_rank", 0),
    "ratios_a_number": ("deepseek-v4-flash", "deepseek4.attention.compress_ratios", 4),
    "table_layer_that_is_none": ("qwen3.8-flash-next", "qwen4exp.ple.layers", (48,)),
    "file_type_a_string": ("llama-3-8b", "general.file_type", "Q4_K_M"),
}


@pytest.mark.parametrize("name", ABSURD)
def test_a_number_that_no_model_has_is_refused_by_the_file_s_own_key(name: str) -> None:
    model, key, value = ABSURD[name]

    with pytest.raises(HeaderError) as caught:
        describe(file(model, **{key: value}))
    assert caught.value.field.partition("[")[0] == key
    assert caught.value.file == "m.gguf"
