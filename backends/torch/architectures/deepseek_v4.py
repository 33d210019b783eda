"""Knows no other family: DeepSeek-V4 (Flash, Pro) for text, its draft and vision left out.

Four residual streams; every layer has one key-value head behind a window. Layers of ratio 4 read
besides it the compressed rows that an indexer chooses, those of another ratio all of theirs
(https://huggingface.co/deepseek-ai/DeepSeek-V4-Flash, inference/model.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from localrun.backends.torch.architectures.deepseek_v4_attention import Angles, Attention, Indexer
from localrun.backends.torch.architectures.deepseek_v4_config import Config, parsed
from localrun.backends.torch.architectures.v4_parts import Parts
from localrun.backends.torch.caches.cache import Cache, Part
from localrun.backends.torch.caches.formats import index_key, window_v4
from localrun.backends.torch.layers.compressor import Compressor
from localrun.backends.torch.layers.hyper_connections import HeadMix, Mix, collapse, spread
from localrun.backends.torch.layers.mixture import Mixture
from localrun.backends.torch.layers.norm import rms_norm
from localrun.backends.torch.layers.rope import Rope, frequencies
from localrun.backends.torch.layers.routing import Router
from localrun.backends.torch.layers.vocabulary import logits
from localrun.backends.torch.model import NO_TABLES, LayerBytes, Model, Setup, Step, TableUse
from localrun.backends.torch.tensors import Linear, Tensors
from localrun.errors import SourceError
from localrun.formats.text import shown
from localrun.models.architectures.deepseek_v4 import OVERLAPPING
from localrun.models.fields import Fields

_DRAFTS = "mtp."
_VISION = ("vision.", "aligner.", "image_start", "image_end", "image_newline")


def build(config: Fields, tensors: Tensors) -> Model:
    """
    Raises:
        HeaderError: a field or a tensor that is absent, too much, or not understood.
        SourceError: a number that is not finite.
    """
    found = parsed(config)
    found.check_rounding(config, tensors.setup.numerics)
    model = _Build(found, tensors, Parts(found, tensors)).model()
    tensors.leave(_DRAFTS, *_VISION)
    for layer in range(len(found.ratios)):
        # Steers what image tokens are routed to.
        tensors.leave(f"layers.{layer}.ffn.gate.bias_vl")
    tensors.finish()
    return model


@dataclass(frozen=True, slots=True)
class Layer:
    attention_mix: Mix
    attention_norm: Tensor
    attention: Attention
    mixture_mix: Mix
    mixture_norm: Tensor
    mixture: Mixture
    eps: float

    @property
    def nbytes(self) -> int:
        norms = self.attention_norm.nbytes + self.mixture_norm.nbytes
        mixes = self.attention_mix.nbytes + self.mixture_mix.nbytes
        return norms + mixes + self.attention.nbytes + self.mixture.nbytes

    @property
    def read_bytes(self) -> int:
        return self.nbytes - self.mixture.nbytes + self.mixture.read_bytes

    @property
    def parts(self) -> LayerBytes:
        dense = self.nbytes - self.mixture.experts.nbytes
        return LayerBytes(dense, self.mixture.experts.nbytes, self.read_bytes - dense)

    def __call__(self, X: Tensor, angles: Angles, step: Step) -> Tensor:
        """Streams ``[T, m, D]`` → the same."""
        pre, post, C = self.attention_mix(X)
        u = rms_norm(collapse(pre, X), self.attention_norm, self.eps)
        step.mark("streams")
        y = self.attention(u, angles, step.spans, step.mark)
        X = spread(post, y, C, X)
        pre, post, C = self.mixture_mix(X)
        u = rms_norm(collapse(pre, X), self.mixture_norm, self.eps)
        step.mark("streams")
        y = self.mixture(u, step.tokens)
        step.mark("experts")
        X = spread(post, y, C, X)
        step.mark("streams")
        return X

    def close(self) -> None:
        self.attention.close()
        self.mixture.close()


@dataclass(frozen=True, slots=True)
class DeepseekV4:
    setup: Setup
    config: Config
    embed: Tensor
    layers: tuple[Layer, ...]
    head_mix: HeadMix
    norm: Tensor
    head: Linear

    @property
    def vocabulary(self) -> int:
        return self.config.sizes.vocabulary

    @property
    def nbytes(self) -> int:
        own = self.embed.nbytes + self.norm.nbytes + self.head_mix.nbytes + self.head.nbytes
        return own + sum(layer.nbytes for layer in self.layers)

    @property
    def read_bytes(self) -> int:
        row = self.embed.nbytes // self.vocabulary
        own = row + self.norm.nbytes + self.head_mix.nbytes + self.head.nbytes
        return own + sum(layer.read_bytes for layer in self.layers)

    @property
    def layer_bytes(self) -> tuple[LayerBytes, ...]:
        return tuple(layer.parts for layer in self.layers)

    @property
    def head_bytes(self) -> int:
        return self.head.nbytes

    @property
    def table_use(self) -> TableUse:
        return NO_TABLES

    def new_cache(self) -> Cache:
        parts: dict[str, Part] = {}
        for layer in self.layers:
            parts |= layer.attention.parts(self.setup)
        return Cache(parts)

    def forward(self, step: Step) -> Tensor:
        X = self.embed[step.tokens][:, None].repeat(1, self.config.sizes.streams, 1)  # (T, m, D)
        step.watch(-1, X)
        step.mark("embedding")
        angles: dict[int, Angles] = {}
        for number, layer in enumerate(self.layers):
            rope = layer.attention.rope
            if id(rope) not in angles:
                angles[id(rope)] = rope.angles(step.positions)
            X = layer(X, angles[id(rope)], step)
            step.watch(number, X)
        X = X[step.wanted]
        z = rms_norm(collapse(self.head_mix(X), X), self.norm, self.config.eps)
        made = logits(self.head, z)
        step.mark("head")
        return made

    def close(self) -> None:
        for layer in self.layers:
            layer.close()
        self.head.close()


@dataclass(frozen=True, slots=True)
class _Build:
    """Takes the tensors, by the names that ``localrun.models.architectures.deepseek_v4`` lays
    out."""

    config: Config
    tensors: Tensors
    parts: Parts

    def model(self) -> DeepseekV4:
        config, sizes, setup = self.config, self.config.sizes, self.tensors.setup
        plain = Rope(frequencies(config.theta, sizes.rope), adjacent=True, device=setup.device)
        stretched = frequencies(config.compress_theta, sizes.rope, config.yarn)
        compressing = Rope(stretched, adjacent=True, device=setup.device)
        layers = [
            self._layer(number, ratio, compressing if ratio else plain)
            for number, ratio in enumerate(config.ratios)
        ]
        m = sizes.streams
        return DeepseekV4(
            setup,
            config,
            self.tensors.plain("embed.weight", sizes.vocabulary, sizes.width),
            tuple(layers),
            HeadMix(
                self.parts.wide("hc_head_fn", m, m * sizes.width),
                self.parts.wide("hc_head_base", m),
                self.parts.wide("hc_head_scale", 1),
                config.eps,
                config.hc_eps,
            ),
            self.parts.wide("norm.weight", sizes.width),
            self.tensors.linear("head", sizes.vocabulary, sizes.width),
        )

    def _layer(self, number: int, ratio: int, rope: Rope) -> Layer:
        name, width = f"layers.{number}", self.config.sizes.width
        return Layer(
            self.parts.mix(f"{name}.hc_attn"),
            self.parts.wide(f"{name}.attn_norm.weight", width),
            self._attention(f"{name}.attn", number, ratio, rope),
            self.parts.mix(f"{name}.hc_ffn"),
            self.parts.wide(f"{name}.ffn_norm.weight", width),
            self.parts.mixture(f"{name}.ffn", self._router(f"{name}.ffn.gate", number)),
            self.config.eps,
        )

    def _attention(self, name: str, number: int, ratio: int, rope: Rope) -> Attention:
        config, sizes, tensors = self.config, self.config.sizes, self.tensors
        setup = tensors.setup
        overlapping = ratio == OVERLAPPING
        return Attention(
            f"layers.{number}",
            sizes.heads,
            config.window,
            tensors.linear(f"{name}.wq_a", sizes.q_rank, sizes.width),
            self.parts.wide(f"{name}.q_norm.weight", sizes.q_rank),
            tensors.linear(f"{name}.wq_b", sizes.head * sizes.heads, sizes.q_rank),
            tensors.linear(f"{name}.wkv", sizes.head, sizes.width),
            self.parts.wide(f"{name}.kv_norm.weight", sizes.head),
            self.parts.wide(f"{name}.attn_sink", sizes.heads),
            self.parts.output(name),
            rope,
            window_v4(sizes.head, sizes.rope, setup.numerics, setup.kv),
            config.eps,
            setup.numerics,
            self._compressor(f"{name}.compressor", sizes.head, ratio) if ratio else None,
            self._indexer(f"{name}.indexer") if overlapping else None,
        )

    def _compressor(self, name: str, head: int, ratio: int) -> Compressor:
        overlapping, width = ratio == OVERLAPPING, self.config.sizes.width
        rows = 2 * head if overlapping else head
        return Compressor(
            self.parts.wide(f"{name}.wkv.weight", rows, width),
            self.parts.wide(f"{name}.wgate.weight", rows, width),
            self.parts.wide(f"{name}.ape", ratio, rows),
            self.parts.wide(f"{name}.norm.weight", head),
            self.config.eps,
            overlapping,
        )

    def _indexer(self, name: str) -> Indexer:
        sizes, found, setup = self.config.sizes, self.config.indexer, self.tensors.setup
        assert found is not None  # a layer of ratio 4 asked for it
        return Indexer(
            self.tensors.linear(f"{name}.wq_b", found.heads * found.head, sizes.q_rank),
            self.tensors.linear(f"{name}.weights_proj", found.heads, sizes.width),
            self._compressor(f"{name}.compressor", found.head, OVERLAPPING),
            found.heads,
            found.top,
            index_key(found.head, setup.numerics, setup.kv),
            setup.numerics,
        )

    def _router(self, name: str, layer: int) -> Router:
        config, sizes = self.config, self.config.sizes
        table = bias = None
        if layer < config.hashed:
            held, shape = f"{name}.tid2eid", (sizes.vocabulary, config.used)
            table = self.tensors.plain(held, *shape, dtype=torch.int64)
            _check_experts(held, table, config.experts)
        else:
            bias = self.parts.wide(f"{name}.bias", config.experts)
        return Router(
            self.parts.wide(f"{name}.weight", config.experts, sizes.width),
            bias,
            config.used,
            config.factor,
            config.normalize,
            0.0,
            config.temperature,
            table,
        )


def _check_experts(name: str, table: Tensor, experts: int) -> None:
    """Raises SourceError for a number that no expert has: it would be read beyond the last."""
    bad = (table < 0) | (table >= experts)
    if bad.any():
        token, choice = bad.nonzero()[0].tolist()
        raise SourceError(
            f"{shown(name)}: row {token}, column {choice} is {table[token, choice]}, no expert of "
            f"{experts}",
            hint="get the model again; one that holds such numbers is damaged",
        )
