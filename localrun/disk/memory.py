"""Knows no disk: memory that begins on a page, as direct reads ask for."""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Final

import numpy as np
from numpy.typing import NDArray

_HUGE: Final = 2 << 20


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """Zeros of this process alone; they take room as they are first written, where there are many
    two megabytes at a time, and leave with the array."""
    if not nbytes:
        return np.empty(0, np.uint8)
    # Python's own default is memory shared with children, which counts as a file's.
    private = (
        {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    )
    memory = mmap.mmap(-1, nbytes, **private)
    if hasattr(mmap, "MADV_DONTFORK"):
        # A child that shared it would leave the parent a copy, and the disk the original: open(2).
        with suppress(OSError):
            memory.madvise(mmap.MADV_DONTFORK)
    if nbytes >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        # A read of a megabyte then takes hold of one page instead of 256.
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)
