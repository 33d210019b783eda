"""Knows no table: rows that were looked up before, in a fixed amount of memory.

Text repeats its n-grams: a few rows are looked up again and again. Each row has one place, by its
number, so that looking up and keeping are a few whole-array operations, and nothing is sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from localrun.releases.weights import Bytes

Ids = NDArray[np.int64]
_TAG_BYTES: Final = 8
_NONE: Final = -1


class HotRows:
    """At most ``nbytes`` for rows that take ``widths`` bytes in each part of their table."""

    def __init__(self, nbytes: int, widths: Sequence[int]) -> None:
        places = max(0, nbytes) // (sum(widths) + _TAG_BYTES)
        self._tags = np.full(places, _NONE, np.int64)
        self._rows = tuple(np.empty((places, width), np.uint8) for width in widths)

    @property
    def nbytes(self) -> int:
        return self._tags.nbytes + sum(part.nbytes for part in self._rows)

    def find(self, ids: Ids) -> tuple[NDArray[np.bool_], tuple[Bytes, ...]]:
        """Which of ``ids`` are here, and the bytes of these in each part."""
        if not self._tags.size:
            return np.zeros(ids.size, np.bool_), ()
        places = ids % self._tags.size
        here: NDArray[np.bool_] = self._tags[places] == ids
        return here, tuple(part[places[here]] for part in self._rows)

    def keep(self, ids: Ids, rows: Sequence[Bytes]) -> None:
        """Where two go to one place, the last one stays."""
        if self._tags.size:
            places = ids % self._tags.size
            self._tags[places] = ids
            for held, own in zip(self._rows, rows, strict=True):
                held[places] = own
