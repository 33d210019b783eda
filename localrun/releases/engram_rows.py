"""Knows no constants: the rows of Engram's tables in a GGUF file, in whichever form they are.

``engram`` tells of the conventions. A table is one tensor of a type that ggml knows, or e4m3 bytes
in I8: with their e8m0 scales in a second tensor, or at the end of each row
(``e4m3_e8m0_32_row264``: 256 numbers and 8 scales).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from localrun.errors import HeaderError, SourceError
from localrun.formats.extent import Extent
from localrun.formats.text import shown
from localrun.releases.engram import GROUP
from localrun.releases.stored.bytewise import Scaled
from localrun.releases.stored.numbers import e8m0, looked_up
from localrun.releases.weights import Bytes, Floats, Weight

_TABLE: Final = re.compile(r"blk\.([0-9]{1,4})\.engram_embe?d\.weight", re.ASCII)
_SCALE: Final = "_scale.weight"
# Of numbers and scales together, as many are scales.
_SHARE: Final = GROUP + 1


@dataclass(frozen=True)
class NativeRows:
    """``table`` holds a byte a number; ``scales`` those of its rows, None where they stand at the
    end of each row."""

    table: Weight
    scales: Weight | None

    @property
    def name(self) -> str:
        return self.table.name

    @property
    def shape(self) -> tuple[int, ...]:
        rows, width = self.table.shape
        return rows, width if self.scales is not None else width // _SHARE * GROUP

    @property
    def stored(self) -> str:
        return "FP8"

    @property
    def read_bytes(self) -> int:
        return self.table.read_bytes + (self.scales.read_bytes if self.scales is not None else 0)

    @property
    def place(self) -> tuple[int, int]:
        return self.table.place

    @property
    def step(self) -> int:
        return 1

    def ranges(self, start: int, stop: int) -> Iterator[Extent]:
        yield from self.table.ranges(start, stop)
        if self.scales is not None:
            yield from self.scales.ranges(start, stop)

    def codes(self, start: int, stop: int) -> tuple[Bytes, Bytes]:
        """The bytes of a release: e4m3 ``[rows, width]`` and e8m0 ``[rows, width / 32]``.

        Raises:
            SourceError: one that stands for no number, with its place.
        """
        found, width = _raw(self.table, start, stop), self.shape[-1]
        codes = found[:, :width]
        scales = found[:, width:] if self.scales is None else _raw(self.scales, start, stop)
        for part, bad in ((codes, codes & 0x7F == 0x7F), (scales, scales == 0xFF)):
            if bad.any():
                row, column = map(int, np.argwhere(bad)[0])
                raise SourceError(
                    f"{shown(self.name)}: row {start + row}, {part[row, column]:#04x} in column "
                    f"{column} is no number",
                    hint="get the model again; one that holds such numbers is damaged",
                )
        return codes, scales

    def rows(self, start: int, stop: int) -> Floats:
        """As ``Weight.rows``."""
        codes, scales = self.codes(start, stop)
        numbers = looked_up(np.ascontiguousarray(codes).reshape(-1), "e4m3").reshape(codes.shape)
        numbers *= np.repeat(e8m0()[scales], GROUP, axis=1)[:, : codes.shape[1]]
        return numbers

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        return None


@dataclass(frozen=True)
class JoinedRows:
    """Bytes of rows with those of their scales behind them, as I8: how a file keeps both where one
    read fetches them."""

    table: Weight
    scales: Weight

    @property
    def name(self) -> str:
        return self.table.name

    @property
    def shape(self) -> tuple[int, ...]:
        rows, width = self.table.shape
        return rows, width + self.scales.shape[-1]

    @property
    def stored(self) -> str:
        return "I8"

    @property
    def read_bytes(self) -> int:
        return self.table.read_bytes + self.scales.read_bytes

    @property
    def place(self) -> tuple[int, int]:
        return self.table.place

    @property
    def step(self) -> int:
        return 1

    def ranges(self, start: int, stop: int) -> Iterator[Extent]:
        yield from self.table.ranges(start, stop)
        yield from self.scales.ranges(start, stop)

    def rows(self, start: int, stop: int) -> Floats:
        """The bytes as signed integers."""
        return self._bytes(start, stop).view(np.int8).astype(np.float32)

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        return self._bytes(start, stop) if type == "I8" else None

    def _bytes(self, start: int, stop: int) -> Bytes:
        parts = (_raw(each, start, stop) for each in (self.table, self.scales))
        return np.concatenate([part.reshape(stop - start, -1) for part in parts], axis=1)


def scales_of(weight: Weight) -> tuple[int, ...] | None:
    """The shape of a table's scales where both are bytes that ``joined`` keeps; None of others."""
    if isinstance(weight, NativeRows):
        rows, width = weight.shape
        return rows, -(-width // GROUP)
    if isinstance(weight, Scaled) and weight.table == "e4m3":
        return weight.factors.shape if weight.factors.stored == "F8_E8M0" else None
    return None


def joined(weight: Weight) -> Weight:
    """A table that ``scales_of`` knows, its bytes in one."""
    if isinstance(weight, NativeRows):
        return weight.table if weight.scales is None else JoinedRows(weight.table, weight.scales)
    assert isinstance(weight, Scaled)
    return JoinedRows(weight.codes, weight.factors)


def encoding(width: int) -> str:
    """What files say of joined rows of ``width`` numbers, under ``engram.encoding``."""
    return f"e4m3_e8m0_{GROUP}_row{width + width // GROUP}"


def tables(weights: Mapping[str, Weight]) -> dict[int, Weight]:
    """The table of each layer that has one, as numbers ``[rows, width]``, of the weights of a GGUF
    file by its own names.

    Raises:
        HeaderError: bytes without scales, or scales of another shape.
    """
    found: dict[int, Weight] = {}
    for name, weight in weights.items():
        if match := _TABLE.fullmatch(name):
            scales = weights.get(name.removesuffix(".weight") + _SCALE)
            found[int(match[1])] = _table(weight, scales)
    return found


def _table(weight: Weight, scales: Weight | None) -> Weight:
    if weight.stored != "I8":
        return weight
    rows, width = weight.shape
    if scales is None and width % _SHARE:
        problem = f"{width} bytes a row and no scales beside them"
        raise HeaderError(shown(weight.name), weight.place[1], problem)
    if scales is not None and (scales.stored, scales.shape) != ("I8", (rows, -(-width // GROUP))):
        problem = f"{scales.stored} of {scales.shape} does not scale {weight.shape}"
        raise HeaderError(shown(scales.name), scales.place[1], problem)
    return NativeRows(weight, scales)


def _raw(weight: Weight, start: int, stop: int) -> Bytes:
    found = weight.blocks("I8", start, stop)
    assert found is not None, "whole numbers of eight bits are moved as they are"
    return found.view(np.uint8)
