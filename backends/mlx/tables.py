"""Knows no n-gram: rows of a table, in memory or read from disk, as numbers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from localrun.backends.tiers.row_reads import Fetch, Lying, RowReads
from localrun.backends.tiers.table_rows import over, parts_of, row_bytes
from localrun.errors import EngineError, HeaderError, SourceError
from localrun.formats.text import shown
from localrun.releases.stored.part import Part
from localrun.releases.weights import Bytes, Floats, Weight, row_count

Ids = NDArray[np.int64]
_SLAB_BYTES: Final = 16 << 20


@dataclass(slots=True)
class RowUse:
    """Of a table: bytes that were read for rows, and seconds that somebody waited for them."""

    nbytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class MemoryTable:
    """``parts`` hold all rows as they are stored."""

    weight: Weight
    parts: tuple[Bytes, ...]
    use: RowUse = field(default_factory=RowUse)

    @staticmethod
    def read(weight: Weight) -> MemoryTable:
        """Raises HeaderError: rows of another form, or a file that cannot be read."""
        count, held = row_count(weight), []
        for part in _parts(weight):
            made = np.empty((count, row_bytes(part, weight)), np.uint8)
            step = max(1, _SLAB_BYTES // max(made.shape[1], 1))
            for start in range(0, count, step):
                stop = min(start + step, count)
                made[start:stop] = part.read(start, stop, count).reshape(stop - start, -1)
            held.append(made)
        return MemoryTable(weight, tuple(held))

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def ask(self, ids: Ids) -> Asked:
        """Raises EngineError for a row that is not there."""
        once, order = _distinct(ids, self.weight)
        return Asked(self.weight, once, order, [part[once] for part in self.parts], None, self.use)


@dataclass(frozen=True, slots=True)
class DiskTable:
    """Rows from their file, through ``reads``: each once a call."""

    weight: Weight
    reads: RowReads
    lying: tuple[Lying, ...]
    use: RowUse = field(default_factory=RowUse)

    @staticmethod
    def over(weight: Weight, reads: RowReads) -> DiskTable:
        """Raises HeaderError: rows of another form."""
        count = row_count(weight)
        lying = tuple(
            Lying(part.name, part.info.file, part.info.offset, row_bytes(part, weight), count)
            for part in _parts(weight)
        )
        return DiskTable(weight, reads, lying)

    @property
    def nbytes(self) -> int:
        return 0

    def ask(self, ids: Ids) -> Asked:
        """Raises EngineError for a row that is not there. DiskReadError: the reader is closed."""
        once, order = _distinct(ids, self.weight)
        parts = [np.empty((once.size, each.width), np.uint8) for each in self.lying]

        def landed(first: int, last: int, rows: Sequence[Bytes]) -> None:
            for part, own in zip(parts, rows, strict=True):
                part[first:last] = own

        fetch = self.reads.begin(self.lying, once, landed)
        return Asked(self.weight, once, order, parts, fetch, self.use)


@dataclass(frozen=True, slots=True)
class Asked:
    """Rows ``once`` on their way to ``parts``; where ``fetch`` is None they are there."""

    weight: Weight
    once: Ids
    order: NDArray[np.intp]
    parts: Sequence[Bytes]
    fetch: Fetch | None
    use: RowUse

    def advance(self) -> None:
        """Begin what has waited for memory; waits for nothing. Raises DiskReadError."""
        if self.fetch is not None:
            self.fetch.advance()

    def numbers(self) -> Floats:
        """Waits; ``[rows asked for, width]`` in their order.

        Raises:
            DiskReadError: they could not be read. SourceError: one holds what is no number.
        """
        if self.fetch is not None:
            start = time.perf_counter()
            self.fetch.wait()
            self.use.seconds += time.perf_counter() - start
            self.use.nbytes += self.fetch.nbytes
        try:
            found = over(self.weight, self.parts).rows(0, self.once.size)
        except SourceError:
            # It counts among these rows. Whoever reads the file says which row it is.
            for row in self.once.tolist():
                self.weight.rows(row, row + 1)
            raise
        return found[self.order]


def _parts(weight: Weight) -> tuple[Part, ...]:
    found = parts_of(weight)
    if not found:
        problem = f"rows of {weight.stored} do not lie together, as mlx reads them"
        raise HeaderError(shown(weight.name), weight.place[1], problem)
    return found


def _distinct(ids: Ids, weight: Weight) -> tuple[Ids, NDArray[np.intp]]:
    rows = row_count(weight)
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
        raise EngineError(
            f"{shown(weight.name)}: rows {ids.min()} to {ids.max()} of {rows} were looked up",
            hint="the tables do not belong to this tokenizer or config: get the whole release",
        )
    return np.unique(ids, return_inverse=True)
