"""Knows no file: DeepSeek-V4.1's text model, for one token or many of several sequences.

Four residual streams that are mixed in one pass, a window in every layer, compressed rows that few
layers own and the others share, and tables that token n-grams index
(https://huggingface.co/deepseek-ai/DeepSeek-V4.1-Flash, inference/model.py). Drafts and images are
not computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from localrun.backends.torch.architectures.deepseek_v41_config import Config, Source, config_of
from localrun.backends.torch.architectures.v4_parts import Parts
from localrun.backends.torch.caches.cache import Cache, Part
from localrun.backends.torch.caches.formats import Plain
from localrun.backends.torch.caches.ring import Ring, window_reach
from localrun.backends.torch.layers.compressor import Compressor
from localrun.backends.torch.layers.csa2 import Angles, Attention, Chooser, Lane
from localrun.backends.torch.layers.engram import DEAD, Hashes, Memory
from localrun.backends.torch.layers.engram_check import hold_rows
from localrun.backends.torch.layers.hyper_connections import Mix, collapse, spread
from localrun.backends.torch.layers.mixture import Mixture
from localrun.backends.torch.layers.norm import rms_norm
from localrun.backends.torch.layers.rope import Rope, frequencies
from localrun.backends.torch.layers.routing import Router
from localrun.backends.torch.layers.shared_rows import Owner, Single
from localrun.backends.torch.layers.vocabulary import logits
from localrun.backends.torch.matrices.table import Lookup
from localrun.backends.torch.model import LayerBytes, Model, Setup, Step, TableUse
from localrun.backends.torch.tensors import Linear, Tensors
from localrun.models.fields import Fields
from localrun.releases.engram import Engram

# Classes of the last tokens, which the next ones' n-grams begin with.
_LOOKBACK = "engram.classes"
# The release adds this to the sum that weights of experts are divided by.
_ROUTER_EPS = 1e-20
_LEFT = ("mtp.", "vision.", "aligner.", "image_start", "image_end", "image_newline")


def build(config: Fields, tensors: Tensors) -> Model:
    """
    Raises:
        HeaderError: a field or a tensor that is absent, too much, or not understood.
        SourceError: a number that is not finite.
    """
    found, engram = config_of(config), tensors.release.engram
    if found.tables and (engram is None or engram.layers != found.tables):
        held = "there are no constants" if engram is None else f"constants are of {engram.layers}"
        raise config.error("engram_layer_ids", f"is {found.tables}, {held}")
    if found.tables and engram and len(engram.classes) < found.sizes.vocabulary:
        problem = f"is {found.sizes.vocabulary}, only {len(engram.classes)} tokens have a class"
        raise config.error("vocab_size", problem)
    model = _Build(found, tensors, Parts(found, tensors), engram if found.tables else None).model()
    tensors.leave(*_LEFT)
    for layer in range(found.layers):
        # Steers what tokens of images are routed to.
        tensors.leave(f"layers.{layer}.ffn.gate.bias_vl")
    tensors.finish()
    return model


@dataclass(frozen=True, slots=True)
class Layer:
    """The mix and the norm, float32 ``[D]``, of attention and those of the experts."""

    attention_mix: Mix
    attention_norm: Tensor
    attention: Attention
    mixture_mix: Mix
    mixture_norm: Tensor
    mixture: Mixture
    memory: Memory | None

    @property
    def nbytes(self) -> int:
        held = (
            self.attention_mix, self.attention_norm, self.attention, self.mixture_mix,
            self.mixture_norm, self.mixture, self.memory,
        )  # fmt: skip
        return sum(each.nbytes for each in held if each is not None)

    @property
    def read_bytes(self) -> int:
        table = self.memory.table.nbytes if self.memory else 0
        return self.nbytes - table - self.mixture.nbytes + self.mixture.read_bytes

    @property
    def parts(self) -> LayerBytes:
        table = self.memory.table.nbytes if self.memory else 0
        experts = self.mixture.experts.nbytes
        dense = self.nbytes - table - experts
        return LayerBytes(dense, experts, self.read_bytes - dense, table)

    def close(self) -> None:
        self.attention.close()
        self.mixture.close()
        if self.memory is not None:
            self.memory.close()


@dataclass(frozen=True, slots=True)
class _Flow:
    """What goes from layer to layer: streams ``X`` ``[T, m, D]``, how the sublayer before joins
    them, float32 ``pre`` ``[T, m]``, and what is the same for all layers: ``angles`` of both ropes,
    the classes of each token and those before it, ``near`` ``[T, n]``. ``found`` are rows of tables
    on their way to the layers that take them."""

    X: Tensor
    pre: Tensor
    tokens: Tensor
    wanted: Tensor
    lanes: list[Lane]
    angles: tuple[Angles, Angles]
    near: Tensor | None
    found: dict[int, Lookup] = field(default_factory=dict)

    def only(self, rows: Tensor, wanted: Tensor, lanes: list[Lane]) -> _Flow:
        """Of some tokens."""
        plain, stretched = ((cos[rows], sin[rows]) for cos, sin in self.angles)
        near = None if self.near is None else self.near[rows]
        X, pre, tokens = self.X[rows], self.pre[rows], self.tokens[rows]
        return _Flow(X, pre, tokens, wanted, lanes, (plain, stretched), near)


@dataclass(frozen=True, slots=True)
class DeepseekV41:
    setup: Setup
    config: Config
    ropes: tuple[Rope, Rope]
    embed: Tensor
    layers: tuple[Layer, ...]
    norm: Tensor
    head: Linear
    hashes: Hashes | None

    @property
    def vocabulary(self) -> int:
        return self.config.sizes.vocabulary

    @property
    def nbytes(self) -> int:
        held = (self.embed, self.norm, self.hashes, *self.layers)
        own = sum(each.nbytes for each in held if each is not None)
        return own if self.config.tied else own + self.head.nbytes

    @property
    def read_bytes(self) -> int:
        own = self.head.nbytes + self.embed.nbytes // self.vocabulary + self.norm.nbytes
        return own + sum(layer.read_bytes for layer in self.layers)

    @property
    def layer_bytes(self) -> tuple[LayerBytes, ...]:
        return tuple(layer.parts for layer in self.layers)

    @property
    def head_bytes(self) -> int:
        return 0 if self.config.tied else self.head.nbytes

    @property
    def table_use(self) -> TableUse:
        each = [layer.memory.table.use for layer in self.layers if layer.memory is not None]
        return TableUse(
            sum(use.rows for use in each),
            sum(use.distinct for use in each),
            sum(use.hits for use in each),
            sum(use.reads for use in each),
            sum(use.bytes for use in each),
            sum(use.seconds for use in each),
        )

    def new_cache(self) -> Cache:
        parts: dict[str, Part] = {}
        for layer in self.layers:
            parts |= layer.attention.parts(self.setup)
        if self.hashes is not None:
            kept, size = Plain(1, torch.int64, torch.int64), self.hashes.ngram - 1
            reach = window_reach(self.hashes.ngram)
            parts[_LOOKBACK] = Ring(size, kept, reach, self.setup.device)
        return Cache(parts)

    def forward(self, step: Step) -> Tensor:
        flow = self._entered(step)
        # Nothing behind the last owner sees the whole of a prompt that is shortened.
        short, depth = self.config.sources[-1].layer + 1, len(self.layers)
        self._look_up(flow, range(short if self.setup.approximate_prefill else depth))
        if flow.found:
            step.mark("engram")
        step.watch(-1, flow.X)
        for number in range(depth):
            if self.setup.approximate_prefill and number == short:
                flow = self._shortened(flow)
                self._look_up(flow, range(short, depth))
            flow = self._passed(number, flow, step)
            step.watch(number, flow.X)
        z = collapse(flow.pre[flow.wanted], flow.X[flow.wanted])
        z = rms_norm(z, self.norm, self.config.eps)
        made = logits(self.head, z)
        step.mark("head")
        return made

    def _entered(self, step: Step) -> _Flow:
        x, m = self.embed[step.tokens], self.config.sizes.streams  # (T, D)
        pre = torch.zeros((x.shape[0], m), device=x.device)
        pre[:, 0] = 1
        lanes = [Lane(span) for span in step.spans]
        near = self._looked_back(self.hashes, step.tokens, lanes) if self.hashes else None
        plain, stretched = (rope.angles(step.positions) for rope in self.ropes)
        X = x[:, None].repeat(1, m, 1)
        step.mark("embedding")
        return _Flow(X, pre, step.tokens, step.wanted, lanes, (plain, stretched), near)

    def _looked_back(self, hashes: Hashes, tokens: Tensor, lanes: list[Lane]) -> Tensor:
        classes, before, found = hashes.classes(tokens), hashes.ngram - 1, []
        for lane in lanes:
            ring = lane.span.cache[_LOOKBACK]
            assert isinstance(ring, Ring)
            own, first = classes[lane.tokens], lane.span.first
            kept = ring.read(max(0, first - before), first)[:, 0]
            none = kept.new_full((before - kept.shape[0],), DEAD)
            found.append(hashes.lookback(torch.cat((none, kept, own))))
            if self.setup.check_rows:
                for layer in hashes.constants.layers:
                    text = kept.tolist(), tokens[lane.tokens].tolist()
                    hold_rows(hashes.constants, layer, *text, hashes.rows(layer, found[-1]))
            ring.write(first, own[:, None])
        return torch.cat(found)

    def _look_up(self, flow: _Flow, layers: range) -> None:
        """Tokens alone say which rows, so they are on their way before any layer runs, the first
        layer's first: it waits the shortest."""
        if self.hashes is None or flow.near is None:
            return
        for number in layers:
            memory = self.layers[number].memory
            if memory is not None:
                flow.found[number] = memory.table.begin(self.hashes.rows(number, flow.near))

    def _passed(self, number: int, flow: _Flow, step: Step) -> _Flow:
        """One layer. What joins the streams before a sublayer was computed before the one before
        it, so it need not wait for that."""
        layer, eps, X = self.layers[number], self.config.eps, flow.X
        for lookup in flow.found.values():
            lookup.advance()
        if layer.memory is not None:
            X = layer.memory(X, flow.found.pop(number).rows())
            step.mark("engram")
        angles = flow.angles[bool(self.config.ratios[number])]
        pre, post, C = layer.attention_mix(X)
        u = rms_norm(collapse(flow.pre, X), layer.attention_norm, eps)
        step.mark("streams")
        y = layer.attention(u, angles, flow.lanes, step.mark)
        X = spread(post, y, C, X)
        after, post, C = layer.mixture_mix(X)
        u = rms_norm(collapse(pre, X), layer.mixture_norm, eps)
        step.mark("streams")
        y = layer.mixture(u, flow.tokens)
        step.mark("experts")
        X = spread(post, y, C, X)
        step.mark("streams")
        return replace(flow, X=X, pre=after)

    def _shortened(self, flow: _Flow) -> _Flow:
        """The last tokens of each span: layers from here on keep nothing but windows. A span whose
        earlier tokens are asked for logits stays whole."""
        asked = flow.wanted.tolist()
        lanes: list[Lane] = []
        kept: list[int] = []
        for lane in flow.lanes:
            span, cut = lane.span, max(0, lane.span.count - self.config.window)
            if any(span.start <= row < span.start + cut for row in asked):
                cut = 0
            for layer in range(self.config.sources[-1].layer + 1, len(self.layers)):
                lane.ring(layer, "window").skip(span.first, span.first + cut)
            lanes.append(lane.behind(len(kept), cut))
            kept += range(span.start + cut, span.stop)
        place = {row: at for at, row in enumerate(kept)}
        device = flow.X.device
        wanted = torch.tensor([place[row] for row in asked], dtype=torch.int64, device=device)
        return flow.only(torch.tensor(kept, device=device), wanted, lanes)

    def close(self) -> None:
        for layer in self.layers:
            layer.close()
        self.head.close()


