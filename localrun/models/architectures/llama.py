"""Knows no other family: Llama, and with the same parts Mistral and Phi-3."""

from __future__ import annotations

from collections.abc import Iterator

from localrun.models import blocks
from localrun.models.architecture import Caches, Storage
from localrun.models.facts import facts
from localrun.models.fields import CONTEXT_MAX, WIDTH_MAX, Fields
from localrun.models.layout import LayoutTensor

_NORMS = ("input_layernorm", "post_attention_layernorm")


def layout(config: Fields, storage: Storage) -> Iterator[LayoutTensor]:
    shape = blocks.Shape.of(config)
    inner = config.needed("intermediate_size", most=WIDTH_MAX)
    nested = "language_model." if "text_config" in config.values else ""
    yield from blocks.root(config, storage, f"{nested}model.", f"{nested}lm_head.weight")
    for layer in range(shape.layers):
        at = f"{nested}model.layers.{layer}."
        yield from blocks.norms(at, shape.width, storage, *_NORMS)
        if config.text("model_type") == "phi3":
            yield from _fused(at, shape, inner, storage)
            continue
        bias = config.flag("attention_bias")
        yield from blocks.attention(at, shape, storage, bias=bias, output_bias=bias)
        yield from blocks.feed_forward(f"{at}mlp.", shape.width, inner, storage)


def _fused(at: str, shape: blocks.Shape, inner: int, storage: Storage) -> Iterator[LayoutTensor]:
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    yield from storage.linear(f"{at}self_attn.qkv_proj", queries + 2 * keys, shape.width)
    yield from storage.linear(f"{at}self_attn.o_proj", shape.width, queries)
    yield from storage.linear(f"{at}mlp.gate_up_proj", 2 * inner, shape.width)
    yield from storage.linear(f"{at}mlp.down_proj", shape.width, inner)


def caches(config: Fields) -> Caches:
    """The first Mistral had a window in every layer; derived models have heads by layer."""
    window = config.integer("sliding_window", most=CONTEXT_MAX)
    if window is None and (plain := facts(config).caches):
        return plain
    shape = blocks.Shape.of(config)
    return blocks.caches(shape, [True] * shape.layers, window)
