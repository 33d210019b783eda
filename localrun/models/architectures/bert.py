"""Knows no other family: BERT, an encoder that makes embeddings (MiniLM, BGE, E5, GTE).

Names are those of the transformers library's checkpoints
(https://github.com/huggingface/transformers, ``models/bert/modeling_bert.py``) and, for GGUF, of
``LLM_TENSOR_NAMES`` in https://github.com/ggml-org/llama.cpp/blob/master/src/llama-arch.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from localrun.models import blocks
from localrun.models.architecture import Caches, Storage
from localrun.models.fields import CONTEXT_MAX, VOCABULARY_MAX, WIDTH_MAX, Fields
from localrun.models.layout import LayoutTensor

_ROOT: Final = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
_LAYER: Final = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_INSIDE: Final = re.compile(r"encoder\.layer\.([0-9]{1,4})\.(.+)", re.ASCII)
# A release's name ends so; the first two are TensorFlow's of the first checkpoints.
_ENDS: Final = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}
# Positions counted out, and heads that no embedding passes through.
_UNUSED: Final = ("embeddings.position_ids", "pooler.", "cls.")


def gguf_name(name: str) -> str | None:
    """What a checkpoint's tensor is called in a GGUF file; empty for one that is left out, None for
    one that is not BERT's."""
    name = name.removeprefix("bert.")
    if name.startswith(_UNUSED):
        return ""
    stem, _, end = name.rpartition(".")
    end = _ENDS.get(end, "")
    if inside := _INSIDE.fullmatch(stem):
        inner = _LAYER.get(inside[2])
        found = f"blk.{int(inside[1])}.{inner}" if inner else None
    else:
        found = _ROOT.get(stem)
    return f"{found}.{end}" if found and end else None


def layout(config: Fields, storage: Storage) -> Iterator[LayoutTensor]:
    shape = blocks.Shape.of(config)
    inner = config.needed("intermediate_size", most=WIDTH_MAX)
    for word, rows in (
        ("word", config.needed("vocab_size", most=VOCABULARY_MAX)),
        ("position", config.needed("max_position_embeddings", most=CONTEXT_MAX)),
        ("token_type", config.integer("type_vocab_size", most=VOCABULARY_MAX) or 2),
    ):
        yield from storage.plain(f"embeddings.{word}_embeddings.weight", rows, shape.width)
    yield from _norm("embeddings.", shape.width, storage)
    for layer in range(shape.layers):
        at = f"encoder.layer.{layer}."
        for part in ("query", "key", "value"):
            name = f"{at}attention.self.{part}"
            yield from blocks.projection(name, shape.width, shape.width, storage, bias=True)
        name = f"{at}attention.output.dense"
        yield from blocks.projection(name, shape.width, shape.width, storage, bias=True)
        yield from _norm(f"{at}attention.output.", shape.width, storage)
        name = f"{at}intermediate.dense"
        yield from blocks.projection(name, inner, shape.width, storage, bias=True)
        name = f"{at}output.dense"
        yield from blocks.projection(name, shape.width, inner, storage, bias=True)
        yield from _norm(f"{at}output.", shape.width, storage)


def _norm(at: str, width: int, storage: Storage) -> Iterator[LayoutTensor]:
    yield from storage.plain(f"{at}LayerNorm.weight", width)
    yield from storage.plain(f"{at}LayerNorm.bias", width)


def caches(config: Fields) -> Caches:
    """Nothing is kept of a text: it is computed whole."""
    blocks.Shape.of(config)
    return Caches(encoder=True)
