"""Knows no system call: reads begun together and waited for, as whoever reads sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

# What direct reads ask of offsets, lengths and memory on every disk met so far.
ALIGNMENT: Final = 4096
STALL_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Requests:
    """Reads that are begun together: of file ``files[i]``, ``lengths[i]`` bytes from ``offsets[i]``
    go to byte ``places[i]`` of the memory that they are begun with. All int64 ``[n]``; offsets,
    lengths and places are multiples of ``ALIGNMENT``. A read may reach over the end of its file by
    less than one ``ALIGNMENT``."""

    files: NDArray[np.int64]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    places: NDArray[np.int64]


def nobody() -> None:
    """Nobody asks to end the wait."""


class Pending(Protocol):
    """Reads under way. The memory they go to is theirs until ``done``, whoever waits or not."""

    @property
    def done(self) -> bool:
        """Whether none of them is under way, failed or not."""
        ...

    @property
    def seconds(self) -> float:
        """From the first of them being handed to the disk to the last one's end; so far, before."""
        ...

    def wait(self, check: Callable[[], None] = nobody) -> None:
        """Until all have ended. ``check`` is called ten times a second meanwhile; what it raises
        ends the wait, and the reads go on. What was begun ahead of need is needed from now on.
        Only after it has returned may the bytes be trusted; it may be called again.

        Raises:
            DiskReadError: one failed or ended early, its file was written to or replaced since it
                was opened, or nothing has ended for ``STALL_S``. After a failure the reads that the
                disk was not given yet are left out.
        """
        ...

    def leave(self) -> None:
        """Nobody will wait: what the disk was not given yet is not read, and counts as failed."""
        ...


class Reader(Protocol):
    """Reads of several files, a queue for each disk that they lie on. Any thread may begin."""

    def begin(self, requests: Requests, into: NDArray[np.uint8], *, ahead: bool = False) -> Pending:
        """``into`` is memory that begins on ``ALIGNMENT``. Reads ``ahead`` of need are handed to a
        disk only while nothing else waits for it.

        Raises:
            DiskReadError: the reader is closed, or a read begins or ends behind its file's end.
            ValueError: a read that is not aligned, or that leaves ``into``.
        """
        ...

    @property
    def bytes_read(self) -> int:
        """Since it was opened, rounding to ``ALIGNMENT`` included."""
        ...

    @property
    def busy(self) -> bool:
        """Whether reads that somebody needs now are under way or waiting."""
        ...

    def close(self) -> None:
        """After the reads under way have ended, or a second later; what the disk was not given yet
        fails. Again does nothing."""
        ...
