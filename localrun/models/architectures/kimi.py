"""Knows no other family: Kimi-Linear and Kimi-K3.

Linear attention in most layers, latent attention in the others. K3's experts run on a narrower
width, its sublayers weigh what earlier blocks of layers put out, and its attention has output
gates (https://huggingface.co/moonshotai/Kimi-Linear-48B-A3B-Instruct and
https://huggingface.co/moonshotai/Kimi-K3). K3's vision tower is left out: the library that defines
its parts has no release of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from localrun.models.architecture import Caches, Storage
from localrun.models.fields import EXPERTS_MAX, VOCABULARY_MAX, WIDTH_MAX, Fields
from localrun.models.kda import kda_of, linear_layers
from localrun.models.layout import LayoutTensor
from localrun.models.mla import (
    Latent,
    Mixture,
    beside_vision,
    gated,
    latent_of,
    latent_rows,
    layers_of,
    sparse_layers,
)


def layout(config: Fields, storage: Storage) -> Iterator[LayoutTensor]:
    """Raises HeaderError for a field that is absent or that no model has."""
    outer = "language_model." if beside_vision(config) else ""
    layers, latent, kda = layers_of(config), latent_of(config), kda_of(config)
    linear, mixture = _linear(config, layers), _mixture(config)
    weighing = config.integer("attn_res_block_size", most=layers) is not None
    normed = config.flag("latent_moe_use_norm")
    vocabulary = config.needed("vocab_size", most=VOCABULARY_MAX)
    yield from storage.plain(f"{outer}model.embed_tokens.weight", vocabulary, latent.width)
    for layer, sparse in enumerate(sparse_layers(config, layers)):
        name = f"{outer}model.layers.{layer}"
        yield from storage.plain(f"{name}.input_layernorm.weight", latent.width)
        yield from storage.plain(f"{name}.post_attention_layernorm.weight", latent.width)
        if weighing:
            yield from _weighing(f"{name}.self_attention_res", latent.width, storage)
            yield from _weighing(f"{name}.mlp_res", latent.width, storage)
        if linear[layer]:
            decay = (1, 1, kda.heads, 1)
            yield from kda.tensors(f"{name}.self_attn", latent.width, decay, storage)
        else:
            yield from latent.tensors(f"{name}.self_attn", storage)
            yield from _output_gate(f"{name}.self_attn", config, latent, storage)
        if sparse:
            yield from _experts(f"{name}.block_sparse_moe", mixture, normed, storage)
        else:
            inner = config.needed("intermediate_size", most=WIDTH_MAX)
            yield from gated(f"{name}.mlp", latent.width, inner, storage)
    if weighing:
        yield from _weighing(f"{outer}model.output_attn_res", latent.width, storage)
    yield from storage.plain(f"{outer}model.norm.weight", latent.width)
    if not config.flag("tie_word_embeddings"):
        yield from storage.plain(f"{outer}lm_head.weight", vocabulary, latent.width)


def _linear(config: Fields, layers: int) -> tuple[bool, ...]:
    linear = linear_layers(config, layers)
    if linear is None:
        raise config.absent("linear_attn_config")
    return linear


def _mixture(config: Fields) -> Mixture:
    inner = config.needed("moe_intermediate_size", most=WIDTH_MAX)
    shared = config.integer("num_shared_experts", least=0, most=EXPERTS_MAX) or 0
    return Mixture(
        width=config.needed("hidden_size", most=WIDTH_MAX),
        experts=config.needed("num_experts", most=EXPERTS_MAX),
        inner=inner,
        shared=shared * inner,
        bias=True,
        expert_width=config.integer("routed_expert_hidden_size", most=WIDTH_MAX) or 0,
    )


def _experts(name: str, mixture: Mixture, normed: bool, storage: Storage) -> Iterator[LayoutTensor]:
    """A latent mixture goes down before its experts and up behind them; neither is quantized."""
    count, inner = mixture.experts, mixture.inner
    narrow = mixture.expert_width or mixture.width
    yield from mixture.router(f"{name}.gate", storage)
    for matrix, rows, columns in (("w1", inner, narrow), ("w2", narrow, inner)):
        yield from storage.linear(f"{name}.experts.{{e}}.{matrix}", rows, columns, copies=count)
    yield from storage.linear(f"{name}.experts.{{e}}.w3", inner, narrow, copies=count)
    if mixture.shared:
        yield from gated(f"{name}.shared_experts", mixture.width, mixture.shared, storage)
    if mixture.expert_width:
        width = mixture.width
        yield from storage.plain(f"{name}.routed_expert_down_proj.weight", narrow, width)
        yield from storage.plain(f"{name}.routed_expert_up_proj.weight", width, narrow)
        if normed:
            yield from storage.plain(f"{name}.routed_expert_norm.weight", narrow)


def _weighing(name: str, width: int, storage: Storage) -> Iterator[LayoutTensor]:
    yield from storage.plain(f"{name}_norm.weight", width)
    yield from storage.plain(f"{name}_proj.weight", 1, width)


def _output_gate(
    name: str, config: Fields, latent: Latent, storage: Storage
) -> Iterator[LayoutTensor]:
    if config.flag("mla_use_output_gate"):
        yield from storage.linear(f"{name}.g_proj", latent.heads * latent.value, latent.width)


def caches(config: Fields) -> Caches:
    """Raises HeaderError for a field that is absent or that no model has."""
    layers = layers_of(config)
    linear = _linear(config, layers)
    full = tuple(layer for layer in range(layers) if not linear[layer])
    rows = (latent_rows(config, full),) if full else ()
    states = kda_of(config).state_bytes if any(linear) else 0
    return Caches(rows, tuple((layer, states) for layer in range(layers) if linear[layer]))
