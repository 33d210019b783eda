"""Knows no release: integers of a few bits, packed, of which groups share a scale and a zero."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from localrun.formats.extent import Extent
from localrun.releases.stored.numbers import floats, nibbles, require_finite, require_small
from localrun.releases.stored.part import Part
from localrun.releases.stored.scales import spread
from localrun.releases.weights import Bytes, Floats


@dataclass(frozen=True)
class Zeros:
    """Zero points packed along the rows: word ``i`` of a column is of ``32 / bits`` rows."""

    part: Part
    bits: int
    columns: int

    def extent(self, start: int, stop: int) -> Extent:
        first, last = self._words(start, stop)
        return self.part.extent(first, last, self.part.rows)

    def read(self, start: int, stop: int) -> Floats:
        """Of rows ``start`` to ``stop``: ``[stop - start, columns]``."""
        each = 32 // self.bits
        first, last = self._words(start, stop)
        words = self.part.read(first, last, self.part.rows).view("<u4").reshape(-1, self.columns)
        shifts = np.arange(each, dtype=np.uint32) * np.uint32(self.bits)
        codes = (words[:, None, :] >> shifts[:, None]) & np.uint32((1 << self.bits) - 1)
        rows: Floats = codes.reshape(-1, self.columns).astype(np.float32)
        return rows[start - first * each : stop - first * each]

    def _words(self, start: int, stop: int) -> tuple[int, int]:
        each = 32 // self.bits
        return start // each, -(-stop // each)


@dataclass(frozen=True)
class Packed:
    """``part`` holds ``bits`` a number, least significant first, rows padded to whole words.

    A number is (code - zero) times scale, plus bias: the zero is ``zeros``, or half of the codes,
    or 0 where there are ``biases``. Scales and biases are of ``group`` columns each;
    ``groups_of`` gives each column's group where they are not neighbours.
    """

    name: str
    shape: tuple[int, ...]
    part: Part
    scales: Part
    bits: int
    group: int
    zeros: Zeros | None = None
    biases: Part | None = None
    groups_of: NDArray[np.intp] | None = None

    @property
    def stored(self) -> str:
        return f"INT{self.bits}"

    @cached_property
    def read_bytes(self) -> int:
        parts = [self.part, self.scales]
        if self.zeros is not None:
            parts.append(self.zeros.part)
        if self.biases is not None:
            parts.append(self.biases)
        return sum(part.info.bytes for part in parts)

    @property
    def place(self) -> tuple[int, int]:
        return self.part.place

    @property
    def step(self) -> int:
        return 1

    def ranges(self, start: int, stop: int) -> Iterator[Extent]:
        yield self.part.extent(start, stop, self.part.rows)
        yield self.scales.extent(start, stop, self.scales.rows)
        if self.zeros is not None:
            yield self.zeros.extent(start, stop)
        if self.biases is not None:
            yield self.biases.extent(start, stop, self.biases.rows)

    def rows(self, start: int, stop: int) -> Floats:
        """As ``Weight.rows``: differences are exact, products and sums to the nearest F32."""
        count, width = stop - start, self.shape[-1]
        numbers = unpacked(self.part.read(start, stop, self.part.rows), self.bits)
        numbers = numbers.reshape(count, -1)[:, :width]
        if self.zeros is not None:
            numbers = numbers - self._wide(self.zeros.read(start, stop))
        elif self.biases is None:
            numbers = numbers - np.float32(1 << self.bits - 1)
        with np.errstate(over="ignore", invalid="ignore"):
            numbers = numbers * self._wide(_checked(self.scales, start, stop))
            if self.biases is not None:
                numbers += self._wide(_checked(self.biases, start, stop))
        require_small(numbers, self.part, start * width, width)
        return numbers

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        return None

    def _wide(self, scales: Floats) -> Floats:
        if self.groups_of is not None:
            return scales[:, self.groups_of]
        return spread(scales, self.group, self.shape[-1])


def _checked(part: Part, start: int, stop: int) -> Floats:
    raw = part.read(start, stop, part.rows)
    require_finite(raw, part, start * part.columns, part.columns)
    return floats(raw, part.kind).reshape(stop - start, -1)


def unpacked(raw: Bytes, bits: int) -> Floats:
    """Codes without a sign, from a stream of bits with the least significant first."""
    if bits == 8:
        return raw.astype(np.float32)
    if bits == 4:
        return nibbles(raw, np.arange(16, dtype=np.float32))
    single = np.unpackbits(raw, bitorder="little")
    whole = single[: single.size // bits * bits].reshape(-1, bits)
    return np.packbits(whole, axis=1, bitorder="little").reshape(-1).astype(np.float32)
