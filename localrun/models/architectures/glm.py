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
)
from localrun.models.spec import CacheRows
from localrun.models.vision import glm as glm_vision


def layout(config: Fields, storage: Storage) -> Iterator[LayoutTensor]:
    """Raises HeaderError for a field that is absent or that no model has."""
    inside = beside_vision(config)
    outer = "model.language_model" if inside else "model"
    layers, width = layers_of(config), config.needed("hidden_size", most=WIDTH_MAX)
    vocabulary = config.needed("vocab_size", most=VOCABULARY_MAX)
    mixture, sparse = mixture_of(config, bias=True), sparse_layers(config, layers)
    latent = config.values.get("kv_lora_rank") is not None
    block: _Plain | _Sparse = _sparse(config, layers) if latent else _plain(config)
    drafts = config.integer("num_nextn_predict_layers", least=0, most=LAYERS_MAX) or 0
    yield from storage.plain(f"{outer}.embed_tokens.weight", vocabulary, width)
    for layer in range(layers + drafts):
        name = f"{outer}.layers.{layer}"
        yield from storage.plain(f"{name}.input_layernorm.weight", width)
        yield from block.tensors(name, layer, storage)
        yield from storage.plain(f"{name}.post_attention_layernorm.weight", width)
        if layer >= layers or sparse[layer]:
            yield from mixture.tensors(f"{name}.mlp", storage)
        else:
            inner = config.needed("intermediate_size", most=WIDTH_MAX)
            yield from gated(f"{name}.mlp", width, inner, storage)
        if layer >= layers:
            yield from draft(name, width, storage)
            if not latent:
                yield from storage.plain(f"{name}.embed_tokens.weight", vocabulary, width)
                yield from storage.plain(f"{name}.shared_head.head.weight", vocabulary, width)
    yield from storage.plain(f"{outer}.norm.weight", width)
    if not config.flag("tie_word_embeddings"):
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


def _plain(config: Fields) -> _Plain:
    return _Plain(Shape.of(config), config.flag("attention_bias"), config.flag("use_qk_norm"))


def _sparse(config: Fields, layers: int) -> _Sparse:
    linear = _linear(config, layers)
    return _Sparse(
        latent_of(config),
        indexer_of(config),
        config.integer("index_kpool", most=CONTEXT_MAX) or 1,
        _full(config, layers),
        linear,
        kda_of(config) if any(linear) else None,
        config.integer("hc_mult", least=0, most=HEADS_MAX) or 0,
    )


def _linear(config: Fields, layers: int) -> tuple[bool, ...]:
    return linear_layers(config, layers) or (False,) * layers


def _full(config: Fields, layers: int) -> tuple[bool, ...]:
    """Which layers run an indexer of their own, instead of using the last one's choice."""
    flags = config.values.get("indexer_types")
    if isinstance(flags, tuple | list) and all(isinstance(flag, bool) for flag in flags):
        # A GGUF file's.
        if len(flags) != layers:
            raise config.error("indexer_types", f"has {len(flags)} entries for {layers} layers")
        return tuple(flags)
    kinds = config.texts("indexer_types", layers)
    if kinds is not None:
        return tuple(kind == "full" for kind in kinds)
    every = config.integer("index_topk_freq", most=LAYERS_MAX) or 1
    first = config.integer("index_skip_topk_offset", least=0, most=LAYERS_MAX)
    start = (2 if first is None else first) - 1
    return tuple(max(layer - start, 0) % every == 0 for layer in range(layers))


def caches(config: Fields) -> Caches:
    """Raises HeaderError for a field that is absent or that no model has."""
    layers = layers_of(config)
    if config.values.get("kv_lora_rank") is None:
        return Caches((Shape.of(config).rows(range(layers)),))
    linear = _linear(config, layers)
    chosen = tuple(layer for layer in range(layers) if not linear[layer])
    full = _full(config, layers)
    top = config.needed("index_topk", most=CONTEXT_MAX)
    head = config.needed("index_head_dim", most=WIDTH_MAX)
    pool = config.integer("index_kpool", most=CONTEXT_MAX) or 1
    keys = CacheRows("index", tuple(layer for layer in chosen if full[layer]), head, pool)
    size = kda_of(config).state_bytes if any(linear) else 0
    states = tuple((layer, size) for layer in range(layers) if linear[layer])
    return Caches((latent_rows(config, chosen, read=top), keys), states)
