"""Knows no other family: Qwen3, dense and mixture."""

from __future__ import annotations

from collections.abc import Iterator

from localrun.models import blocks
from localrun.models.architecture import Caches, Storage
from localrun.models.architectures.qwen2 import caches as caches_of_qwen2
from localrun.models.fields import LAYERS_MAX, WIDTH_MAX, Fields
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
        yield from blocks.head_norms(at, shape.head, shape.head, storage)
        if _mixed(config, layer):
            yield from blocks.mixture(
                config,
                f"{at}mlp.",
                shape.width,
                storage,
                count_key="num_experts",
                inner_key="moe_intermediate_size",
            )
        else:
            inner = config.needed("intermediate_size", most=WIDTH_MAX)
            yield from blocks.feed_forward(f"{at}mlp.", shape.width, inner, storage)


def _mixed(config: Fields, layer: int) -> bool:
    """Whether this layer has experts."""
    if not config.values.get("num_experts"):
        return False
    dense = config.integers("mlp_only_layers", most=LAYERS_MAX) or ()
    step = config.integer("decoder_sparse_step", most=LAYERS_MAX) or 1
    return layer not in dense and (layer + 1) % step == 0


def caches(config: Fields) -> Caches:
    return caches_of_qwen2(config)
