"""Knows no other sublayer: V4.1's attention over a window and over rows that layers share.

Compressed sparse attention in its second form
(https://huggingface.co/deepseek-ai/DeepSeek-V4.1-Flash, inference/model.py). A layer may own
compressed rows and index keys, choose among an owner's rows, or read what the layers before it
left: rows and lists of the latest owner and chooser.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from localrun.backends.torch.caches import formats
from localrun.backends.torch.caches.cache import Part
from localrun.backends.torch.caches.ring import Ring, window_reach
from localrun.backends.torch.caches.rows import Rows
from localrun.backends.torch.clock import Mark
from localrun.backends.torch.layers.attention import Far, sparse_attention
from localrun.backends.torch.layers.candidates import (
    Candidates,
    Queries,
    select_among,
    select_with_blocks,
)
from localrun.backends.torch.layers.compressor import Compressor
from localrun.backends.torch.layers.grouped_output import GroupedOutput
from localrun.backends.torch.layers.indexer import select
from localrun.backends.torch.layers.norm import rms_norm
from localrun.backends.torch.layers.quantizers import index_query_v41
from localrun.backends.torch.layers.rope import Rope
from localrun.backends.torch.layers.shared_rows import Owner
from localrun.backends.torch.model import Setup, Span
from localrun.backends.torch.numerics import Numerics
from localrun.backends.torch.tensors import Linear

Angles = tuple[Tensor, Tensor]


@dataclass(slots=True)
class Lane:
    """One span of a step on its way through the layers, with what they leave for those behind.
    Windows hold nothing of positions before ``oldest``."""

    span: Span
    oldest: int = 0
    far: Far | None = None
    candidates: Candidates | None = None

    @property
    def tokens(self) -> slice:
        return slice(self.span.start, self.span.stop)

    def ring(self, layer: int, kind: str) -> Ring:
        found = self.span.cache[part_name(layer, kind)]
        assert isinstance(found, Ring)
        return found

    def rows(self, layer: int, kind: str) -> Rows:
        found = self.span.cache[part_name(layer, kind)]
        assert isinstance(found, Rows)
        return found

    def behind(self, start: int, cut: int) -> Lane:
        """Without its first ``cut`` tokens, the others at ``start`` and on of a shorter step."""
        span = self.span
        first, count = span.first + cut, span.count - cut
        far, candidates = self.far, self.candidates
        if far is not None and far.chosen is not None:
            far = replace(far, chosen=far.chosen[cut:])
        if candidates is not None:
            candidates = candidates.part(cut, span.count)
        oldest = first if cut else self.oldest
        return Lane(Span(span.cache, start, start + count, first), oldest, far, candidates)


def part_name(layer: int, kind: str) -> str:
    """Of a part of a cache: ``window``, ``compressed``, ``index`` or ``tail`` of a layer."""
    return f"layers.{layer}.{kind}"


@dataclass(frozen=True, slots=True)
class Chooser:
    """What searches the keys of layer ``owner`` for ``top`` rows. It ``leads`` if its best
    ``blocks`` of ``block`` rows are all that the choosers behind it look at; 0 is no limit."""

    owner: int
    ratio: int
    wq_b: Linear
    weights: Linear
    heads: int
    top: int
    blocks: int
    block: int
    leads: bool
    numerics: Numerics

    @property
    def nbytes(self) -> int:
        return self.wq_b.nbytes + self.weights.nbytes

    def __call__(self, x: Tensor, a: Tensor, rope: Rope, angles: Angles, lanes: list[Lane]) -> None:
        """Leave each of ``lanes`` its list; ``x`` is ``[T, D]``, ``a`` the query latent."""
        q = self.wq_b(a).view(a.shape[0], self.heads, -1)  # (T, Hi, di)
        q = index_query_v41(rope.tail(q, angles), self.numerics)
        w = self.weights(x).float() * (q.shape[-1] ** -0.5 * self.heads**-0.5)
        for lane in lanes:
            keys = lane.rows(self.owner, "index")
            asked = Queries(q[lane.tokens], w[lane.tokens], lane.span.first, self.ratio)
            chosen = self._chosen(asked, keys, lane)
            rows = lane.rows(self.owner, "compressed")
            lane.far = Far(rows, chosen, self.ratio) if chosen.shape[1] else None

    def _chosen(self, asked: Queries, keys: Rows, lane: Lane) -> Tensor:
        if self.blocks and self.leads:
            chosen, lane.candidates = select_with_blocks(
                asked, keys, self.top, self.block, self.blocks
            )
            return chosen
        if self.blocks and lane.candidates is not None:
            return select_among(asked, keys, lane.candidates, self.top)
        return select(asked.q, asked.w, keys, asked.first, asked.ratio, self.top)

    def close(self) -> None:
        self.wq_b.close()
        self.weights.close()


@dataclass(frozen=True, slots=True)
class Attention:
    """Queries through a latent, one head of keys that are values. ``sink`` is float32 ``[H]``."""

    layer: int
    wq_a: Linear
    q_norm: Tensor
    wq_b: Linear
    wkv: Linear
    kv_norm: Tensor
    sink: Tensor
    output: GroupedOutput
    rope: Rope
    window: int
    eps: float
    reference: bool
    owner: Owner | None = None
    chooser: Chooser | None = None

    @property
    def nbytes(self) -> int:
        held = (
            self.wq_a, self.q_norm, self.wq_b, self.wkv, self.kv_norm, self.sink, self.output,
            self.owner, self.chooser,
        )  # fmt: skip
        return sum(each.nbytes for each in held if each is not None)

    def __call__(self, x: Tensor, angles: Angles, lanes: list[Lane], mark: Mark) -> Tensor:
        """``[T, D]`` → ``[T, D]``; writes to the caches of ``lanes``."""
        a = rms_norm(self.wq_a(x), self.q_norm, self.eps)  # (T, q)
        q = self.wq_b(a).view(a.shape[0], self.sink.shape[0], -1)  # (T, H, d)
        q = self.rope.tail(q, angles)
        kv = self.rope.tail(rms_norm(self.wkv(x), self.kv_norm, self.eps), angles)  # (T, d)
        mark("attention")
        if self.owner is not None:
            for lane in lanes:
                self._own(self.owner, x[lane.tokens], lane)
            mark("compressor")
        if self.chooser is not None:
            self.chooser(x, a, self.rope, angles, lanes)
            mark("index")
        out = [self._attended(q[lane.tokens], kv[lane.tokens], lane) for lane in lanes]
        mark("rows")
        # Values carry their positions as keys do; what is left is how far back each lay.
        turned = self.rope.tail(torch.cat(out), angles, inverse=True)
        y = self.output(turned)
        mark("attention")
        return y

    def parts(self, setup: Setup) -> dict[str, Part]:
        """Of an empty cache.

        Raises:
            UsageError: a KV type that rows are not kept in.
        """
        device, width, how = setup.device, self.wkv.rows, (setup.numerics, setup.kv)
        near = formats.window_v41(width, *how)
        parts: dict[str, Part] = {
            part_name(self.layer, "window"): Ring(
                self.window, near, window_reach(self.window), device
            )
        }
        if self.owner is None:
            return parts
        compressor = self.owner.compressor
        for kind, format in (
            ("compressed", formats.compressed_v41(width, *how)),
            ("index", formats.index_key(self.owner.wk.rows, *how)),
        ):
            rows = Rows(setup.capacity, format, device, compressor.ratio, setup.home)
            parts[part_name(self.layer, kind)] = rows
        if isinstance(compressor, Compressor):
            parts[part_name(self.layer, "tail")] = compressor.tail(device)
        return parts

    def _own(self, owner: Owner, x: Tensor, lane: Lane) -> None:
        tail = lane.ring(self.layer, "tail") if owner.compressor.ratio > 1 else None
        rows, keys = lane.rows(self.layer, "compressed"), lane.rows(self.layer, "index")
        owner.write(x, lane.span.first, tail, rows, keys)

    def _attended(self, q: Tensor, kv: Tensor, lane: Lane) -> Tensor:
        ring, first = lane.ring(self.layer, "window"), lane.span.first
        begin = max(lane.oldest, first - self.window + 1)
        # A token sees its own row and those of its step as they are kept, too.
        own = ring.format.unpack(ring.format.pack(kv))
        near = torch.cat((ring.read(begin, first), own))
        scale = q.shape[-1] ** -0.5
        out = sparse_attention(
            q, near, begin, first, self.window, self.sink, scale, lane.far, reference=self.reference
        )
        ring.write(first, kv)
        return out

    def close(self) -> None:
        for each in (self.wq_a, self.wq_b, self.wkv, self.output, self.owner, self.chooser):
            if each is not None:
                each.close()