@dataclass(frozen=True, slots=True)
class _Build:
    """Takes the tensors, by the names that ``localrun.models.architectures.deepseek_v41`` lays
    out."""

    config: Config
    tensors: Tensors
    parts: Parts
    engram: Engram | None

    def model(self) -> DeepseekV41:
        config, sizes, device = self.config, self.config.sizes, self.tensors.setup.device
        plain = frequencies(config.theta, sizes.rope)
        stretched = frequencies(config.compressed_theta, sizes.rope, config.yarn)
        near, far = (Rope(each, adjacent=True, device=device) for each in (plain, stretched))
        embed = self.tensors.plain("embed.weight", sizes.vocabulary, sizes.width)
        if config.tied:
            head = self.tensors.over(embed)
        else:
            head = self.tensors.linear("head", sizes.vocabulary, sizes.width)
        return DeepseekV41(
            self.tensors.setup,
            config,
            (near, far),
            embed,
            tuple(self._layer(number, (near, far)) for number in range(config.layers)),
            self.parts.wide("norm.weight", sizes.width),
            head,
            None if self.engram is None else Hashes(self.engram, device),
        )

    def _layer(self, number: int, ropes: tuple[Rope, Rope]) -> Layer:
        name, width = f"layers.{number}", self.config.sizes.width
        return Layer(
            self.parts.mix(f"{name}.hc_attn"),
            self.parts.wide(f"{name}.attn_norm.weight", width),
            self._attention(number, ropes[bool(self.config.ratios[number])]),
            self.parts.mix(f"{name}.hc_ffn"),
            self.parts.wide(f"{name}.ffn_norm.weight", width),
            self.parts.mixture(f"{name}.ffn", self._router(f"{name}.ffn.gate")),
            self._memory(number, self.engram) if self.engram else None,
        )

    def _attention(self, number: int, rope: Rope) -> Attention:
        config, sizes, tensors = self.config, self.config.sizes, self.tensors
        name, source = f"layers.{number}.attn", config.source_of(number)
        owns, searches = source and number == source.layer, source and number in source.choosers
        return Attention(
            number,
            tensors.linear(f"{name}.wq_a", sizes.q_rank, sizes.width),
            self.parts.wide(f"{name}.q_norm.weight", sizes.q_rank),
            tensors.linear(f"{name}.wq_b", sizes.head * sizes.heads, sizes.q_rank),
            tensors.linear(f"{name}.wkv", sizes.head, sizes.width),
            self.parts.wide(f"{name}.kv_norm.weight", sizes.head),
            self.parts.wide(f"{name}.attn_sink", sizes.heads),
            self.parts.output(name),
            rope,
            config.window,
            config.eps,
            tensors.setup.numerics.rounds_activations,
            self._owner(source, rope) if source and owns else None,
            self._chooser(source, number) if source and searches else None,
        )

    def _owner(self, source: Source, rope: Rope) -> Owner:
        name, config, tensors = f"layers.{source.layer}.attn", self.config, self.tensors
        width, head, index = config.sizes.width, config.sizes.head, config.indexer.head
        path, norm = f"{name}.compressor", self.parts.wide(f"{name}.compressor.norm.weight", head)
        compressor: Compressor | Single
        if source.ratio == 1:
            compressor = Single(tensors.linear(f"{path}.wkv", head, width), norm, config.eps)
        else:
            compressor = Compressor(
                self.parts.wide(f"{path}.wkv.weight", head, width),
                self.parts.wide(f"{path}.wgate.weight", head, width),
                torch.zeros((source.ratio, head), device=tensors.setup.device),
                norm,
                config.eps,
                overlapping=False,
            )
        return Owner(
            compressor,
            tensors.linear(f"{name}.indexer.wk", index, head),
            self.parts.wide(f"{name}.indexer.k_norm.weight", index),
            rope,
            config.eps,
        )

    def _chooser(self, source: Source, number: int) -> Chooser:
        name, indexer, tensors = f"layers.{number}.attn.indexer", self.config.indexer, self.tensors
        rows = indexer.heads * indexer.head
        return Chooser(
            source.layer,
            source.ratio,
            tensors.linear(f"{name}.wq_b", rows, self.config.sizes.q_rank),
            tensors.linear(f"{name}.weights_proj", indexer.heads, self.config.sizes.width),
            indexer.heads,
            indexer.top,
            source.blocks,
            source.block,
            leads=number == source.layer,
            numerics=tensors.setup.numerics,
        )

    def _router(self, name: str) -> Router:
        config = self.config
        return Router(
            self.parts.wide(f"{name}.weight", config.experts, config.sizes.width),
            self.parts.wide(f"{name}.bias", config.experts),
            config.used,
            config.factor,
            True,
            _ROUTER_EPS,
            config.temperature,
        )

    def _memory(self, number: int, engram: Engram) -> Memory | None:
        if number not in engram.layers:
            return None
        name, sizes, at = f"layers.{number}.engram", self.config.sizes, engram.layers.index(number)
        columns = len(engram.primes[at]) * engram.width
        q, k = (
            self.parts.wide(f"{name}.{part}_weight", sizes.streams, sizes.width)
            for part in ("q", "k")
        )
        return Memory(
            self.tensors.table(f"{name}.embed", engram.rows[at], engram.width),
            self.tensors.linear(f"{name}.wkv", (sizes.streams + 1) * sizes.width, columns),
            q * k,
            self.config.eps,
        )
