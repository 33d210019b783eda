"""Knows no other family: GLM-4.5 to 4.7, GLM-5 and GLM-5.3.

GLM-4's mixtures have plain attention; GLM-5 has DeepSeek-V3.2's, where some layers may use the
choice of the indexer before them; GLM-5.3 mixes it with linear attention, pools its index keys and
keeps several residual streams (https://github.com/huggingface/transformers, ``models/glm4_moe``,
``glm4v_moe``, ``glm_moe_dsa`` and ``glm5_next``). Fields tell which one it is. Draft layers follow
the last layer; GLM-4's repeat embedding and head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from localrun.models.architecture import Caches, Storage
from localrun.models.architectures.deepseek import draft
from localrun.models.blocks import Shape, attention, head_norms
from localrun.models.fields import (
    CONTEXT_MAX,
    HEADS_MAX,
    LAYERS_MAX,
    VOCABULARY_MAX,
    WIDTH_MAX,
    Fields,
)
from localrun.models.kda import Kda, kda_of, linear_layers
from localrun.models.layout import LayoutTensor
from localrun.models.mla import (
    Indexer,
    Latent,
    beside_vision,
    float32,
    gated,
    indexer_of,
    latent_of,
    latent_rows,
    layers_of,
    mixture_of,
    sparse_layers,
    text_of,
)
from localrun.models.spec import CacheRows
from localrun.models.vision import glm as glm_vision


def layout(config: Fields, storage: Storage) -> Iterator[LayoutTensor]:
    """Raises HeaderError for a field that is absent or that no model has."""
    text = text_of(config)
    inside = beside_vision(config)
    outer = "model.language_model" if inside else "model"
    layers, width = layers_of(text), text.needed("hidden_size", most=WIDTH_MAX)
    vocabulary = text.needed("vocab_size", most=VOCABULARY_MAX)
    mixture, sparse = mixture_of(text, bias=True), sparse_layers(text, layers)
    latent = text.values.get("kv_lora_rank") is not None
    block: _Plain | _Sparse = _sparse(text, layers) if latent else _plain(text)
    drafts = text.integer("num_nextn_predict_layers", least=0, most=LAYERS_MAX) or 0
    yield from storage.plain(f"{outer}.embed_tokens.weight", vocabulary, width)
    for layer in range(layers + drafts):
        name = f"{outer}.layers.{layer}"
        yield from storage.plain(f"{name}.input_layernorm.weight", width)
        yield from block.tensors(name, layer, storage)
        yield from storage.plain(f"{name}.post_attention_layernorm.weight", width)
        if layer >= layers or sparse[layer]:
            yield from mixture.tensors(f"{name}.mlp", storage)
        else:
            inner = text.needed("intermediate_size", most=WIDTH_MAX)
            yield from gated(f"{name}.mlp", width, inner, storage)
        if layer >= layers:
            yield from draft(name, width, storage)
            if not latent:
                yield from storage.plain(f"{name}.embed_tokens.weight", vocabulary, width)
                yield from storage.plain(f"{name}.shared_head.head.weight", vocabulary, width)
    yield from storage.plain(f"{outer}.norm.weight", width)
    if not text.flag("tie_word_embeddings"):
        yield from storage.plain("lm_head.weight", vocabulary, width)
    vision = config.mapping("vision_config")
    if vision:
        yield from glm_vision(vision, "model.visual", storage, newer=latent)


@dataclass(frozen=True, slots=True)
class _Plain:
    """GLM-4's attention."""

    shape: Shape
    bias: bool
    normed: bool

    def tensors(self, name: str, layer: int, storage: Storage) -> Iterator[LayoutTensor]:
        yield from attention(f"{name}.", self.shape, storage, bias=self.bias)
        if self.normed:
            yield from head_norms(f"{name}.", self.shape.head, self.shape.head, storage)


