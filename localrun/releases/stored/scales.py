"""Knows no code: scales that rows of numbers share, in blocks of any size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from localrun.formats.extent import Extent
from localrun.releases.stored.numbers import (
    FLOATS,
    e8m0,
    floats,
    require_e8m0,
    require_finite,
    require_small,
)
from localrun.releases.stored.part import Part
from localrun.releases.weights import Floats

GROUP: Final = 32
_EXPONENTS: Final = ("F8_E8M0", "U8")
_F32_LARGEST: Final = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Scales:
    """``part`` holds ``lines`` rows of scales for every ``matrix`` rows of numbers, and one scale
    in a row for ``width`` numbers of a line of ``height`` rows. The last ones may be for fewer."""

    part: Part
    matrix: int
    lines: int
    height: int
    width: int
    columns: int
    total: int

    def line(self, row: int) -> int:
        """The row of scales that belongs to a row of numbers."""
        return row // self.matrix * self.lines + row % self.matrix // self.height

    def extent(self, start: int, stop: int) -> Extent:
        """Where the scales of rows of numbers lie."""
        first = self.line(start)
        last = self.line(stop - 1) + 1 if stop > start else first
        return self.part.extent(first, last, self.total)

    def read(self, first: int, last: int) -> Floats:
        """Rows ``first`` to ``last`` of the scales themselves.

        Raises:
            SourceError: one is not finite, with its place among the scales.
        """
        raw = self.part.read(first, last, self.total)
        if self.part.kind in _EXPONENTS:
            require_e8m0(raw, self.part, first * self.columns, self.columns)
            return e8m0().take(raw).reshape(-1, self.columns)
        require_finite(raw, self.part, first * self.columns, self.columns)
        found = floats(raw, self.part.kind)
        if self.part.kind == "F64":
            require_small(found, self.part, first * self.columns, self.columns)
        return found.reshape(-1, self.columns)

    def multiply(self, numbers: Floats, start: int, largest: float, part: Part) -> None:
        """Scale rows ``start`` and on in place. None of ``numbers`` is beyond ``largest``; they are
        of ``part``, which errors name.

        Raises:
            SourceError: a scale is not finite, or a number times its scale is not.
        """
        count, width = numbers.shape
        if not count:
            return
        first = self.line(start)
        scales = self.read(first, self.line(start + count - 1) + 1)
        # What overflows is found below; nothing else can go wrong.
        with np.errstate(over="ignore"):
            if self.height == 1:
                self._each_row(numbers, scales)
            else:
                wide = spread(scales, self.width, width)
                for begin, end, line in self._runs(start, count):
                    numbers[begin:end] *= wide[line - first]
        if float(np.abs(scales).max()) > _F32_LARGEST / largest:
            require_small(numbers, part, start * width, width)

    def _each_row(self, numbers: Floats, scales: Floats) -> None:
        count, width = numbers.shape
        if width == self.columns * self.width:
            numbers.reshape(count, self.columns, self.width)[...] *= scales[:, :, None]
        else:
            numbers *= spread(scales, self.width, width)

    def _runs(self, start: int, count: int) -> list[tuple[int, int, int]]:
        """(begin, end, line): which of ``count`` rows have their scales in which line."""
        rows = np.arange(start, start + count)
        lines: NDArray[np.intp] = rows // self.matrix * self.lines + rows % self.matrix // (
            self.height
        )
        ends = [*(np.flatnonzero(np.diff(lines)) + 1).tolist(), count]
        begins = [0, *ends[:-1]]
        return [(b, e, int(lines[b])) for b, e in zip(begins, ends, strict=True)]


def spread(scales: Floats, width: int, columns: int) -> Floats:
    """Each scale under the ``width`` columns that it is for, ``columns`` in all."""
    return np.repeat(scales, min(width, columns), axis=1)[:, :columns]


def scales_of(
    part: Part, shape: tuple[int, ...], *, block: tuple[int, int] | None, owner: Part
) -> Scales:
    """How the scales in ``part`` lie over numbers of ``shape``.

    They are in blocks of (rows, columns) as declared, 32 of a row each, one for a row, one for a
    matrix, or one for all. Without a declaration blocks of 128 and of 32 a side are tried.

    Raises:
        HeaderError: of another type, or of a shape that is none of these.
    """
    if part.kind not in (*FLOATS, *_EXPONENTS):
        raise part.malformed(f"{part.kind} scales of {owner.name} are not read")
    rows, width = (shape[-2] if len(shape) > 1 else 1), shape[-1] if shape else 1
    outer = shape[:-2]
    whole = math.prod(shape[:-1])
    found = part.info.shape
    for height, across in (block,) if block else ((128, 128), (GROUP, GROUP)):
        lines, columns = -(-rows // height), -(-width // across)
        if found == (*outer, lines, columns):
            return Scales(part, rows, lines, height, across, columns, math.prod(outer) * lines)
    if found == (*shape[:-1], -(-width // GROUP)):
        return Scales(part, rows, rows, 1, GROUP, -(-width // GROUP), whole)
    if found in ((*outer, rows, 1), (*outer, rows)):
        return Scales(part, rows, rows, 1, width, 1, whole)
    matrices = math.prod(outer)
    if found in ((*outer, 1, 1), outer):
        return Scales(part, rows, 1, rows, width, 1, matrices)
    if part.info.elements == 1:
        return Scales(part, whole, 1, whole, width, 1, 1)
    declared = f" in blocks of {block[0]} by {block[1]}" if block else ""
    raise part.malformed(
        f"its shape {list(found)} does not scale {owner.name} {list(shape)}{declared}"
    )
