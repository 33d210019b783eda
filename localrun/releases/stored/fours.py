"""Knows no release: e2m1 codes, two a byte, times a power of two for 32 of a row.

Releases differ in names and dimensions alone: the lower four bits come first in all of them
(DeepSeek-V4's experts, gpt-oss, compressed-tensors' mxfp4-pack-quantized, MLX's mxfp4). ggml's
MXFP4 holds the same 17 bytes for 32 numbers in another order, so nothing is lost either way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from localrun.formats.extent import Extent
from localrun.releases.stored.numbers import E2M1, e2m1, nibbles, require_e8m0
from localrun.releases.stored.part import Part
from localrun.releases.stored.scales import GROUP, Scales
from localrun.releases.weights import Bytes, Floats

FP4: Final = "FP4"
_HALF: Final = GROUP // 2
# Codes that are moved as one piece of memory go at its speed.
_CODES: Final = np.dtype(f"V{_HALF}")
_BLOCK: Final = np.dtype([("exponent", "u1"), ("codes", _CODES)])
# 6 times a power of two up to here is an F32.
_SAFE: Final = 252
_LOW: Final = np.uint64(0x0F0F0F0F0F0F0F0F)
_HIGH: Final = np.uint64(0xF0F0F0F0F0F0F0F0)
_SPREAD: Final = (
    (np.uint64(16), np.uint64(0x0000FFFF0000FFFF)),
    (np.uint64(8), np.uint64(0x00FF00FF00FF00FF)),
)


@dataclass(frozen=True)
class Fours:
    """``part`` holds half as many bytes as ``shape`` numbers, ``scales`` one byte for 32 of a row.
    The columns are even."""

    name: str
    shape: tuple[int, ...]
    part: Part
    scales: Scales

    @property
    def stored(self) -> str:
        return FP4

    @property
    def read_bytes(self) -> int:
        return self.part.info.bytes + self.scales.part.info.bytes

    @property
    def place(self) -> tuple[int, int]:
        return self.part.place

    @property
    def step(self) -> int:
        return 1

    def ranges(self, start: int, stop: int) -> Iterator[Extent]:
        yield self.part.extent(start, stop, self._part_rows)
        yield self.scales.extent(start, stop)

    def rows(self, start: int, stop: int) -> Floats:
        """As ``Weight.rows``; every product is exact but those below F32's smallest."""
        numbers = nibbles(self._packed(start, stop), e2m1()).reshape(stop - start, self.shape[-1])
        self.scales.multiply(numbers, start, E2M1[-1], self.part)
        return numbers

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        """As ggml's MXFP4 where a row is whole blocks. Its scale is the same byte: it counts e2m1
        in halves and takes half of the power of two. As ``FP4`` the same with the codes in the
        order that they have here, two neighbours a byte."""
        groups, rest = divmod(self.shape[-1], GROUP)
        if type not in ("MXFP4", FP4) or rest:
            return None
        exponents = self.scales.part.read(start, stop, self.scales.total)
        require_e8m0(exponents, self.scales.part, start * groups, groups)
        if int(exponents.max(initial=0)) > _SAFE:
            self.rows(start, stop)
        packed = self._packed(start, stop)
        made = np.empty((stop - start) * groups, _BLOCK)
        made["exponent"] = exponents
        made["codes"] = (packed if type == FP4 else halves_apart(packed)).view(_CODES)
        return made.view(np.uint8).reshape(stop - start, groups * _BLOCK.itemsize)

    def _packed(self, start: int, stop: int) -> Bytes:
        return self.part.read(start, stop, self._part_rows)

    @property
    def _part_rows(self) -> int:
        return self.part.info.bytes * 2 // max(self.shape[-1], 1)


def halves_apart(packed: Bytes) -> Bytes:
    """Sixteen bytes of 32 codes each: from two neighbours a byte to codes j and j + 16 a byte."""
    words = packed.view("<u8").reshape(-1, 2)
    first, second = words[:, 0], words[:, 1]
    even = (first & _LOW) | ((second & _LOW) << np.uint64(4))
    odd = ((first >> np.uint64(4)) & _LOW) | (second & _HIGH)
    made = np.empty_like(words)
    half = np.uint64(32)
    lower = np.uint64(0xFFFFFFFF)
    made[:, 0] = _interleaved(even & lower, odd & lower)
    made[:, 1] = _interleaved(even >> half, odd >> half)
    return made.reshape(-1).view(np.uint8)


def neighbours(halves: Bytes) -> Bytes:
    """The way back, from ggml's order."""
    both = halves.reshape(-1, _HALF)
    made = np.empty_like(both)
    made[:, : _HALF // 2] = (both[:, 0::2] & 15) | (both[:, 1::2] << 4)
    made[:, _HALF // 2 :] = (both[:, 0::2] >> 4) | (both[:, 1::2] & 0xF0)
    return made.reshape(-1)


def _interleaved(even: NDArray[np.uint64], odd: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Four bytes of each, in turn."""
    for shift, mask in _SPREAD:
        even = (even | (even << shift)) & mask
        odd = (odd | (odd << shift)) & mask
    return even | (odd << np.uint64(8))