@dataclass(frozen=True, slots=True)
class _Sparse:
    """GLM-5's attention: latent, with an indexer of its own in the layers that are ``full``; draft
    layers are like that too. ``streams`` is 0 where the residual is one."""

    latent: Latent
    indexer: Indexer
    pool: int
    full: tuple[bool, ...]
    linear: tuple[bool, ...]
    kda: Kda | None
    streams: int

    def tensors(self, name: str, layer: int, storage: Storage) -> Iterator[LayoutTensor]:
        inside = layer < len(self.full)
        if self.streams:
            yield from self._streams(name)
        name = f"{name}.self_attn"
        if self.kda and inside and self.linear[layer]:
            decay = (self.kda.heads,)
            yield from self.kda.tensors(name, self.latent.width, decay, storage)
            return
        yield from self.latent.tensors(name, storage)
        if inside and not self.full[layer]:
            return
        yield from self.indexer.tensors(f"{name}.indexer", self.latent, storage)
        if self.pool > 1:
            head, width = self.indexer.head, self.latent.width
            yield from storage.plain(f"{name}.indexer.index_kpool_compress_ape", self.pool, head)
            yield from storage.plain(f"{name}.indexer.index_kpool_compress_gate", head, width)

    def _streams(self, name: str) -> Iterator[LayoutTensor]:
        mix = self.streams * (self.streams + 2)
        for part in ("attn", "ffn"):
            yield float32(f"{name}.hc_{part}_fn", mix, self.streams * self.latent.width)
            yield float32(f"{name}.hc_{part}_base", mix)
            yield float32(f"{name}.hc_{part}_scale", 3)


def _plain(text: Fields) -> _Plain:
    return _Plain(Shape.of(text), text.flag("attention_bias"), text.flag("use_qk_norm"))


def _sparse(text: Fields, layers: int) -> _Sparse:
    linear = _linear(text, layers)
    return _Sparse(
        latent_of(text),
        indexer_of(text),
        text.integer("index_kpool", most=CONTEXT_MAX) or 1,
        _full(text, layers),
        linear,
        kda_of(text) if any(linear) else None,
        text.integer("hc_mult", least=0, most=HEADS_MAX) or 0,
    )


def _linear(text: Fields, layers: int) -> tuple[bool, ...]:
    if text.values.get("layer_types") is None and text.values.get("linear_attn_config") is None:
        return (False,) * layers
    return linear_layers(text, layers)


def _full(text: Fields, layers: int) -> tuple[bool, ...]:
    """Which layers run an indexer of their own, instead of using the last one's choice."""
    kinds = text.texts("indexer_types", layers)
    if kinds is not None:
        return tuple(kind == "full" for kind in kinds)
    every = text.integer("index_topk_freq", most=LAYERS_MAX) or 1
    first = text.integer("index_skip_topk_offset", least=0, most=LAYERS_MAX)
    start = (2 if first is None else first) - 1
    return tuple(max(layer - start, 0) % every == 0 for layer in range(layers))


def caches(config: Fields) -> Caches:
    """Raises HeaderError for a field that is absent or that no model has."""
    text = text_of(config)
    layers = layers_of(text)
    if text.values.get("kv_lora_rank") is None:
        return Caches((Shape.of(text).rows(range(layers)),))
    linear = _linear(text, layers)
    chosen = tuple(layer for layer in range(layers) if not linear[layer])
    full = _full(text, layers)
    top = text.needed("index_topk", most=CONTEXT_MAX)
    head = text.needed("index_head_dim", most=WIDTH_MAX)
    pool = text.integer("index_kpool", most=CONTEXT_MAX) or 1
    keys = CacheRows("index", tuple(layer for layer in chosen if full[layer]), head, pool)
    size = kda_of(text).state_bytes if any(linear) else 0
    states = tuple((layer, size) for layer in range(layers) if linear[layer])
    return Caches((latent_rows(text, chosen, read=top), keys), states)
