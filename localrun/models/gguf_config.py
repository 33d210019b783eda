"""Knows no family: a GGUF file's metadata in the words of config.json.

Key names: ``LLM_KV_NAMES`` in
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-arch.cpp.
"""

from __future__ import annotations

from typing import Final

from localrun.models.fields import EXPERTS_MAX, LAYERS_MAX, Fields

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


def translated(fields: Fields, architecture: str) -> Fields:
    """``{architecture}.…`` keys under config.json's names; errors name the file's own keys.

    ``block_count`` counts draft layers too; ``num_hidden_layers`` does not.
    """
    prefix = f"{architecture}."
    values: dict[str, object] = {"model_type": architecture}
    names: dict[str, str] = {}
    for word, key in _WORDS.items():
        names[word] = prefix + key
        if (value := fields.values.get(prefix + key)) is not None:
            values[word] = value
    marks = tuple(prefix + mark for mark in _OTHER_CACHE)
    if any(key.startswith(marks) for key in fields.values):
        values["other_cache"] = True
    found = Fields(values, fields.file, names)
    _without_drafts(found, values)
    return found


def _without_drafts(found: Fields, values: dict[str, object]) -> None:
    blocks = found.integer("num_hidden_layers", most=LAYERS_MAX) or 0
    drafts = found.integer("num_nextn_predict_layers", least=0, most=EXPERTS_MAX) or 0
    if not 0 < drafts < blocks:
        return
    values["num_hidden_layers"] = blocks - drafts
    for word, value in values.items():
        if isinstance(value, tuple | list) and len(value) == blocks:
            values[word] = tuple(value[: blocks - drafts])
