"""Knows no other layer: DeepSeek-V4's attention of one layer, its projections and its caches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from localrun.backends.torch.caches.cache import Part
from localrun.backends.torch.caches.formats import RowFormat
from localrun.backends.torch.caches.ring import Ring, window_reach
from localrun.backends.torch.caches.rows import Rows
from localrun.backends.torch.clock import Mark
from localrun.backends.torch.layers.attention import Far, sparse_attention
from localrun.backends.torch.layers.compressor import Compressor
from localrun.backends.torch.layers.grouped_output import GroupedOutput
from localrun.backends.torch.layers.indexer import select
from localrun.backends.torch.layers.norm import rms_norm
from localrun.backends.torch.layers.quantizers import index_query_v4, rotated
from localrun.backends.torch.layers.rope import Rope
from localrun.backends.torch.model import Setup, Span
from localrun.backends.torch.numerics import Numerics
from localrun.backends.torch.tensors import Linear

Angles = tuple[Tensor, Tensor]
# An indexer's queries and the weights of their heads.
Index = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Indexer:
    """Chooses ``top`` rows by keys that are a smaller compression of the same groups."""

    wq_b: Linear
    weights_proj: Linear
    compressor: Compressor
    heads: int
    top: int
    row: RowFormat
    numerics: Numerics

    @property
    def nbytes(self) -> int:
        return self.wq_b.nbytes + self.weights_proj.nbytes + self.compressor.nbytes

    def queries(self, a: Tensor, x: Tensor, rope: Rope, angles: Angles) -> tuple[Tensor, Tensor]:
        """Of latents ``[T, q]`` and inputs ``[T, D]``: ``[T, Hi, di]`` and weights ``[T, Hi]``."""
        q = rope.tail(self.wq_b(a).reshape(a.shape[0], self.heads, -1), angles)
        q = index_query_v4(q, self.numerics)
        scale = q.shape[-1] ** -0.5 * self.heads**-0.5
        return q, self.weights_proj(x).float() * scale

    def close(self) -> None:
        self.wq_b.close()
        self.weights_proj.close()


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's; ``name`` is the prefix of its parts of a cache."""

    name: str
    heads: int
    window: int
    wq_a: Linear
    q_norm: Tensor
    wq_b: Linear
    wkv: Linear
    kv_norm: Tensor
    sink: Tensor
    output: GroupedOutput
    rope: Rope
    row: RowFormat
    eps: float
    numerics: Numerics
    compressor: Compressor | None
    indexer: Indexer | None

    @property
    def nbytes(self) -> int:
        held = (
            self.wq_a, self.q_norm, self.wq_b, self.wkv, self.kv_norm, self.sink, self.output,
            self.compressor, self.indexer,
        )  # fmt: skip
        return sum(each.nbytes for each in held if each is not None)

    def __call__(self, x: Tensor, angles: Angles, spans: tuple[Span, ...], mark: Mark) -> Tensor:
        """``[T, D]`` → ``[T, D]``; writes the caches of ``spans``."""
        a = rms_norm(self.wq_a(x), self.q_norm, self.eps)  # (T, q)
        q = self.wq_b(a).reshape(a.shape[0], self.heads, -1)  # (T, H, d)
        q = self.rope.tail(rms_norm(q, None, self.eps), angles)
        kv = self.rope.tail(rms_norm(self.wkv(x), self.kv_norm, self.eps), angles)  # (T, d)
        index = self.indexer.queries(a, x, self.rope, angles) if self.indexer else None
        out = torch.empty_like(q)
        mark("attention")
        for span in spans:
            at = slice(span.start, span.stop)
            own = None if index is None else (index[0][at], index[1][at])
            out[at] = self._span(q[at], kv[at], x[at], own, span, mark)
        # Values carry their positions as keys do; what is left is how far back each lay.
        y = self.output(self.rope.tail(out, angles, inverse=True))
        mark("attention")
        return y

    def _span(
        self, q: Tensor, kv: Tensor, x: Tensor, index: Index | None, span: Span, mark: Mark
    ) -> Tensor:
        begin, near = self._window(kv, span)
        far = None
        if self.compressor is not None:
            far = self._far(self.compressor, x, index, span, mark)
        scale, exactly = q.shape[-1] ** -0.5, self.numerics.rounds_activations
        out = sparse_attention(
            q, near, begin, span.first, self.window, self.sink, scale, far, reference=exactly
        )
        mark("rows")
        return out

    def _window(self, kv: Tensor, span: Span) -> tuple[int, Tensor]:
        """The rows that any query of the span sees, as they are kept, and the first one's
        position."""
        ring = span.cache[f"{self.name}.window"]
        assert isinstance(ring, Ring)
        begin = max(0, span.first - self.window + 1)
        if span.count == 1:
            ring.write(span.first, kv)
            return begin, ring.read(begin, span.first + 1)
        kept = ring.format.unpack(ring.format.pack(kv))
        near = torch.cat((ring.read(begin, span.first), kept))
        ring.write(span.first, kv)
        return begin, near

    def _far(
        self, compressor: Compressor, x: Tensor, index: Index | None, span: Span, mark: Mark
    ) -> Far:
        ratio, first = compressor.ratio, span.first
        rows, tail = _held(span, f"{self.name}.compressed")
        _write(rows, first // ratio, self._turned(compressor, x, first, tail))
        mark("compressor")
        if self.indexer is None or index is None:
            return Far(rows, None, ratio)
        keys, tail = _held(span, f"{self.name}.index")
        made = self._turned(self.indexer.compressor, x, first, tail)
        _write(keys, first // ratio, rotated(made, self.numerics))
        mark("compressor")
        chosen = select(*index, keys, first, ratio, self.indexer.top)
        mark("index")
        return Far(rows, chosen, ratio)

    def _turned(self, compressor: Compressor, x: Tensor, first: int, tail: Ring) -> Tensor:
        """Rows of the groups that are completed, each at its group's first position."""
        made, ratio = compressor(x, first, tail), compressor.ratio
        begin = first // ratio
        numbers = torch.arange(begin, begin + made.shape[0], device=x.device)
        return self.rope.tail(made, self.rope.angles(numbers * ratio))

    def parts(self, setup: Setup) -> dict[str, Part]:
        """Of an empty cache."""
        device, capacity = setup.device, setup.capacity
        parts: dict[str, Part] = {
            f"{self.name}.window": Ring(self.window, self.row, window_reach(self.window), device)
        }
        if self.compressor is not None:
            kept = f"{self.name}.compressed"
            ratio = self.compressor.ratio
            parts[kept] = Rows(capacity, self.row, device, ratio, setup.home)
            parts[f"{kept}_tail"] = self.compressor.tail(device)
        if self.indexer is not None:
            kept, compressor = f"{self.name}.index", self.indexer.compressor
            parts[kept] = Rows(capacity, self.indexer.row, device, compressor.ratio, setup.home)
            parts[f"{kept}_tail"] = compressor.tail(device)
        return parts

    def close(self) -> None:
        for each in (self.wq_a, self.wq_b, self.wkv, self.output, self.indexer):
            if each is not None:
                each.close()


def _held(span: Span, name: str) -> tuple[Rows, Ring]:
    """The rows of that name, and the tokens that are on their way into the next one."""
    rows, tail = span.cache[name], span.cache[f"{name}_tail"]
    assert isinstance(rows, Rows)
    assert isinstance(tail, Ring)
    return rows, tail


def _write(rows: Rows, first: int, made: Tensor) -> None:
    if made.shape[0]:
        rows.write(first, made)
