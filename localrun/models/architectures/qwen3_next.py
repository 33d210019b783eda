"""Knows no other family: Qwen3-Next, Qwen3.5 and Qwen3.6, dense and mixture, with their drafts."""

from __future__ import annotations

from collections.abc import Iterator

from localrun.models import blocks, towers
from localrun.models.architecture import Caches, Storage
from localrun.models.delta import DeltaNet, linear_layers
from localrun.models.fields import EXPERTS_MAX, LAYERS_MAX, WIDTH_MAX, Fields
from localrun.models.layout import LayoutTensor
from localrun.models.storage import Plain

_NORMS = ("input_layernorm", "post_attention_layernorm")


def layout(config: Fields, storage: Storage) -> Iterator[LayoutTensor]:
    shape = blocks.Shape.of(config)
    net = DeltaNet.of(config)
    first = config.text("model_type") == "qwen3_next"
    nested = "model.language_model." if "text_config" in config.values else "model."
    yield from blocks.root(config, storage, nested)
    for layer, linear in enumerate(linear_layers(config, shape.layers)):
        at = f"{nested}layers.{layer}."
        yield from blocks.norms(at, shape.width, storage, *_NORMS)
        if linear:
            yield from net.tensors(at, storage, fused=first)
        else:
            yield from _attention(at, shape, config, storage)
        yield from _network(at, shape, config, storage, merged=not first)
    yield from draft(config, shape, storage)
    vision = config.mapping("vision_config")
    if vision is not None and nested != "model.":
        yield from towers.qwen(vision, storage)


def _attention(
    at: str, shape: blocks.Shape, config: Fields, storage: Storage
) -> Iterator[LayoutTensor]:
    bias = config.flag("attention_bias")
    yield from blocks.attention(at, shape, storage, bias=bias, output_bias=bias, gated=True)
    yield from blocks.head_norms(at, shape.head, shape.head, storage)


def _network(
    at: str, shape: blocks.Shape, config: Fields, storage: Storage, *, merged: bool
) -> Iterator[LayoutTensor]:
    if config.values.get("num_experts"):
        yield from experts(f"{at}mlp.", shape.width, config, storage, merged=merged)
    else:
        inner = config.needed("intermediate_size", most=WIDTH_MAX)
        yield from blocks.feed_forward(f"{at}mlp.", shape.width, inner, storage)


def experts(
    at: str, width: int, config: Fields, storage: Storage, *, merged: bool
) -> Iterator[LayoutTensor]:
    """Router, routed experts and a shared one with its gate. Releases in plain floats store the
    routed ones ``merged`` over the layer."""
    if merged and isinstance(storage, Plain):
        count = config.needed("num_experts", most=EXPERTS_MAX)
        inner = config.needed("moe_intermediate_size", most=WIDTH_MAX)
        yield from storage.plain(f"{at}gate.weight", count, width)
        yield from storage.plain(f"{at}experts.gate_up_proj", count, 2 * inner, width)
        yield from storage.plain(f"{at}experts.down_proj", count, width, inner)
    else:
        yield from blocks.mixture(
            config,
            at,
            width,
            storage,
            count_key="num_experts",
            inner_key="moe_intermediate_size",
        )
    shared = config.needed("shared_expert_intermediate_size", most=WIDTH_MAX)
    yield from blocks.feed_forward(f"{at}shared_expert.", width, shared, storage)
    yield from storage.plain(f"{at}shared_expert_gate.weight", 1, width)


def draft(config: Fields, shape: blocks.Shape, storage: Storage) -> Iterator[LayoutTensor]:
    """Layers of full attention that guess the token after the next, and what joins them."""
    count = config.integer("mtp_num_hidden_layers", least=0, most=LAYERS_MAX)
    # Qwen3-Next is released with one that its config does not mention.
    count = 1 if count is None else count
    if not count:
        return
    yield from storage.plain("mtp.fc.weight", shape.width, 2 * shape.width)
    yield from blocks.norms("mtp.", shape.width, storage, "pre_fc_norm_embedding")
    yield from blocks.norms("mtp.", shape.width, storage, "pre_fc_norm_hidden", "norm")
    for layer in range(count):
        at = f"mtp.layers.{layer}."
        yield from blocks.norms(at, shape.width, storage, *_NORMS)
        yield from _attention(at, shape, config, storage)
        yield from _network(at, shape, config, storage, merged=False)


def caches(config: Fields) -> Caches:
    shape = blocks.Shape.of(config)
    net = DeltaNet.of(config)
    linear = linear_layers(config, shape.layers)
    full = [layer for layer, each in enumerate(linear) if not each]
    states = tuple((layer, net.state_bytes) for layer, each in enumerate(linear) if each)
    return Caches((shape.rows(full),) if full else (), states)
