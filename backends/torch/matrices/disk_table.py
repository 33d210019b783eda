"""Knows no n-gram: rows of a table that stays on disk, ahead of need or when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from weakref import ref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localrun.backends.tiers.hot_rows import HotRows
from localrun.backends.tiers.row_reads import Lying, RowReads
from localrun.backends.tiers.table_rows import over, parts_of, row_bytes
from localrun.backends.torch.matrices.loading import slabs
from localrun.backends.torch.matrices.table import (
    Ids,
    Later,
    Lookup,
    RowUse,
    given,
    wanted_rows,
)
from localrun.errors import DiskReadError, HeaderError, SourceError
from localrun.formats.text import shown
from localrun.releases.weights import Bytes, Floats, Weight, columns, row_count


@dataclass(frozen=True, slots=True)
class DiskTable:
    """Reads rows of ``weight`` from its file, which must stay open, when they are asked for: each
    once a call, in the order in which they lie there, neighbours together."""

    weight: Weight
    device: torch.device
    dtype: torch.dtype
    use: RowUse = field(default_factory=RowUse)

    @property
    def nbytes(self) -> int:
        return 0

    def begin(self, ids: Tensor) -> Lookup:
        wanted = wanted_rows(ids, row_count(self.weight), self.weight.name)
        self.use.rows += wanted.size

        def look_up() -> Tensor:
            began = perf_counter()
            once, places = np.unique(wanted, return_inverse=True)
            found = read_rows(self.weight, once)
            self.use.distinct += once.size
            self.use.reads += sum(1 for _ in _runs(once))
            self.use.bytes += once.size * self.weight.read_bytes // row_count(self.weight)
            self.use.seconds += perf_counter() - began
            numbers = torch.from_numpy(found).to(self.dtype)
            return given(numbers, ids, self.device, places)

        return Later(look_up)

    def rows(self, ids: Tensor) -> Tensor:
        return self.begin(ids).rows()


@dataclass(frozen=True, slots=True)
class PrefetchedTable:
    """Reads rows of ``weight`` through ``reads`` as soon as they are known, past the weight's own
    file; ``lying`` says where each of its parts has them. ``held`` are parts that lie in memory
    instead, as a whole: scales."""

    weight: Weight
    reads: RowReads
    lying: tuple[Lying, ...]
    held: tuple[Bytes | None, ...]
    hot: HotRows
    device: torch.device
    dtype: torch.dtype
    use: RowUse = field(default_factory=RowUse)

    @property
    def nbytes(self) -> int:
        return self.hot.nbytes + sum(part.nbytes for part in self.held if part is not None)

    def begin(self, ids: Tensor) -> Lookup:
        return _Prefetched(self, ids)

    def rows(self, ids: Tensor) -> Tensor:
        return self.begin(ids).rows()


class _Prefetched:
    """Each row of a call once. They are decoded as they come, while the disk reads on."""

    def __init__(self, table: PrefetchedTable, ids: Tensor) -> None:
        self._table, self._ids = table, ids
        wanted = wanted_rows(ids, row_count(table.weight), table.weight.name)
        self._once, self._places = np.unique(wanted, return_inverse=True)
        shape = self._once.size, columns(table.weight)
        self._numbers = torch.empty(shape, dtype=table.dtype)
        here, kept = table.hot.find(self._once)
        self._put(np.flatnonzero(here), kept)
        self._missing = np.flatnonzero(~here)
        table.use.rows += wanted.size
        table.use.distinct += self._once.size
        table.use.hits += self._once.size - self._missing.size
        read = [part for part, own in zip(table.lying, table.held, strict=True) if own is None]
        # Of its own, so that what nobody waits for any more goes at once, memory and all.
        own = ref(self)

        def landed(first: int, last: int, rows: list[Bytes]) -> None:
            if (asked := own()) is not None:
                asked._landed(first, last, rows)

        self._fetch = table.reads.begin(read, self._once[self._missing], landed)

    def advance(self) -> None:
        self._fetch.advance()

    def rows(self) -> Tensor:
        table = self._table
        began = perf_counter()
        self._fetch.wait()
        table.use.seconds += perf_counter() - began
        table.use.reads += self._fetch.reads
        table.use.bytes += self._fetch.nbytes
        return given(self._numbers, self._ids, table.device, self._places)

    def _landed(self, first: int, last: int, rows: list[Bytes]) -> None:
        places = self._missing[first:last]
        self._put(places, rows)
        self._table.hot.keep(self._once[places], rows)

    def _put(self, places: NDArray[np.intp], read: Sequence[Bytes]) -> None:
        """Numbers of some rows, by what was read of them and what is held."""
        if not places.size:
            return
        table, ids, rest = self._table, self._once[places], iter(read)
        parts = [next(rest) if own is None else own[ids] for own in table.held]
        try:
            found = over(table.weight, parts).rows(0, ids.size)
        except SourceError:
            # It counts rows among these. What reads the file says which row it is.
            found = read_rows(table.weight, ids)
        made = torch.from_numpy(found).to(table.dtype)
        self._numbers.index_copy_(0, torch.from_numpy(places), made)


def prefetched(
    weight: Weight,
    reads: RowReads,
    device: torch.device,
    dtype: torch.dtype,
    hot_bytes: int = 0,
    scales_in_memory: bool = False,
) -> PrefetchedTable | None:
    """None where the bytes of a row do not lie together in each tensor.

    Raises:
        SourceError: scales that are read whole hold what is no number. HeaderError: they cannot be
            read.
    """
    parts, count = parts_of(weight), row_count(weight)
    if not parts or not count:
        return None
    lying = tuple(
        Lying(part.name, part.info.file, part.info.offset, row_bytes(part, weight), count)
        for part in parts
    )
    held: list[Bytes | None] = [None for _ in parts]
    if scales_in_memory:
        for number, part in enumerate(parts[1:], 1):
            made = np.empty((count, lying[number].width), np.uint8)
            for start, stop in slabs(weight, lying[number].width):
                made[start:stop] = part.read(start, stop, count).reshape(stop - start, -1)
            held[number] = made
    widths = [each.width for each, own in zip(lying, held, strict=True) if own is None]
    most = count * (sum(widths) + 8)
    hot = HotRows(min(hot_bytes, most), widths)
    return PrefetchedTable(weight, reads, lying, tuple(held), hot, device, dtype)


def read_rows(weight: Weight, ids: Ids) -> Floats:
    """Rows ``ids``, rising, from the weight's own file.

    Raises:
        DiskReadError: the file cannot be read. SourceError: it holds no number there.
    """
    found = np.empty((ids.size, columns(weight)), np.float32)
    for first, last in _runs(ids):
        start = int(ids[first])
        before = start % weight.step
        try:
            found[first:last] = weight.rows(start - before, int(ids[last - 1]) + 1)[before:]
        except HeaderError as error:
            where = error.file or error.field
            raise DiskReadError(
                where, error.offset, error.problem, tensor=shown(weight.name)
            ) from error
    return found


def _runs(ids: Ids) -> Iterator[tuple[int, int]]:
    """Where each run of consecutive ``ids`` begins and ends."""
    if ids.size:
        ends = [*(np.flatnonzero(np.diff(ids) != 1) + 1).tolist(), int(ids.size)]
        yield from zip([0, *ends[:-1]], ends, strict=True)
