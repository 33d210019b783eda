"""Knows no context: which items of a step are computed together, and where their rows belong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from localrun.engine.runner import BatchItem


def passes(batch: Sequence[BatchItem], *, streams: bool, apart: bool) -> list[list[int]] | None:
    """Items by their places in ``batch``, a list for each call of ``llama_decode``.

    None is one call for all as they come, which one stream always takes. Streams are computed
    together as far as their ids are neighbours and come in their order. ``apart`` gives each length
    of items a call of its own: the library would cut several to the shortest and compute what is
    left over alone, and the sums of a lone token are not those of a token among others of its
    sequence.
    """
    if not streams:
        return None
    ids = [item.sequence for item in batch]
    unlike = apart and len({len(item.tokens) for item in batch}) > 1
    if ids == sorted(set(ids)) and not unlike:
        return None
    in_order = sorted(range(len(batch)), key=ids.__getitem__)
    if not apart:
        return [in_order]
    if len(set(ids)) < len(ids):
        return [[at] for at in range(len(batch))]
    by_length: dict[int, list[int]] = {}
    for at in in_order:
        by_length.setdefault(len(batch[at].tokens), []).append(at)
    return list(by_length.values())


def rows_of(item: BatchItem) -> int:
    """How many rows of logits an item brings."""
    return len(item.tokens) if item.logits == "all" else int(item.logits == "last")


class Gathered:
    """Rows of several calls, or of one that took items in another order, as a batch has them."""

    def __init__(self, batch: Sequence[BatchItem], width: int) -> None:
        counts = [rows_of(item) for item in batch]
        self._ends = np.cumsum(counts).tolist()
        self._counts = counts
        self.rows = np.empty((sum(counts), width), np.float32)

    def add(self, chosen: Sequence[int], rows: NDArray[np.float32]) -> None:
        """Put in the rows of the items at ``chosen``."""
        start = 0
        for at in chosen:
            count, end = self._counts[at], self._ends[at]
            self.rows[end - count : end] = rows[start : start + count]
            start += count
