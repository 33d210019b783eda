"""Knows no other family: DeepSeek-V3 and R1, Kimi-K2 and DeepSeek-V3.2.

DeepSeek-AI, arXiv 2412.19437; V3.2 adds an indexer to every layer
(https://huggingface.co/deepseek-ai/DeepSeek-V3.2-Exp, inference/model.py). What is computed equals
the transformers library's (https://github.com/huggingface/transformers, models/deepseek_v3 and
models/deepseek_v32) where nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from localrun.backends.torch.architectures.deepseek_v3_config import Config, Routing
from localrun.backends.torch.caches.cache import Cache, Part
from localrun.backends.torch.caches.formats import index_key_v32, latent_v32, plain_row
from localrun.backends.torch.caches.rows import Rows
from localrun.backends.torch.layers.feed_forward import Experts
from localrun.backends.torch.layers.group_routing import GroupRouting
from localrun.backends.torch.layers.mla import LatentAttention
from localrun.backends.torch.layers.norm import rms_norm
from localrun.backends.torch.layers.projections import (
    GatedProjection,
    gated_projection,
    projection,
)
from localrun.backends.torch.layers.rope import Rope
from localrun.backends.torch.layers.token_indexer import TokenIndexer
from localrun.backends.torch.layers.vocabulary import Vocabulary, vocabulary_of
from localrun.backends.torch.model import NO_TABLES, LayerBytes, Model, Setup, Step, TableUse
from localrun.backends.torch.tensors import Tensors
from localrun.backends.torch.tiers.experts import StreamedExperts
from localrun.models.fields import Fields


@dataclass(frozen=True, slots=True)
class Mixture:
    """A token's routed experts, and those of every token, where there are any."""

    routing: GroupRouting
    experts: Experts | StreamedExperts
    shared: GatedProjection | None

    @property
    def nbytes(self) -> int:
        shared = self.shared.nbytes if self.shared else 0
        return self.routing.nbytes + self.experts.nbytes + shared

    @property
    def read_bytes(self) -> int:
        routed = self.experts.expert_nbytes * self.routing.top
        return self.nbytes - self.experts.nbytes + routed

    def __call__(self, x: Tensor) -> Tensor:
        """``[T, D]`` → ``[T, D]``; added in float32."""
        chosen, weights = self.routing(x)
        # The routing asks for no ids of tokens, so none are handed on.
        routed = self.experts.begin(x, chosen, weights, chosen[:, 0])
        shared = None if self.shared is None else self.shared(x)
        y = routed()
        if shared is not None:
            y = y + shared
        return y.to(x.dtype)

    def close(self) -> None:
        self.experts.close()
        if self.shared is not None:
            self.shared.close()


@dataclass(frozen=True, slots=True)
class Layer:
    before: Tensor
    attention: LatentAttention
    behind: Tensor
    feed_forward: GatedProjection | Mixture

    @property
    def nbytes(self) -> int:
        norms = self.before.nbytes + self.behind.nbytes
        return norms + self.attention.nbytes + self.feed_forward.nbytes

    @property
    def read_bytes(self) -> int:
        if isinstance(self.feed_forward, Mixture):
            return self.nbytes - self.feed_forward.nbytes + self.feed_forward.read_bytes
        return self.nbytes

    @property
    def parts(self) -> LayerBytes:
        if not isinstance(self.feed_forward, Mixture):
            return LayerBytes(self.nbytes)
        experts = self.feed_forward.experts.nbytes
        dense = self.nbytes - experts
        return LayerBytes(dense, experts, self.read_bytes - dense)

    def close(self) -> None:
        self.attention.close()
        self.feed_forward.close()


class DeepseekV3:
    """See ``Model``."""

    def __init__(
        self, config: Config, setup: Setup, words: Vocabulary, layers: tuple[Layer, ...]
    ) -> None:
        self._config, self._setup = config, setup
        self._words, self._layers = words, layers
        self._positions = config.positions.to(setup.device)
        sizes, kinds = config.latent, (setup.numerics, setup.kv)
        if config.indexer is None:
            self._row = plain_row(sizes.kv_rank + sizes.rope, *kinds)
        else:
            self._row = latent_v32(sizes.kv_rank, sizes.rope, *kinds)
            self._key = index_key_v32(config.indexer.head, *kinds)

    @property
    def vocabulary(self) -> int:
        return self._words.size

    @property
    def nbytes(self) -> int:
        return self._words.nbytes + sum(layer.nbytes for layer in self._layers)

    @property
    def read_bytes(self) -> int:
        return self._words.read_bytes + sum(layer.read_bytes for layer in self._layers)

    @property
    def layer_bytes(self) -> tuple[LayerBytes, ...]:
        return tuple(layer.parts for layer in self._layers)

    @property
    def head_bytes(self) -> int:
        return self._words.head_bytes

    @property
    def table_use(self) -> TableUse:
        return NO_TABLES

    def new_cache(self) -> Cache:
        return Cache(dict(self._parts()))

    def _parts(self) -> Iterator[tuple[str, Part]]:
        capacity, device = self._setup.capacity, self._setup.device
        for layer in self._layers:
            yield layer.attention.part, Rows(capacity, self._row, device, home=self._setup.home)
            if layer.attention.indexer:
                yield (
                    layer.attention.indexer.part,
                    Rows(capacity, self._key, device, home=self._setup.home),
                )

    def forward(self, step: Step) -> Tensor:
        eps = self._config.eps
        dtype = self._setup.numerics.dtype
        # Sums stay in float32: what leaves a norm is of the model's type.
        x = self._words.embed(step.tokens).float()  # (T, D)
        step.watch(-1, x)
        angles = self._positions.angles(step.positions)
        step.mark("embedding")
        for number, layer in enumerate(self._layers):
            u = rms_norm(x, layer.before, eps).to(dtype)
            x = x + layer.attention(u, angles, step.spans, step.mark)
            u = rms_norm(x, layer.behind, eps).to(dtype)
            x = x + layer.feed_forward(u)
            step.mark("experts")
            step.watch(number, x)
        logits = self._words.logits(x[step.wanted])
        step.mark("head")
        return logits

    def close(self) -> None:
        self._words.close()
        for layer in self._layers:
            layer.close()


