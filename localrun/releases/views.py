"""Knows no family: weights made of other weights, by moving rows or changing every number alike.

Nothing is computed before rows are asked for. Rows that are only moved keep their blocks: packed
experts are stacked bit by bit.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from localrun.formats.extent import Extent
from localrun.releases.weights import Bytes, Floats, Weight, columns, row_count


@dataclass(frozen=True)
class Over:
    """What a view has of the weight that it looks at, unless it says otherwise."""

    source: Weight

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def stored(self) -> str:
        return self.source.stored

    @property
    def read_bytes(self) -> int:
        return self.source.read_bytes

    @property
    def place(self) -> tuple[int, int]:
        return self.source.place

    @property
    def step(self) -> int:
        return self.source.step

    def ranges(self, start: int, stop: int) -> Iterator[Extent]:
        return self.source.ranges(start, stop)


@dataclass(frozen=True)
class Stacked:
    """Weights one behind the other, as rows of ``shape``: the experts of a layer, parts of a
    table. All have the same columns."""

    parts: tuple[Weight, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        widths = {columns(part) for part in self.parts}
        rows = sum(map(row_count, self.parts))
        if widths != {self.shape[-1]} or rows != math.prod(self.shape[:-1]):
            raise ValueError(f"{self.name}: parts are not {self.shape} together")

    @property
    def name(self) -> str:
        return self.parts[0].name

    @property
    def stored(self) -> str:
        return self.parts[0].stored

    @cached_property
    def read_bytes(self) -> int:
        return sum(part.read_bytes for part in self.parts)

    @property
    def place(self) -> tuple[int, int]:
        return self.parts[0].place

    @cached_property
    def step(self) -> int:
        """Such that no read of several parts begins inside a step of one."""
        step = math.lcm(*(part.step for part in self.parts))
        *sizes, last = map(row_count, self.parts)
        if all(rows % step == 0 for rows in sizes):
            return step
        return last if set(sizes) == {last} else math.prod(self.shape[:-1])

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(map(row_count, self.parts)))

    def rows(self, start: int, stop: int) -> Floats:
        found = [part.rows(a, b) for part, a, b in self._within(start, stop)]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        found = []
        for part, a, b in self._within(start, stop):
            piece = part.blocks(type, a, b)
            if piece is None:
                return None
            found.append(piece)
        return found[0] if len(found) == 1 else np.concatenate(found)

    def ranges(self, start: int, stop: int) -> Iterator[Extent]:
        for part, a, b in self._within(start, stop):
            yield from part.ranges(a, b)

    def _within(self, start: int, stop: int) -> Iterator[tuple[Weight, int, int]]:
        number = min(bisect_right(self._ends, start), len(self.parts) - 1)
        while True:
            first = self._ends[number - 1] if number else 0
            end = min(self._ends[number], stop)
            yield self.parts[number], start - first, end - first
            start, number = end, number + 1
            if start >= stop:
                return


@dataclass(frozen=True)
class Gathered(Over):
    """Rows of ``source`` in another order or choice: row ``i`` of this is row ``order[i]`` there.

    ``unit`` rows of this are made of ``source_unit`` consecutive rows of ``source``, the same way
    in every unit (``order`` speaks of one unit): a head's rows are turned, half of a fused
    matrix is taken. ``source_unit`` must divide the source's rows.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    source_unit: int

    @property
    def read_bytes(self) -> int:
        return self.source.read_bytes * len(self.order) // self.source_unit

    @property
    def unit(self) -> int:
        return len(self.order)

    @cached_property
    def step(self) -> int:
        """Whole units, of which the source's rows begin at one of its steps."""
        return self.unit * (self.source.step // math.gcd(self.source.step, self.source_unit))

    def rows(self, start: int, stop: int) -> Floats:
        return self.source.rows(*self._span(start, stop))[self._picked(start, stop)]

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        found = self.source.blocks(type, *self._span(start, stop))
        return None if found is None else found[self._picked(start, stop)]

    def ranges(self, start: int, stop: int) -> Iterator[Extent]:
        return self.source.ranges(*self._span(start, stop))

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        return start // self.unit * self.source_unit, -(-stop // self.unit) * self.source_unit

    def _picked(self, start: int, stop: int) -> NDArray[np.intp]:
        units = np.arange(-(-(stop - start) // self.unit), dtype=np.intp)[:, None]
        order = np.asarray(self.order, np.intp)[None, :]
        return (units * self.source_unit + order).reshape(-1)[: stop - start]


def heads_interleaved(source: Weight, heads: int) -> Gathered:
    """Rotary rows of ``[heads * d, columns]`` from halves apart (Hugging Face) to adjacent pairs
    (ggml's NORM rope): row ``2 * i + h`` of a head was row ``h * d / 2 + i``."""
    d = row_count(source) // heads
    order = tuple(h * (d // 2) + i for i in range(d // 2) for h in range(2))
    return Gathered(source, source.shape, order, d)


def heads_halved(source: Weight, heads: int) -> Gathered:
    """The way back."""
    d = row_count(source) // heads
    order = tuple(2 * i + h for h in range(2) for i in range(d // 2))
    return Gathered(source, source.shape, order, d)


@dataclass(frozen=True)
class Sliced(Over):
    """Rows ``first`` to ``last`` of every ``unit`` rows of ``source``, and no other is read."""

    shape: tuple[int, ...]
    unit: int
    first: int
    last: int

    @property
    def read_bytes(self) -> int:
        return self.source.read_bytes * (self.last - self.first) // self.unit

    def rows(self, start: int, stop: int) -> Floats:
        found = [self.source.rows(a, b) for a, b in self._stretches(start, stop)]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        found = []
        for a, b in self._stretches(start, stop):
            piece = self.source.blocks(type, a, b)
            if piece is None:
                return None
            found.append(piece)
        return found[0] if len(found) == 1 else np.concatenate(found)

    def ranges(self, start: int, stop: int) -> Iterator[Extent]:
        for a, b in self._stretches(start, stop):
            yield from self.source.ranges(a, b)

    def _stretches(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        taken = self.last - self.first
        while True:
            unit, inside = divmod(start, taken)
            count = min(taken - inside, stop - start)
            first = unit * self.unit + self.first + inside
            yield first, first + count
            start += count
            if start >= stop:
                return


def part_of_each(
    source: Weight, shape: tuple[int, ...], unit: int, start: int, stop: int
) -> Sliced | Gathered:
    """Rows ``start`` to ``stop`` of every ``unit`` rows, together in ``shape``."""
    if any(at % source.step for at in (unit, start, stop)):
        return Gathered(source, shape, tuple(range(start, stop)), unit)
    return Sliced(source, shape, unit, start, stop)


@dataclass(frozen=True)
class Portion(Over):
    """As many rows of ``source`` as ``shape`` has, from row ``first`` on."""

    shape: tuple[int, ...]
    first: int

    @property
    def read_bytes(self) -> int:
        return self.source.read_bytes * row_count(self) // max(row_count(self.source), 1)

    @property
    def place(self) -> tuple[int, int]:
        file, offset = self.source.place
        before = self.source.read_bytes * self.first // max(row_count(self.source), 1)
        return file, offset + before

    @property
    def step(self) -> int:
        """The source's, or all rows where those begin inside one of its steps."""
        return self.source.step if self.first % self.source.step == 0 else row_count(self)

    def rows(self, start: int, stop: int) -> Floats:
        begin, skipped = self._begin(start)
        return self.source.rows(begin, self.first + stop)[skipped:]

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        begin, skipped = self._begin(start)
        found = self.source.blocks(type, begin, self.first + stop)
        return None if found is None else found[skipped:]

    def ranges(self, start: int, stop: int) -> Iterator[Extent]:
        begin, _ = self._begin(start)
        return self.source.ranges(begin, self.first + stop)

    def _begin(self, start: int) -> tuple[int, int]:
        """Where a read of the source may begin, and the rows too many by that."""
        wanted = self.first + start
        skipped = wanted % self.source.step
        return wanted - skipped, skipped


@dataclass(frozen=True)
class Changed(Over):
    """Every row through ``function``, which gives as many rows of as many columns. What rows are
    does not change, only their numbers: a norm that is stored less one."""

    function: Callable[[Floats], Floats]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def rows(self, start: int, stop: int) -> Floats:
        return self.function(self.source.rows(start, stop))

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        return None


@dataclass(frozen=True)
class Transposed(Over):
    """``[n, a, b]`` as ``[n, b, a]``: every one of ``n`` matrices turned. ``source`` has the shape
    ``[n, a, b]`` or ``[n * a, b]``. A matrix is read whole, so they are meant to be small."""

    matrices: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.matrices, columns(self.source), row_count(self.source) // self.matrices

    @cached_property
    def step(self) -> int:
        """Whole matrices, of which the source's rows begin at one of its steps."""
        _, b, a = self.shape
        return b * (self.source.step // math.gcd(self.source.step, a))

    def rows(self, start: int, stop: int) -> Floats:
        _, b, a = self.shape
        first, last = self._span(start, stop)
        found = self.source.rows(first * a, last * a).reshape(last - first, a, b)
        turned = np.ascontiguousarray(found.transpose(0, 2, 1)).reshape(-1, a)
        return turned[start - first * b : stop - first * b]

    def ranges(self, start: int, stop: int) -> Iterator[Extent]:
        first, last = self._span(start, stop)
        return self.source.ranges(first * self.shape[2], last * self.shape[2])

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        """Which matrices."""
        return start // self.shape[1], -(-stop // self.shape[1])

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        return None


@dataclass(frozen=True)
class Reshaped(Over):
    """The same rows under other dimensions: those of size one left out, heads apart."""

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        same = math.prod(self.shape) == math.prod(self.source.shape)
        if not same or (self.shape and self.shape[-1] != columns(self.source)):
            raise ValueError(f"{self.name}: {self.source.shape} is not {self.shape}")

    def rows(self, start: int, stop: int) -> Floats:
        return self.source.rows(start, stop)

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        return self.source.blocks(type, start, stop)
