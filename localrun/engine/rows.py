"""Knows no runner: rows of logits in a numpy array, for runners that compute on the host."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_GROUP: Final = 64


class NumpyLogits:
    """``Logits`` over a float32 array ``[rows, vocab]``, not copied."""

    __slots__ = ("_rows",)

    def __init__(self, values: NDArray[np.float32]) -> None:
        self._rows = values

    @property
    def rows(self) -> int:
        return int(self._rows.shape[0])

    def argmax(self, row: int) -> int:
        return int(self._rows[row].argmax())

    def topk(self, row: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k largest as (ids, logits), largest first; ties by the lower id."""
        return topk(self._rows[row], k)

    def numpy(self) -> NDArray[np.float32]:
        return self._rows


def topk(row: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k largest of ``row`` ``[vocab]``: (ids, logits), largest first, ties by the lower id.

    Exact for rows without NaN. The k-th largest maximum of ``vocab / 64`` disjoint groups bounds
    the k-th largest value from below, so one cheap pass leaves few candidates to sort.
    """
    groups = row.size // _GROUP
    if 4 * k < groups:
        # Columns, not runs: a maximum over axis 0 is five times as fast as one over axis 1.
        largest = row[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
        bound = np.partition(largest, groups - k)[groups - k]
        ids = np.flatnonzero(row >= bound)
    elif k < row.size:
        ids = np.flatnonzero(row >= np.partition(row, row.size - k)[row.size - k])
    else:
        ids = np.arange(row.size)
    values = row[ids]
    # Stable on the negated values: equal logits stay in the order of their ids.
    order = np.argsort(-values, kind="stable")[:k]
    return ids[order], values[order]