def build(config: Fields, tensors: Tensors) -> Model:
    """
    Raises:
        HeaderError: as ``Config.of`` and ``Tensors``.
    """
    own = Config.of(config)
    own.check_rounding(config, tensors.setup.numerics)
    words = vocabulary_of(
        tensors, own.prefix, own.vocabulary, own.latent.width, own.eps, tied=own.tied
    )
    layers = tuple(_layer(tensors, own, number) for number in range(len(own.sparse)))
    count = len(own.sparse)
    drafts = [f"{own.prefix}model.layers.{count + stage}." for stage in range(own.drafts)]
    tensors.leave(*drafts, "vision_tower.", "mm_projector.")
    tensors.finish()
    return DeepseekV3(own, tensors.setup, words, layers)


def _layer(tensors: Tensors, own: Config, number: int) -> Layer:
    at, width = f"{own.prefix}model.layers.{number}", own.latent.width
    return Layer(
        tensors.plain(f"{at}.input_layernorm.weight", width, dtype=torch.float32),
        _attention(tensors, own, f"{at}.self_attn", str(number)),
        tensors.plain(f"{at}.post_attention_layernorm.weight", width, dtype=torch.float32),
        _mixture(tensors, own, own.routing, f"{at}.mlp")
        if own.sparse[number] and own.routing
        else gated_projection(tensors, f"{at}.mlp", width, own.inner),
    )


def _attention(tensors: Tensors, own: Config, at: str, part: str) -> LatentAttention:
    sizes = own.latent
    wide = sizes.heads * (sizes.nope + sizes.rope)
    row = {f"{at}.kv_a_proj_with_mqa": sizes.kv_rank + sizes.rope}
    if sizes.q_rank:
        row = {f"{at}.q_a_proj": sizes.q_rank} | row
        queries = projection(tensors, {f"{at}.q_b_proj": wide}, sizes.q_rank)
        name = f"{at}.q_a_layernorm.weight"
        q_norm = tensors.plain(name, sizes.q_rank, dtype=torch.float32)
    else:
        queries, q_norm = projection(tensors, {f"{at}.q_proj": wide}, sizes.width), None
    expanding = tensors.linear(
        f"{at}.kv_b_proj", sizes.heads * (sizes.nope + sizes.value), sizes.kv_rank
    )
    by_head = expanding.weight().view(sizes.heads, -1, sizes.kv_rank)
    keys, values = by_head[:, : sizes.nope].contiguous(), by_head[:, sizes.nope :].contiguous()
    expanding.close()
    device = tensors.setup.device
    return LatentAttention(
        sizes=sizes,
        down=projection(tensors, row, sizes.width, bias=sizes.bias),
        q_norm=q_norm,
        queries=queries,
        kv_norm=tensors.plain(f"{at}.kv_a_layernorm.weight", sizes.kv_rank, dtype=torch.float32),
        keys=keys,
        values=values,
        output=projection(
            tensors, {f"{at}.o_proj": sizes.width}, sizes.heads * sizes.value, bias=sizes.bias
        ),
        rope=Rope(own.positions.frequencies, adjacent=own.adjacent, device=device),
        scale=own.scale,
        part=part,
        indexer=_indexer(tensors, own, f"{at}.indexer", f"{part}.index"),
    )


def _indexer(tensors: Tensors, own: Config, at: str, part: str) -> TokenIndexer | None:
    sizes, latent = own.indexer, own.latent
    if sizes is None:
        return None

    def exact(name: str, *shape: int) -> Tensor:
        return tensors.plain(f"{at}.{name}", *shape, dtype=torch.float32)

    return TokenIndexer(
        sizes=sizes,
        queries=projection(tensors, {f"{at}.wq_b": sizes.heads * sizes.head}, latent.q_rank),
        keys=projection(tensors, {f"{at}.wk": sizes.head}, latent.width),
        k_norm=exact("k_norm.weight", sizes.head),
        k_bias=exact("k_norm.bias", sizes.head),
        weights=exact("weights_proj.weight", sizes.heads, latent.width),
        rope=Rope(own.positions.frequencies, adjacent=False, device=tensors.setup.device),
        part=part,
        numerics=tensors.setup.numerics,
    )


def _mixture(tensors: Tensors, own: Config, routing: Routing, at: str) -> Mixture:
    width, inner = own.latent.width, routing.inner
    chooses = GroupRouting(
        tensors.plain(f"{at}.gate.weight", routing.experts, width, dtype=torch.float32),
        tensors.plain(f"{at}.gate.e_score_correction_bias", routing.experts, dtype=torch.float32),
        routing.groups,
        routing.groups_used,
        routing.top,
        routing.normed,
        routing.scale,
    )
    return Mixture(
        chooses,
        tensors.experts(
            [f"{at}.experts.{{e}}.{part}" for part in ("gate_proj", "up_proj", "down_proj")],
            routing.experts,
            inner,
            width,
            top=routing.top,
            guess=lambda x, tokens: chooses(x)[0],
            late=True,
        ),
        gated_projection(tensors, f"{at}.shared_experts", width, routing.shared * inner)
        if routing.shared
        else None,
    )
