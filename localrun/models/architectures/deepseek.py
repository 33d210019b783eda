"""Knows no other family: DeepSeek-V2, V3 (R1, Kimi-K2) and V3.2.

Latent attention and mixtures behind a few dense layers; V3.2 adds an indexer to every layer
(https://huggingface.co/deepseek-ai/DeepSeek-V3, README_WEIGHTS.md and modeling_deepseek.py;
https://huggingface.co/deepseek-ai/DeepSeek-V3.2-Exp, inference/model.py). The draft layer repeats
embedding and head in the release. Kimi-K2.5 and K2.6 are V3 beside a vision tower.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localrun.models.architecture import Caches, Storage
from localrun.models.fields import LAYERS_MAX, VOCABULARY_MAX, WIDTH_MAX, Fields
from localrun.models.layout import LayoutTensor
from localrun.models.mla import (
    Indexer,
    Latent,
    beside_vision,
    gated,
    indexer_of,
    latent_of,
    latent_rows,
    layers_of,
    mixture_of,
    sparse_layers,
)
from localrun.models.spec import CacheRows
from localrun.models.vision import moonvit

# V3.2's cache rows (https://github.com/deepseek-ai/FlashMLA): the latent in F8_E4M3 with one F32
# scale for 128 numbers, the rotated part in BF16; index keys alike with one scale.
_SCALED = 128


def layout(config: Fields, storage: Storage) -> Iterator[LayoutTensor]:
    """Raises HeaderError for a field that is absent or that no model has."""
    outer = "language_model." if beside_vision(config) else ""
    layers = layers_of(config)
    latent = latent_of(config)
    indexer = _indexer(config)
    mixture = mixture_of(config, bias=config.text("topk_method") == "noaux_tc")
    vocabulary = config.needed("vocab_size", most=VOCABULARY_MAX)
    yield from storage.plain(f"{outer}model.embed_tokens.weight", vocabulary, latent.width)
    for layer, sparse in enumerate(sparse_layers(config, layers)):
        name = f"{outer}model.layers.{layer}"
        yield from _attention(name, latent, indexer, storage)
        if sparse:
            yield from mixture.tensors(f"{name}.mlp", storage)
        else:
            inner = config.needed("intermediate_size", most=WIDTH_MAX)
            yield from gated(f"{name}.mlp", latent.width, inner, storage)
    yield from storage.plain(f"{outer}model.norm.weight", latent.width)
    if not config.flag("tie_word_embeddings"):
        yield from storage.plain(f"{outer}lm_head.weight", vocabulary, latent.width)
    for stage in range(config.integer("num_nextn_predict_layers", least=0, most=LAYERS_MAX) or 0):
        name = f"{outer}model.layers.{layers + stage}"
        yield from _attention(name, latent, indexer, storage)
        yield from mixture.tensors(f"{name}.mlp", storage)
        yield from draft(name, latent.width, storage)
        yield from storage.plain(f"{name}.embed_tokens.weight", vocabulary, latent.width)
        yield from storage.plain(f"{name}.shared_head.head.weight", vocabulary, latent.width)
    vision = config.mapping("vision_config")
    if vision:
        yield from moonvit(vision, latent.width, storage)


def draft(name: str, width: int, storage: Storage) -> Iterator[LayoutTensor]:
    """What joins the next token's embedding to the last layer's output."""
    yield from storage.plain(f"{name}.enorm.weight", width)
    yield from storage.plain(f"{name}.hnorm.weight", width)
    yield from storage.plain(f"{name}.eh_proj.weight", width, 2 * width)
    yield from storage.plain(f"{name}.shared_head.norm.weight", width)


def _attention(
    name: str, latent: Latent, indexer: Indexer | None, storage: Storage
) -> Iterator[LayoutTensor]:
    yield from storage.plain(f"{name}.input_layernorm.weight", latent.width)
    yield from latent.tensors(f"{name}.self_attn", storage)
    if indexer:
        yield from indexer.tensors(f"{name}.self_attn.indexer", latent, storage)
    yield from storage.plain(f"{name}.post_attention_layernorm.weight", latent.width)


def _indexer(config: Fields) -> Indexer | None:
    return indexer_of(config) if config.values.get("index_topk") is not None else None


def caches(config: Fields) -> Caches:
    """Raises HeaderError for a field that is absent or that no model has."""
    every = tuple(range(layers_of(config)))
    indexer = _indexer(config)
    if indexer is None:
        return Caches((latent_rows(config, every),))
    rows = latent_rows(config, every, read=indexer.top)
    rank = config.needed("kv_lora_rank", most=WIDTH_MAX)
    native = rank + 4 * -(-rank // _SCALED) + 2 * (rows.elements - rank)
    keys = indexer.head + 4 * -(-indexer.head // _SCALED)
    return Caches(
        (
            replace(rows, native_bytes=native),
            CacheRows("index", every, indexer.head, native_bytes=keys),
        )
    )
