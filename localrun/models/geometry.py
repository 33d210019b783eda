"""Knows no files: layers, heads and cache size, in GGUF's words and in config.json's."""

from __future__ import annotations

from dataclasses import dataclass

from localrun.models.fields import Fields

LAYERS_MAX = 4096
CONTEXT_MAX = 2**31 - 1
HEADS_MAX = 65_536
WIDTH_MAX = 2**24
EXPERTS_MAX = 65_536
VOCABULARY_MAX = 2**24
_KV_BYTES = 2

# A cache that is not plain keys and values per layer: latent, recurrent, compressed or shared.
_OTHER_CACHE_GGUF = (
    "ssm.",
    "wkv.",
    "kda.",
    "shortconv.",
    "time_mix_extra_dim",
    "full_attention_interval",
    "attention.kv_lora_rank",
    "attention.compress_ratios",
    "attention.shared_kv_layers",
    "attention.recurrent_layers",
    "attention.indexer.",
    "attention.key_length_swa",
)
_OTHER_CACHE_CONFIG = (
    "kv_lora_rank",
    "ssm_cfg",
    "state_size",
    "mamba_d_state",
    "ssm_state_size",
    "full_attention_interval",
    "linear_num_key_heads",
    "num_kv_shared_layers",
    "compress_ratios",
    "conv_L_cache",
)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Zero where the file does not say."""

    layers: int
    n_ctx_train: int
    kv_bytes_per_token: int
    experts: int
    experts_used: int


def from_gguf(fields: Fields, architecture: str) -> Geometry:
    """``{architecture}.…`` keys (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

    Raises:
        HeaderError: a number that no model has.
    """
    prefix = f"{architecture}."
    layers = fields.integer(f"{prefix}block_count", most=LAYERS_MAX) or 0
    n_ctx = fields.integer(f"{prefix}context_length", most=CONTEXT_MAX) or 0
    width = fields.integer(f"{prefix}embedding_length", most=WIDTH_MAX)
    other = any(
        name.startswith(tuple(prefix + mark for mark in _OTHER_CACHE_GGUF))
        for name in fields.values
    )
    # Converters write 0 heads where a recurrent model has none.
    least, attention = 0 if other else 1, f"{prefix}attention."
    heads = fields.per_layer(f"{attention}head_count", layers, least=least, most=HEADS_MAX)
    kv_heads = fields.per_layer(f"{attention}head_count_kv", layers, least=least, most=HEADS_MAX)
    key = fields.integer(f"{attention}key_length", most=WIDTH_MAX)
    value = fields.integer(f"{attention}value_length", most=WIDTH_MAX)
    fields.integer(f"{prefix}vocab_size", most=VOCABULARY_MAX)
    experts, used = _experts(fields, f"{prefix}expert_count", f"{prefix}expert_used_count")
    head = _head_size(width, heads)
    kv = 0 if other else _kv_bytes(kv_heads or heads, key or head, value or head)
    return Geometry(layers, n_ctx, kv, experts, used)


def from_config(fields: Fields) -> Geometry:
    """Fields of a transformers ``config.json``, or of its ``text_config``.

    Raises:
        HeaderError: a number that no model has.
    """
    layers = fields.integer("num_hidden_layers", most=LAYERS_MAX) or 0
    n_ctx = fields.integer("max_position_embeddings", most=CONTEXT_MAX) or 0
    width = fields.integer("hidden_size", most=WIDTH_MAX)
    heads = fields.per_layer("num_attention_heads", layers, most=HEADS_MAX)
    kv_heads = fields.per_layer("num_key_value_heads", layers, most=HEADS_MAX)
    head = fields.integer("head_dim", most=WIDTH_MAX) or _head_size(width, heads)
    fields.integer("vocab_size", most=VOCABULARY_MAX)
    experts = used = 0
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if fields.values.get(key) is not None:
            experts, used = _experts(fields, key, "num_experts_per_tok")
    other = any(fields.values.get(key) is not None for key in _OTHER_CACHE_CONFIG)
    kv = 0 if other else _kv_bytes(kv_heads or heads, head, head)
    return Geometry(layers, n_ctx, kv, experts, used)


def _head_size(width: int | None, heads: tuple[int, ...] | None) -> int | None:
    widest = max(heads, default=0) if heads else 0
    return width // widest if width and widest else None


def _kv_bytes(kv_heads: tuple[int, ...] | None, key: int | None, value: int | None) -> int:
    if not (kv_heads and key and value):
        return 0
    return _KV_BYTES * sum(kv_heads) * (key + value)


def _experts(fields: Fields, count_key: str, used_key: str) -> tuple[int, int]:
    # Dense models of a mixture family write 0 of both.
    count = fields.integer(count_key, least=0, most=EXPERTS_MAX) or 0
    used = fields.integer(used_key, least=0, most=EXPERTS_MAX) or 0
    if count and used > count:
        raise fields.error(used_key, f"{used} of {count} experts cannot be used")
    return count, used if count else 0
