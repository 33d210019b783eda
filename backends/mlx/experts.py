"""Knows no model: experts that do not fit into memory, in a bounded number of places a layer.

mlx-lm keeps the experts of a layer stacked, and its kernels gather the ones that were chosen. A
layer that streams has a stack of fewer, into which experts are read from disk, past the page cache;
the kernels gather by place instead. The bytes in a place are those of a resident stack. Memory is
unified and so is its controller: a layer is computed as far as its choice of experts, then it
reads, then it goes on, and the times add up.

An array of mlx that numpy looks at without a copy may be written to
(https://ml-explore.github.io/mlx/build/html/usage/numpy.html); nothing may be under way that reads
it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from numpy.typing import NDArray

from localrun.backends.mlx.stored_experts import Matrix, Stored
from localrun.backends.tiers.loads import Loads
from localrun.backends.tiers.places import Places
from localrun.disk.reader import ALIGNMENT
from localrun.errors import EngineError
from localrun.formats.extent import Extent
from localrun.formats.reader import Lookable
from localrun.releases.stored.numbers import floats

Sources = Callable[[int], Lookable]
_PARTS: Final = ("weight", "scales", "biases")


@dataclass(slots=True)
class Use:
    """Of all layers, since load: picks that found their expert in its place and those that did not,
    what was read for these and how long that took."""

    hits: int = 0
    misses: int = 0
    hit_bytes: int = 0
    read_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Part:
    """One array of one matrix, for all places: ``bytes`` are the memory of ``array``."""

    stored: Stored
    rows: int
    kind: mx.Dtype
    bytes: NDArray[np.uint8]

    def fill(self, place: int, expert: int, sources: Sources) -> None:
        extent = self.stored.extent(expert)
        raw = np.frombuffer(sources(extent.file).read(extent.offset, extent.length), np.uint8)
        if self.kind == mx.float32 and self.stored.kind != "F32":
            raw = floats(raw, self.stored.kind).view(np.uint8)
        lines, own = self.stored.shape[0], self.rows
        if lines != own:
            # A release's scale is for a tile, mlx's for a part of a row.
            raw = np.repeat(raw.reshape(lines, -1), -(-own // lines), axis=0)[:own].reshape(-1)
        self.bytes[place] = raw


class Bank:
    """The places of one layer. What ``loads.Loads`` fills."""

    def __init__(
        self, layer: int, matrices: Sequence[Matrix], module: Any, sources: Sources
    ) -> None:
        self.layer, self.name = layer, matrices[0].name
        self.count = matrices[0].count
        self._sources = sources
        self._parts = [part for each in matrices for part in _parts(each, module[each.projection])]
        self.slots = self._parts[0].bytes.shape[0]
        self.slot_bytes = sum(part.bytes.shape[1] for part in self._parts)
        self.places = Places(self.slots)
        self.picks = np.zeros(self.count, np.int64)

    def extents(self, expert: int) -> tuple[Extent, ...]:
        """Neighbours are joined: what lies between them would be read with them."""
        found = sorted(part.stored.extent(expert) for part in self._parts)
        joined = found[:1]
        for file, offset, length in found[1:]:
            last = joined[-1]
            end = last.offset + last.length
            if file == last.file and offset - end < ALIGNMENT:
                joined[-1] = Extent(file, last.offset, max(end, offset + length) - last.offset)
            else:
                joined.append(Extent(file, offset, length))
        return tuple(joined)

    def fill(self, slot: int, expert: int) -> None:
        """Other threads may call this; it touches nothing of mlx's but memory."""
        for part in self._parts:
            part.fill(slot, expert, self._sources)


