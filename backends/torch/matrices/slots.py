"""Knows no cache: the experts of a layer in fewer places than there are experts.

A place holds one expert's matrices exactly as a bank that holds all of them does, so that products
by either are the same bits.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from localrun.formats.extent import Extent


class ExpertSlots(Protocol):
    """``slots`` places for the ``count`` experts of a layer, empty at first."""

    @property
    def name(self) -> str:
        """Of the layer's experts, for errors, with ``{e}`` for the expert's number."""
        ...

    @property
    def count(self) -> int: ...

    @property
    def slots(self) -> int: ...

    @property
    def slot_nbytes(self) -> int:
        """Of one place."""
        ...

    @property
    def read_nbytes(self) -> int:
        """What is read of files for one expert."""
        ...

    def extents(self, expert: int) -> tuple[Extent, ...]:
        """Where an expert's bytes lie, neighbours joined: one to three stretches."""
        ...

    def fill(self, slot: int, expert: int) -> None:
        """Put an expert into a place. Its bytes are read through the files' sources, which give
        what was staged (``localrun.disk.staged``). Several threads may fill different places.

        Raises:
            SourceError: it holds what is no number. HeaderError: the file cannot be read.
        """
        ...

    def __call__(self, x: Tensor, slots: Tensor, weights: Tensor, tokens: int) -> Tensor:
        """What each pick adds, before the sum over a token's picks: ``[n, K, D]`` of ``x``
        ``[n, D]``, places int64 ``[n, K]`` and float32 ``[n, K]``. ``tokens`` are those of the
        whole step, which decide about kernels."""
        ...

    def release(self, first: int) -> int:
        """Give the memory of places ``first`` and on back to the system; so many bytes it was."""
        ...

    def close(self) -> None: ...
