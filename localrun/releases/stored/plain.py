"""Knows no scale: tensors whose numbers stand in the file as themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from localrun.formats.extent import Extent
from localrun.releases.stored.numbers import floats, require_finite, require_small
from localrun.releases.stored.part import Part
from localrun.releases.weights import Bytes, Floats

INTEGERS: Final = {
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|u1",
}  # fmt: skip
_WRITTEN: Final = ("I8", "I16", "I32", "I64")
# Every integer up to here is an F32.
_EXACT: Final = 1 << 24


@dataclass(frozen=True)
class Unscaled:
    """What both kinds below have in common: a row is ``shape[-1]`` elements of the file."""

    part: Part

    @property
    def name(self) -> str:
        return self.part.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.part.info.shape

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

    def _raw(self, start: int, stop: int) -> Bytes:
        return self.part.read(start, stop, self.part.rows)


class Plain(Unscaled):
    """F64, F32, F16 or BF16."""

    def rows(self, start: int, stop: int) -> Floats:
        """As ``Weight.rows``; an F64 that F32 does not hold raises SourceError too."""
        part = self.part
        raw = self._checked(start, stop)
        numbers = floats(raw, part.kind)
        if part.kind == "F64":
            require_small(numbers, part, start * part.columns, part.columns)
        return numbers.reshape(stop - start, part.columns)

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        """Of its own type alone."""
        if type != self.part.kind:
            return None
        return self._checked(start, stop).reshape(stop - start, -1)

    def _checked(self, start: int, stop: int) -> Bytes:
        raw = self._raw(start, stop)
        require_finite(raw, self.part, start * self.part.columns, self.part.columns)
        return raw


class Integers(Unscaled):
    """Indices: a routing table, positions."""

    def rows(self, start: int, stop: int) -> Floats:
        """As ``Weight.rows``.

        Raises:
            SourceError: an integer that F32 does not hold exactly.
        """
        whole = self._integers(start, stop)
        numbers = whole.astype(np.float32)
        if max(abs(int(whole.min(initial=0))), int(whole.max(initial=0))) > _EXACT:
            # What was rounded up to 2**63 is none of I64's numbers any more.
            inside = numbers < float(2.0 ** np.iinfo(whole.dtype).bits) / (
                2 if whole.dtype.kind == "i" else 1
            )
            back = np.where(inside, numbers, 0).astype(whole.dtype)
            self._hold(inside & (back == whole), whole, start, "F32")
        return numbers

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        """As the signed integers of GGUF.

        Raises:
            SourceError: an integer that is outside of the type's range.
        """
        if type not in _WRITTEN:
            return None
        whole = self._integers(start, stop)
        limits = np.iinfo(INTEGERS[type])
        if int(whole.min(initial=0)) < limits.min or int(whole.max(initial=0)) > limits.max:
            within = (whole >= limits.min) & (whole <= limits.max)
            self._hold(within, whole, start, type)
        return np.ascontiguousarray(whole.astype(INTEGERS[type])).view(np.uint8)

    def _integers(self, start: int, stop: int) -> NDArray[Any]:
        raw = self._raw(start, stop).view(INTEGERS[self.part.kind])
        return raw.reshape(stop - start, self.part.columns)

    def _hold(self, held: NDArray[Any], whole: NDArray[Any], start: int, type: str) -> None:
        if not held.all():
            row, column = map(int, np.argwhere(~held)[0])
            columns = self.part.columns
            raise self.part.damaged(
                (start + row) * columns + column,
                columns,
                f"is {whole[row, column]}, which {type} does not hold",
            )
