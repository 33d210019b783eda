"""Knows no other family: Qwen2 and Qwen2.5, Llama with biases on queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterator

from localrun.models import blocks
from localrun.models.architecture import Caches, Storage
from localrun.models.fields import CONTEXT_MAX, LAYERS_MAX, WIDTH_MAX, Fields
from localrun.models.layout import LayoutTensor

_NORMS = ("input_layernorm", "post_attention_layernorm")


def layout(config: Fields, storage: Storage) -> Iterator[LayoutTensor]:
    shape = blocks.Shape.of(config)
    inner = config.needed("intermediate_size", most=WIDTH_MAX)
    yield from blocks.root(config, storage)
    for layer in range(shape.layers):
        at = f"model.layers.{layer}."
        yield from blocks.norms(at, shape.width, storage, *_NORMS)
        yield from blocks.attention(at, shape, storage, bias=True)
        yield from blocks.feed_forward(f"{at}mlp.", shape.width, inner, storage)


def caches(config: Fields) -> Caches:
    """The config names a window and says apart whether it is used, from which layer on."""
    shape = blocks.Shape.of(config)
    window = config.integer("sliding_window", most=CONTEXT_MAX)
    if not config.flag("use_sliding_window"):
        return blocks.caches(shape, (), None)
    first = config.integer("max_window_layers", least=0, most=LAYERS_MAX) or 0
    return blocks.caches(shape, [layer >= first for layer in range(shape.layers)], window)
