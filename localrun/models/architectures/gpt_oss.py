"""Knows no other family: gpt-oss, whose experts are merged, biased and mxfp4 in the release.

Names and shapes: https://github.com/huggingface/transformers, ``models/gpt_oss``.
"""

from __future__ import annotations

from collections.abc import Iterator

from localrun.models import blocks
from localrun.models.architecture import Caches, Storage
from localrun.models.fields import CONTEXT_MAX, EXPERTS_MAX, WIDTH_MAX, Fields
from localrun.models.layout import LayoutTensor
from localrun.models.storage import Mxfp4Blocks

_NORMS = ("input_layernorm", "post_attention_layernorm")


def layout(config: Fields, storage: Storage) -> Iterator[LayoutTensor]:
    shape = blocks.Shape.of(config)
    yield from blocks.root(config, storage)
    for layer in range(shape.layers):
        at = f"model.layers.{layer}."
        yield from blocks.norms(at, shape.width, storage, *_NORMS)
        yield from blocks.attention(at, shape, storage, bias=True, output_bias=True)
        yield from storage.plain(f"{at}self_attn.sinks", shape.heads)
        yield from _experts(config, f"{at}mlp.", shape.width, storage)


def _experts(config: Fields, at: str, width: int, storage: Storage) -> Iterator[LayoutTensor]:
    count = config.needed("num_local_experts", most=EXPERTS_MAX)
    inner = config.needed("intermediate_size", most=WIDTH_MAX)
    yield from storage.plain(f"{at}router.weight", count, width)
    yield from storage.plain(f"{at}router.bias", count)
    for name, rows, columns in (("gate_up_proj", 2 * inner, width), ("down_proj", width, inner)):
        if isinstance(storage, Mxfp4Blocks):
            yield from storage.merged(f"{at}experts.{name}", count, rows, columns)
        else:
            yield from storage.plain(f"{at}experts.{name}", count, columns, rows)
        yield from storage.plain(f"{at}experts.{name}_bias", count, rows)


def caches(config: Fields) -> Caches:
    """Every other layer has a window, the first among them."""
    shape = blocks.Shape.of(config)
    kinds = config.texts("layer_types", shape.layers)
    windowed = (
        [kind == "sliding_attention" for kind in kinds]
        if kinds
        else [layer % 2 == 0 for layer in range(shape.layers)]
    )
    return blocks.caches(shape, windowed, config.needed("sliding_window", most=CONTEXT_MAX))
