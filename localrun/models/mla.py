"""Knows no family: latent attention, its indexer and mixtures, as DeepSeek-V2's heirs name them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from localrun.models.architecture import Storage
from localrun.models.fields import EXPERTS_MAX, HEADS_MAX, LAYERS_MAX, WIDTH_MAX, Fields
from localrun.models.layout import LayoutTensor
from localrun.models.spec import CacheRows
from localrun.models.storage import F32


def beside_vision(config: Fields) -> bool:
    """Whether the language model is a part of something: its tensors' names then say so."""
    return any(config.values.get(key) is not None for key in ("text_config", "vision_config"))


def float32(name: str, *shape: int) -> LayoutTensor:
    """What releases keep in F32 whatever their float type."""
    return LayoutTensor(name, shape, F32)


def layers_of(config: Fields) -> int:
    return config.needed("num_hidden_layers", most=LAYERS_MAX)


@dataclass(frozen=True, slots=True)
class Latent:
    """Sizes of multi-head latent attention; ``q_rank`` is 0 where queries have no latent."""

    width: int
    heads: int
    q_rank: int
    kv_rank: int
    nope: int
    rope: int
    value: int
    bias: bool

    def tensors(self, name: str, storage: Storage) -> Iterator[LayoutTensor]:
        """``name`` is the attention module's, without a dot at its end."""
        queries = self.heads * (self.nope + self.rope)
        if self.q_rank:
            yield from storage.linear(f"{name}.q_a_proj", self.q_rank, self.width)
            yield from self._bias(f"{name}.q_a_proj", self.q_rank, storage)
            yield from storage.plain(f"{name}.q_a_layernorm.weight", self.q_rank)
            yield from storage.linear(f"{name}.q_b_proj", queries, self.q_rank)
        else:
            yield from storage.linear(f"{name}.q_proj", queries, self.width)
        row = self.kv_rank + self.rope
        yield from storage.linear(f"{name}.kv_a_proj_with_mqa", row, self.width)
        yield from self._bias(f"{name}.kv_a_proj_with_mqa", row, storage)
        yield from storage.plain(f"{name}.kv_a_layernorm.weight", self.kv_rank)
        expanded = self.heads * (self.nope + self.value)
        yield from storage.linear(f"{name}.kv_b_proj", expanded, self.kv_rank)
        yield from storage.linear(f"{name}.o_proj", self.width, self.heads * self.value)
        yield from self._bias(f"{name}.o_proj", self.width, storage)

    def _bias(self, name: str, rows: int, storage: Storage) -> Iterator[LayoutTensor]:
        if self.bias:
            yield from storage.plain(f"{name}.bias", rows)


def latent_of(config: Fields) -> Latent:
    """Raises HeaderError for a field that is absent or that no model has."""
    return Latent(
        width=config.needed("hidden_size", most=WIDTH_MAX),
        heads=config.needed("num_attention_heads", most=HEADS_MAX),
        q_rank=config.integer("q_lora_rank", most=WIDTH_MAX) or 0,
        kv_rank=config.needed("kv_lora_rank", most=WIDTH_MAX),
        nope=config.needed("qk_nope_head_dim", most=WIDTH_MAX),
        rope=config.needed("qk_rope_head_dim", least=0, most=WIDTH_MAX),
        value=config.needed("v_head_dim", most=WIDTH_MAX),
        bias=config.flag("attention_bias"),
    )


@dataclass(frozen=True, slots=True)
class Indexer:
    """What chooses the ``top`` positions that attention reads."""

    heads: int
    head: int
    top: int

    def tensors(self, name: str, latent: Latent, storage: Storage) -> Iterator[LayoutTensor]:
        yield from storage.linear(f"{name}.wq_b", self.heads * self.head, latent.q_rank)
        yield from storage.linear(f"{name}.wk", self.head, latent.width)
        yield from storage.plain(f"{name}.k_norm.weight", self.head)
        yield from storage.plain(f"{name}.k_norm.bias", self.head)
        yield from storage.plain(f"{name}.weights_proj.weight", self.heads, latent.width)


def indexer_of(config: Fields) -> Indexer:
    return Indexer(
        heads=config.needed("index_n_heads", most=HEADS_MAX),
        head=config.needed("index_head_dim", most=WIDTH_MAX),
        top=config.needed("index_topk", most=2**31 - 1),
    )


@dataclass(frozen=True, slots=True)
class Mixture:
    """``shared`` is the inner width of all shared experts together, 0 for none. Experts run on
    ``expert_width`` numbers where that is not the model's ``width``."""

    width: int
    experts: int
    inner: int
    shared: int
    bias: bool
    expert_width: int = 0

    def router(self, name: str, storage: Storage) -> Iterator[LayoutTensor]:
        yield from storage.plain(f"{name}.weight", self.experts, self.width)
        if self.bias:
            yield float32(f"{name}.e_score_correction_bias", self.experts)

    def tensors(self, name: str, storage: Storage) -> Iterator[LayoutTensor]:
        yield from self.router(f"{name}.gate", storage)
        width = self.expert_width or self.width
        yield from gated(f"{name}.experts.{{e}}", width, self.inner, storage, copies=self.experts)
        if self.shared:
            yield from gated(f"{name}.shared_experts", self.width, self.shared, storage)


def mixture_of(config: Fields, *, bias: bool) -> Mixture:
    """Raises HeaderError for a field that is absent or that no model has."""
    inner = config.needed("moe_intermediate_size", most=WIDTH_MAX)
    shared = config.integer("n_shared_experts", least=0, most=EXPERTS_MAX) or 0
    return Mixture(
        width=config.needed("hidden_size", most=WIDTH_MAX),
        experts=config.needed("n_routed_experts", most=EXPERTS_MAX),
        inner=inner,
        shared=shared * inner,
        bias=bias,
    )


def gated(
    name: str, width: int, inner: int, storage: Storage, *, copies: int = 1
) -> Iterator[LayoutTensor]:
    """A feed-forward block of three matrices."""
    yield from storage.linear(f"{name}.gate_proj", inner, width, copies=copies)
    yield from storage.linear(f"{name}.up_proj", inner, width, copies=copies)
    yield from storage.linear(f"{name}.down_proj", width, inner, copies=copies)


def sparse_layers(config: Fields, layers: int) -> tuple[bool, ...]:
    """Which layers are mixtures: ``mlp_layer_types``, or all behind the first dense ones."""
    kinds = config.texts("mlp_layer_types", layers)
    if kinds is not None:
        return tuple(kind == "sparse" for kind in kinds)
    dense = config.needed("first_k_dense_replace", least=0, most=LAYERS_MAX)
    every = config.integer("moe_layer_freq", most=LAYERS_MAX) or 1
    return tuple(layer >= dense and layer % every == 0 for layer in range(layers))


def latent_rows(config: Fields, layers: tuple[int, ...], *, read: int = 0) -> CacheRows:
    """One row a token: the latent and the rotated part, which all heads share."""
    rank = config.needed("kv_lora_rank", most=WIDTH_MAX)
    rope = config.needed("qk_rope_head_dim", least=0, most=WIDTH_MAX)
    return CacheRows("latent", layers, rank + rope, read_rows=read)
