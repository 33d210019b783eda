"""Knows no other family: Llama, SmolLM2 and Mistral.

Touvron et al., arXiv 2302.13971; names are those of the transformers library
(https://github.com/huggingface/transformers, models/llama and models/mistral).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor

from localrun.backends.torch.architectures.rotary import Positions, positions_of
from localrun.backends.torch.caches.cache import Cache, Part
from localrun.backends.torch.caches.formats import RowFormat, plain_row
from localrun.backends.torch.caches.ring import Ring, window_reach
from localrun.backends.torch.caches.rows import Rows
from localrun.backends.torch.layers.dense_attention import DenseAttention
from localrun.backends.torch.layers.norm import rms_norm
from localrun.backends.torch.layers.projections import (
    GatedProjection,
    gated_projection,
    projection,
)
from localrun.backends.torch.layers.rope import Rope
from localrun.backends.torch.layers.vocabulary import Vocabulary, vocabulary_of
from localrun.backends.torch.model import NO_TABLES, LayerBytes, Model, Setup, Step, TableUse
from localrun.backends.torch.tensors import Tensors
from localrun.models.blocks import Shape
from localrun.models.fields import CONTEXT_MAX, VOCABULARY_MAX, WIDTH_MAX, Fields, number

_TYPES: Final = ("llama", "mistral")
# Of models that share these tensors' names and compute something else with them.
_FOREIGN: Final = (
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "attention_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "no_rope_layers",
    "use_qk_norm",
    "num_local_experts",
)


@dataclass(frozen=True, slots=True)
class Config:
    """What of config.json the arithmetic needs. ``window`` is 0 where every token sees all before
    it; ``prefix`` stands in front of ``model.`` beside a vision tower."""

    shape: Shape
    inner: int
    vocabulary: int
    eps: float
    positions: Positions
    window: int
    attention_bias: bool
    mlp_bias: bool
    tied: bool
    prefix: str

    @classmethod
    def of(cls, config: Fields) -> Self:
        """
        Raises:
            HeaderError: a field that is absent, that no model has, or that is not computed here.
        """
        _understood(config)
        shape = Shape.of(config)
        if shape.heads % shape.kv_heads:
            problem = f"{shape.heads} heads of queries do not share {shape.kv_heads} of keys"
            raise config.error("num_key_value_heads", problem)
        eps = number(config, "rms_norm_eps")
        if eps is None:
            raise config.absent("rms_norm_eps")
        return cls(
            shape=shape,
            inner=config.needed("intermediate_size", most=WIDTH_MAX),
            vocabulary=config.needed("vocab_size", most=VOCABULARY_MAX),
            eps=eps,
            positions=positions_of(config, shape.head),
            window=config.integer("sliding_window", most=CONTEXT_MAX) or 0,
            attention_bias=config.flag("attention_bias"),
            mlp_bias=config.flag("mlp_bias"),
            tied=config.flag("tie_word_embeddings"),
            prefix="language_model." if "text_config" in config.values else "",
        )


def _understood(config: Fields) -> None:
    kind = config.text("model_type") or "llama"
    if kind not in _TYPES:
        raise config.error("model_type", f"{kind!r} is not computed as a Llama")
    activation = config.text("hidden_act") or "silu"
    if activation != "silu":
        raise config.error("hidden_act", f"{activation!r} is not computed here; 'silu' is")
    for key in _FOREIGN:
        if config.values.get(key):
            raise config.error(key, "no Llama has it, and it is not computed here")
    layers = config.values.get("layer_types")
    if isinstance(layers, list | tuple) and set(layers) - {"full_attention"}:
        raise config.error("layer_types", "layers that differ are not computed here")


@dataclass(frozen=True, slots=True)
class Layer:
    before: Tensor
    attention: DenseAttention
    behind: Tensor
    feed_forward: GatedProjection

    @property
    def nbytes(self) -> int:
        norms = self.before.nbytes + self.behind.nbytes
        return norms + self.attention.nbytes + self.feed_forward.nbytes

    def close(self) -> None:
        self.attention.close()
        self.feed_forward.close()


class Llama:
    """See ``Model``."""

    def __init__(
        self, config: Config, setup: Setup, words: Vocabulary, layers: tuple[Layer, ...]
    ) -> None:
        self._eps, self._window = config.eps, config.window
        self._positions = config.positions.to(setup.device)
        self._setup, self._words, self._layers = setup, words, layers
        width = 2 * config.shape.kv_heads * config.shape.head
        self._format: RowFormat = plain_row(width, setup.numerics, setup.kv)

    @property
    def vocabulary(self) -> int:
        return self._words.size

    @property
    def nbytes(self) -> int:
        return self._words.nbytes + sum(layer.nbytes for layer in self._layers)

    @property
    def read_bytes(self) -> int:
        return self._words.read_bytes + sum(layer.nbytes for layer in self._layers)

    @property
    def layer_bytes(self) -> tuple[LayerBytes, ...]:
        return tuple(LayerBytes(layer.nbytes) for layer in self._layers)

    @property
    def head_bytes(self) -> int:
        return self._words.head_bytes

    @property
    def table_use(self) -> TableUse:
        return NO_TABLES

    def new_cache(self) -> Cache:
        return Cache({layer.attention.part: self._part() for layer in self._layers})

    def _part(self) -> Part:
        device, capacity = self._setup.device, self._setup.capacity
        if not self._window:
            return Rows(capacity, self._format, device, home=self._setup.home)
        size = min(self._window, capacity)
        return Ring(size, self._format, window_reach(self._window), device)

    def forward(self, step: Step) -> Tensor:
        mark, eps, spans = step.mark, self._eps, step.spans
        dtype = self._setup.numerics.dtype
        # Sums stay in float32: what leaves a norm is of the model's type.
        x = self._words.embed(step.tokens).float()  # (T, D)
        step.watch(-1, x)
        angles = self._positions.angles(step.positions)
        mark("embedding")
        for number_, layer in enumerate(self._layers):
            u = rms_norm(x, layer.before, eps).to(dtype)
            x = x + layer.attention(u, angles, spans, mark)
            u = rms_norm(x, layer.behind, eps).to(dtype)
            x = x + layer.feed_forward(u)
            mark("experts")
            step.watch(number_, x)
        logits = self._words.logits(x[step.wanted])
        mark("head")
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
    words = vocabulary_of(
        tensors, own.prefix, own.vocabulary, own.shape.width, own.eps, tied=own.tied
    )
    rope = Rope(own.positions.frequencies, adjacent=False, device=tensors.setup.device)
    layers = tuple(_layer(tensors, own, number_, rope) for number_ in range(own.shape.layers))
    if own.prefix:
        tensors.leave("vision_tower.", "multi_modal_projector.")
    tensors.finish()
    return Llama(own, tensors.setup, words, layers)


def _layer(tensors: Tensors, own: Config, number_: int, rope: Rope) -> Layer:
    at, shape = f"{own.prefix}model.layers.{number_}.", own.shape
    # Early checkpoints hold what is computed from rope_theta.
    tensors.leave(f"{at}self_attn.rotary_emb.inv_freq")
    before = tensors.plain(f"{at}input_layernorm.weight", shape.width, dtype=torch.float32)
    behind = tensors.plain(f"{at}post_attention_layernorm.weight", shape.width, dtype=torch.float32)
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    each = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    rows = {f"{at}self_attn.{name}": count for name, count in each.items()}
    output = {f"{at}self_attn.o_proj": shape.width}
    attention = DenseAttention(
        projection(tensors, rows, shape.width, bias=own.attention_bias),
        projection(tensors, output, queries, bias=own.attention_bias),
        rope,
        str(number_),
        shape.heads,
        shape.kv_heads,
        shape.head,
        own.window,
    )
    feed = gated_projection(tensors, f"{at}mlp", shape.width, own.inner, bias=own.mlp_bias)
    return Layer(before, attention, behind, feed)
