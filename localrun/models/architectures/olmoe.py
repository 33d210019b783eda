"""Knows no other family: OLMoE, whose queries and keys are normed over all heads at once."""

from __future__ import annotations

from collections.abc import Iterator

from localrun.models import blocks
from localrun.models.architecture import Caches, Storage
from localrun.models.fields import Fields
from localrun.models.layout import LayoutTensor

_NORMS = ("input_layernorm", "post_attention_layernorm")


def layout(config: Fields, storage: Storage) -> Iterator[LayoutTensor]:
    shape = blocks.Shape.of(config)
    bias = config.flag("attention_bias")
    yield from blocks.root(config, storage)
    for layer in range(shape.layers):
        at = f"model.layers.{layer}."
        yield from blocks.norms(at, shape.width, storage, *_NORMS)
        yield from blocks.attention(at, shape, storage, bias=bias, output_bias=bias)
        yield from blocks.head_norms(
            at, shape.heads * shape.head, shape.kv_heads * shape.head, storage
        )
        yield from blocks.mixture(
            config,
            f"{at}mlp.",
            shape.width,
            storage,
            count_key="num_experts",
            inner_key="intermediate_size",
        )


def caches(config: Fields) -> Caches:
    return blocks.caches(blocks.Shape.of(config), (), None)
