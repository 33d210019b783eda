"""Knows no family: a GGUF file's metadata in the words of config.json.

Key names: ``LLM_KV_NAMES`` in
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-arch.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from localrun.models.fields import HEADS_MAX, LAYERS_MAX, WIDTH_MAX, Fields

_WORDS: Final = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "vocab_size": "vocab_size",
    "intermediate_size": "feed_forward_length",
    "moe_intermediate_size": "expert_feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "v_head_dim": "attention.value_length",
    "sliding_window": "attention.sliding_window",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "first_k_dense_replace": "leading_dense_block_count",
    "num_nextn_predict_layers": "nextn_predict_layers",
    "full_attention_interval": "full_attention_interval",
    "kv_lora_rank": "attention.kv_lora_rank",
    "q_lora_rank": "attention.q_lora_rank",
    "qk_rope_head_dim": "rope.dimension_count",
    "index_head_dim": "attention.indexer.key_length",
    "index_n_heads": "attention.indexer.head_count",
    "index_topk": "attention.indexer.top_k",
    "index_kpool": "attention.indexer.kpool",
    "compress_ratios": "attention.compress_ratios",
    "hc_mult": "hyper_connection.count",
}
_LATENT: Final = {
    "v_head_dim": "attention.value_length_mla",
    "linear_head_dim": "kda.head_dim",
    "linear_conv_kernel_dim": "ssm.conv_kernel",
    "indexer_types": "attention.indexer.types",
}
_DELTA: Final = {
    "linear_conv_kernel_dim": "ssm.conv_kernel",
    "linear_key_head_dim": "ssm.state_size",
    "linear_num_key_heads": "ssm.group_count",
    "linear_num_value_heads": "ssm.time_step_rank",
}
# Words of single architectures, in the place of those above.
_OWN: Final[Mapping[str, Mapping[str, str]]] = {
    "deepseek2": _LATENT,
    "deepseek32": _LATENT,
    "deepseek41": {
        "kv_source_layer_ids": "attention.kv_source_layers",
        "index_source_layer_ids": "attention.index_source_layers",
        "candidate_source_layer_id": "attention.indexer.candidate_source_layer",
        "candidate_topk_blocks": "attention.indexer.candidate_topk_blocks",
        "candidate_block_size": "attention.indexer.candidate_block_size",
        "engram_layer_ids": "engram.layers",
        "engram_num_embeddings": "engram.embedding_counts",
        "engram_max_ngram_size": "engram.ngram_size",
        "engram_n_heads": "engram.head_count",
        "engram_head_dim": "engram.head_dim",
    },
    "glm-dsa": _LATENT,
    "glm5-next": _LATENT,
    "kimi-linear": _LATENT,
    "kimi-k3": _LATENT,
    "qwen3next": _DELTA,
    "qwen35": _DELTA,
    "qwen35moe": _DELTA,
    "qwen4exp": {
        **_DELTA,
        "hc_count": "hyper_connection.count",
        "indexer_n_heads": "attention.indexer.head_count",
        "indexer_head_dim": "attention.indexer.key_length",
        "indexer_budget": "attention.indexer.top_k",
        "ple_layers": "ple.layers",
        "ngram_size": "ple.ngram_size",
        "heads_per_ngram": "ple.heads_per_ngram",
        "ple_conv_kernel_size": "ple.conv_kernel",
    },
    "gemma3": {"sliding_window_pattern": "attention.sliding_window_pattern"},
}
# llama.cpp gives these no window, whatever their files say.
_WITHOUT_WINDOW: Final = frozenset({"llama", "phi3"})
# What tells of caches that are not plain keys and values, whatever the architecture.
_OTHER_CACHE: Final = (
    "ssm.",
    "wkv.",
    "kda.",
    "shortconv.",
    "time_mix_extra_dim",
    "attention.shared_kv_layers",
    "attention.recurrent_layers",
    "attention.indexer.",
    "attention.key_length_swa",
)
# ``enum llama_ftype`` in https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h.
FILE_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4",
    40: "Q1_0", 41: "Q2_0",
}  # fmt: skip


def file_type(fields: Fields) -> str:
    """The mixture that a file says it is; empty where it does not, or not one that is known.

    Raises:
        HeaderError: it says so in something else than a number.
    """
    number = fields.integer("general.file_type", least=0, most=2**32 - 1)
    return "" if number is None else FILE_TYPES.get(number, "")


def translated(fields: Fields, architecture: str) -> Fields:
    """``{architecture}.…`` keys under config.json's names; errors name the file's own keys.

    ``block_count`` counts draft layers too; ``num_hidden_layers`` does not.

    Raises:
        HeaderError: numbers of layers or drafts that no model has.
    """
    prefix = f"{architecture}."
    own = _OWN.get(architecture, {})
    # Conversions from before latent attention was cached keep plain keys and values.
    absorbed = own is not _LATENT or f"{prefix}attention.key_length_mla" in fields.values
    values: dict[str, object] = {"model_type": architecture}
    names: dict[str, str] = {}
    for word, key in {**_WORDS, **(own if absorbed else {})}.items():
        names[word] = prefix + key
        if (value := fields.values.get(prefix + key)) is not None:
            values[word] = value
    if not absorbed:
        values.pop("kv_lora_rank", None)
    if own is not _LATENT and values.get("v_head_dim") is None and values.get("head_dim"):
        # Keys may be wider than the share of a head; values are not unless the file says so.
        width, heads = values.get("hidden_size"), values.get("num_attention_heads")
        if isinstance(width, int) and isinstance(heads, int) and heads:
            values["v_head_dim"] = width // heads or None
    if architecture in _WITHOUT_WINDOW:
        values.pop("sliding_window", None)
    if own is _DELTA or architecture == "qwen4exp":
        _delta(fields, prefix, values, names)
    marks = tuple(prefix + mark for mark in _OTHER_CACHE)
    if any(key.startswith(marks) for key in fields.values):
        values["other_cache"] = True
    found = Fields(values, fields.file, names)
    _without_drafts(found, values)
    return found


def _delta(fields: Fields, prefix: str, values: dict[str, object], names: dict[str, str]) -> None:
    """A file gives the width of all value heads, and the layers that are recurrent."""
    names["linear_value_head_dim"] = f"{prefix}ssm.inner_size"
    inner = fields.integer(names["linear_value_head_dim"], most=WIDTH_MAX)
    heads = fields.integer(f"{prefix}ssm.time_step_rank", most=HEADS_MAX)
    if inner and heads:
        values["linear_value_head_dim"] = inner // heads
    names["layer_types"] = f"{prefix}attention.recurrent_layers"
    recurrent = fields.values.get(names["layer_types"])
    if isinstance(recurrent, tuple):
        values["layer_types"] = tuple(
            "linear_attention" if each else "full_attention" for each in recurrent
        )


def _without_drafts(found: Fields, values: dict[str, object]) -> None:
    blocks = found.integer("num_hidden_layers", most=LAYERS_MAX) or 0
    drafts = found.integer("num_nextn_predict_layers", least=0, most=LAYERS_MAX) or 0
    if not 0 < drafts < blocks:
        return
    values["num_hidden_layers"] = blocks - drafts
    for word, value in values.items():
        if isinstance(value, tuple) and len(value) == blocks:
            values[word] = value[: blocks - drafts]
