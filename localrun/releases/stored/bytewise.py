"""Knows no release: matrices of one byte a number, F8_E4M3 or integers, times scales."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from localrun.formats.extent import Extent
from localrun.releases.stored.numbers import E4M3_LARGEST, looked_up, require_e4m3, require_e8m0
from localrun.releases.stored.part import Part
from localrun.releases.stored.scales import Scales
from localrun.releases.weights import Bytes, Floats, columns

Table = Literal["e4m3", "int8"]
FP8: Final = "FP8"
INT8: Final = "INT8"
_LARGEST: Final = {"e4m3": E4M3_LARGEST, "int8": 128.0}


@dataclass(frozen=True)
class Scaled:
    """``codes`` holds ``shape`` bytes, each a number of ``table``."""

    name: str
    shape: tuple[int, ...]
    part: Part
    scales: Scales
    table: Table = "e4m3"

    @property
    def stored(self) -> str:
        return FP8 if self.table == "e4m3" else INT8

    @property
    def read_bytes(self) -> int:
        return self.part.info.bytes + self.scales.part.info.bytes

    @property
    def place(self) -> tuple[int, int]:
        return self.part.place

    @property
    def step(self) -> int:
        return 1

    @property
    def codes(self) -> Codes:
        """The bytes alone: what a file keeps that stores them beside their scales."""
        return Codes(self.name, self.shape, self.part)

    @property
    def factors(self) -> Codes:
        """The scales alone, in their own shape."""
        part = self.scales.part
        return Codes(part.name, part.info.shape, part)

    def ranges(self, start: int, stop: int) -> Iterator[Extent]:
        yield self.part.extent(start, stop, self.part.info.bytes // max(columns(self), 1))
        yield self.scales.extent(start, stop)

    def rows(self, start: int, stop: int) -> Floats:
        """As ``Weight.rows``: each code times its scale, to the nearest F32."""
        width = columns(self)
        numbers = decoded(self.part, self.table, start, stop, self.shape)
        self.scales.multiply(numbers, start, _LARGEST[self.table], self.part)
        return numbers.reshape(stop - start, width)

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        return None


@dataclass(frozen=True)
class Codes:
    """Bytes as they stand, without what they mean: ``blocks`` gives them as I8."""

    name: str
    shape: tuple[int, ...]
    part: Part

    @property
    def stored(self) -> str:
        return self.part.kind

    @property
    def read_bytes(self) -> int:
        return self.part.info.bytes

    @property
    def place(self) -> tuple[int, int]:
        return self.part.place

    @property
    def step(self) -> int:
        return 1

    def ranges(self, start: int, stop: int) -> Iterator[Extent]:
        yield self.part.extent(start, stop, self.part.rows)

    def rows(self, start: int, stop: int) -> Floats:
        """The codes as signed integers, which is how ggml knows them."""
        found = self._checked(start, stop).view(np.int8)
        return found.astype(np.float32).reshape(stop - start, -1)

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        if type not in ("I8", self.part.kind):
            return None
        return self._checked(start, stop).reshape(stop - start, -1)

    def _checked(self, start: int, stop: int) -> Bytes:
        width = columns(self)
        raw = self.part.read(start, stop, self.part.rows)
        if self.part.kind == "F8_E4M3":
            require_e4m3(raw, self.part, start * width, width)
        elif self.part.kind == "F8_E8M0":
            require_e8m0(raw, self.part, start * width, width)
        return raw


def decoded(part: Part, table: Table, start: int, stop: int, shape: tuple[int, ...]) -> Floats:
    """Codes of rows as numbers, unscaled and checked: ``[stop - start, columns]``."""
    width = shape[-1] if shape else 1
    codes = part.read(start, stop, part.info.bytes // max(width, 1))
    if table == "e4m3":
        require_e4m3(codes, part, start * width, width)
    return looked_up(codes, table).reshape(stop - start, width)
