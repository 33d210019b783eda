"""Knows no file name: single reads as the kernel takes them, and whoever carries them out.

``READ`` is struct iocb and ``ENDED`` struct io_event of linux/aio_abi.h, so that arrays of them
are handed over as they are; threads take the same arrays where Linux's calls are missing.
"""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

READ: Final = np.dtype(
    [
        ("data", "<u8"),  # comes back when the read has ended
        ("key", "<u4"),
        ("rw_flags", "<i4"),
        ("opcode", "<u2"),  # 0: read
        ("priority", "<i2"),
        ("descriptor", "<u4"),
        ("buffer", "<u8"),
        ("bytes", "<u8"),
        ("offset", "<i8"),
        ("reserved", "<u8"),
        ("flags", "<u4"),
        ("eventfd", "<u4"),
    ]
)
# ``result``: bytes read, or an error's number below zero.
ENDED: Final = np.dtype([("data", "<u8"), ("read", "<u8"), ("result", "<i8"), ("second", "<i8")])
# Of no read: somebody called ``wake``.
WOKEN: Final = (1 << 64) - 1

Array = NDArray[np.void]


class Calls(Protocol):
    """Reads of one disk. One thread submits and takes back; any may wake it."""

    def submit(self, reads: Array, first: int, count: int) -> int:
        """Begin ``count`` of ``reads``, of type ``READ``, from ``first``; how many were taken.

        Raises:
            OSError: the first was not: ``EAGAIN`` for now, else what is wrong with it.
        """
        ...

    def ended(self, least: int, seconds: float | None = None) -> Array:
        """What has ended, of type ``ENDED``: at least so many, fewer after ``seconds``. A call of
        ``wake`` counts as one, and is not among them. ``0`` does not wait. What is given is true
        until the next call."""
        ...

    def wake(self) -> None:
        """End ``ended(1)``, now or when it is called next."""
        ...

    def close(self) -> None:
        """After reads under way have ended: only then may their memory go."""
        ...
