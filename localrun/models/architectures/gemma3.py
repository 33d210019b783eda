"""Knows no other family: Gemma 3, text alone or with SigLIP; five layers of six have a window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localrun.models import blocks, towers
from localrun.models.architecture import Caches, Storage
from localrun.models.fields import CONTEXT_MAX, LAYERS_MAX, WIDTH_MAX, Fields
from localrun.models.layout import LayoutTensor

_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_PATTERN = 6


def layout(config: Fields, storage: Storage) -> Iterator[LayoutTensor]:
    shape = blocks.Shape.of(config)
    inner = config.needed("intermediate_size", most=WIDTH_MAX)
    nested = "language_model." if "text_config" in config.values else ""
    yield from _root(config, storage, f"{nested}model.", f"{nested}lm_head.weight")
    bias = config.flag("attention_bias")
    for layer in range(shape.layers):
        at = f"{nested}model.layers.{layer}."
        yield from blocks.norms(at, shape.width, storage, *_NORMS)
        yield from blocks.attention(at, shape, storage, bias=bias, output_bias=bias)
        yield from blocks.head_norms(at, shape.head, shape.head, storage)
        yield from blocks.feed_forward(f"{at}mlp.", shape.width, inner, storage)
    vision = config.mapping("vision_config")
    if vision is not None:
        yield from towers.siglip(vision, shape.width, storage)


def _root(config: Fields, storage: Storage, prefix: str, head: str) -> Iterator[LayoutTensor]:
    # Text configs leave the class's default out: the head is the embedding.
    tied = {"tie_word_embeddings": True, **config.values}
    yield from blocks.root(replace(config, values=tied), storage, prefix, head)


def caches(config: Fields) -> Caches:
    shape = blocks.Shape.of(config)
    kinds = config.texts("layer_types", shape.layers)
    every = config.integer("sliding_window_pattern", most=LAYERS_MAX) or _PATTERN
    windowed = (
        [kind == "sliding_attention" for kind in kinds]
        if kinds
        else [(layer + 1) % every != 0 for layer in range(shape.layers)]
    )
    return blocks.caches(shape, windowed, config.needed("sliding_window", most=CONTEXT_MAX))
