"""Knows no architecture: the numbers every model has, in config.json's words, and its plain cache.

A GGUF file's metadata comes here translated (``gguf_config``).
"""

from __future__ import annotations

from dataclasses import dataclass

from localrun.models.architecture import Caches
from localrun.models.fields import (
    CONTEXT_MAX,
    EXPERTS_MAX,
    HEADS_MAX,
    LAYERS_MAX,
    VOCABULARY_MAX,
    WIDTH_MAX,
    Fields,
)
from localrun.models.spec import CacheRows

# A cache that is not plain keys and values in every layer: latent, recurrent, compressed, shared.
_OTHER_CACHE = (
    "kv_lora_rank",
    "ssm_cfg",
    "state_size",
    "mamba_d_state",
    "ssm_state_size",
    "full_attention_interval",
    "linear_num_key_heads",
    "linear_num_heads",
    "linear_attn_config",
    "num_kv_shared_layers",
    "compress_ratios",
    "conv_L_cache",
    "other_cache",
)
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_EXPERTS_USED = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token")


@dataclass(frozen=True, slots=True)
class Facts:
    """Zero where the file does not say. ``caches`` is None where heads do not tell it."""

    layers: int
    n_ctx: int
    width: int
    heads: int
    ffn_width: int
    vocabulary: int
    experts: int
    experts_used: int
    caches: Caches | None


def facts(fields: Fields) -> Facts:
    """The common numbers, each held to be one that a model can have.

    Raises:
        HeaderError: one that no model has, named as its file names it.
    """
    layers = fields.integer("num_hidden_layers", most=LAYERS_MAX) or 0
    n_ctx = fields.integer("max_position_embeddings", most=CONTEXT_MAX) or 0
    width = fields.integer("hidden_size", most=WIDTH_MAX) or 0
    other = any(fields.values.get(key) is not None for key in _OTHER_CACHE)
    # Where heads keep no plain cache, configs and converters write 0 of them.
    least = 0 if other else 1
    heads = fields.per_layer("num_attention_heads", layers, least=least, most=HEADS_MAX)
    kv_heads = fields.per_layer("num_key_value_heads", layers, least=least, most=HEADS_MAX)
    key = fields.integer("head_dim", least=least, most=WIDTH_MAX)
    value = fields.integer("v_head_dim", least=least, most=WIDTH_MAX)
    feed = fields.per_layer("intermediate_size", layers, least=0, most=WIDTH_MAX)
    narrow = fields.integer("moe_intermediate_size", least=0, most=WIDTH_MAX)
    vocabulary = fields.integer("vocab_size", most=VOCABULARY_MAX) or 0
    widest = max(heads or (0,))
    head = width // widest if widest else 0
    caches = None if other else _plain(kv_heads or heads, key or head, value or key or head)
    experts, used = _experts(fields)
    return Facts(
        layers,
        n_ctx,
        width,
        widest,
        max(feed or (0,)) or narrow or 0,
        vocabulary,
        experts,
        used,
        caches,
    )


def _plain(kv_heads: tuple[int, ...] | None, key: int, value: int) -> Caches | None:
    if not (kv_heads and key and value):
        return None
    layers: dict[int, list[int]] = {}
    for layer, count in enumerate(kv_heads):
        if count:
            layers.setdefault(count, []).append(layer)
    return Caches(
        tuple(
            CacheRows("full", tuple(found), count * (key + value))
            for count, found in layers.items()
        )
    )


def _experts(fields: Fields) -> tuple[int, int]:
    # Dense models of a mixture family write 0 of both.
    count = used = 0
    for key in _EXPERTS:
        count = fields.integer(key, least=0, most=EXPERTS_MAX) or count
    for key in _EXPERTS_USED:
        each = fields.integer(key, least=0, most=EXPERTS_MAX)
        if count and each and each > count:
            raise fields.error(key, f"{each} of {count} experts cannot be used")
        used = used or each or 0
    return count, used if count else 0