class Cache:
    """What the layers of a model share. ``check`` is called while somebody waits, and may raise."""

    def __init__(self, loads: Loads, check: Callable[[], None]) -> None:
        self.use = Use()
        self._loads, self._check = loads, check

    def groups(self, bank: Bank, experts: Sequence[int]) -> Iterator[dict[int, int]]:
        """Places by expert, as many experts at once as there is room for. A group is computed
        before the next one is asked for.

        Raises:
            DiskReadError: one could not be read. Whatever ``check`` raises.
        """
        left = tuple(experts)
        try:
            while left:
                got = bank.places.acquire(left)
                self._read(bank, got.misses)
                yield got.hits | got.misses
                bank.places.let_go([*got.hits, *got.misses])
                left = got.left
        except BaseException:
            self._loads.drop()  # before places are given to others
            raise
        finally:
            bank.places.abandon()

    def _read(self, bank: Bank, misses: dict[int, int]) -> None:
        self._check()
        if not misses:
            return
        start = time.perf_counter()
        # Nothing gathers from these places any more: whoever chose experts of this layer again had
        # all layers computed of the step before, and groups are computed one by one.
        self._loads.want(bank, misses)
        coming = set(misses)
        while coming:
            for expert in self._loads.next(self._check):
                bank.places.arrived(expert)
                coming.discard(expert)
        self.use.read_bytes += sum(each.length for e in misses for each in bank.extents(e))
        self.use.seconds += time.perf_counter() - start

    def count(self, bank: Bank, picks: NDArray[np.int64]) -> None:
        """Of a call, before anything is read for it."""
        bank.picks += picks
        here = sum(int(picks[expert]) for expert in bank.places.held)
        self.use.hits += here
        self.use.misses += int(picks.sum()) - here
        self.use.hit_bytes += here * bank.slot_bytes

    def close(self) -> None:
        """Again does nothing."""
        self._loads.close()


class Streamed(Module):
    """mlx-lm's ``SwitchGLU`` over the places of a layer."""

    def __init__(self, experts: Any, bank: Bank, cache: Cache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.experts = experts
        self._bank, self._cache = bank, cache

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """``x`` ``[..., D]`` and the experts of each ``[..., k]`` → ``[..., k, D]``."""
        chosen = np.array(indices).astype(np.int64)
        picks = np.bincount(chosen.reshape(-1), minlength=self._bank.count)
        self._cache.count(self._bank, picks)
        wanted = np.flatnonzero(picks).tolist()
        return self._gathered(x, chosen, wanted)

    def _gathered(self, x: mx.array, chosen: NDArray[np.int64], wanted: list[int]) -> mx.array:
        """All at once where there are places for all; else group by group, each pick alone."""
        table = np.full(self._bank.count, -1, np.int64)
        if len(wanted) <= self._bank.slots:
            for group in self._cache.groups(self._bank, wanted):
                table[[*group]] = [*group.values()]
            made: mx.array = self.experts(x, mx.array(table[chosen].astype(np.uint32)))
            return made
        rows, flat = x.reshape(-1, x.shape[-1]), chosen.reshape(-1)
        order: list[NDArray[np.intp]] = []
        parts: list[mx.array] = []
        for group in self._cache.groups(self._bank, wanted):
            table[:] = -1
            table[[*group]] = [*group.values()]
            own = np.flatnonzero(table[flat] >= 0)
            places = mx.array(table[flat[own]].astype(np.uint32))[:, None]
            part = self.experts(rows[mx.array(own // chosen.shape[-1])], places)
            mx.eval(part)
            order.append(own)
            parts.append(part[:, 0])
        back = mx.array(np.argsort(np.concatenate(order)))
        return mx.concatenate(parts)[back].reshape(*chosen.shape, -1)


def _parts(matrix: Matrix, module: Any) -> Iterator[_Part]:
    for name in _PARTS:
        stored = matrix.parts.get(name)
        if stored is not None:
            array = module[name]
            yield _Part(stored, array.shape[1], array.dtype, _memory(array))


def _memory(array: mx.array) -> NDArray[np.uint8]:
    """The bytes of an array, ``[places, bytes]``, to be written to.

    Raises:
        EngineError: this mlx gives copies.
    """
    mx.eval(array)
    found = np.array(array.view(mx.uint8), copy=False)
    found[:] = 1
    if not mx.all(array.view(mx.uint8) == 1).item():
        raise EngineError("experts cannot stream: this mlx does not share the memory of its arrays")
    made: NDArray[np.uint8] = found.reshape(array.shape[0], -1)
    return made
