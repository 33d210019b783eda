"""Knows no model and no store: random reads past the page cache, many at once, timed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from localrun.errors import LocalrunError

_IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})


@dataclass(frozen=True, slots=True)
class Timed:
    """``count`` reads that took ``seconds`` in all."""

    count: int
    seconds: float

    @property
    def rate(self) -> float:
        """Reads a second."""
        return self.count / self.seconds


class Reads(Protocol):
    """Random reads of one file."""

    def __call__(self, block: int, depth: int, seconds: float) -> Timed:
        """Reads of ``block`` bytes at random places, ``depth`` at once, for about ``seconds``."""
        ...


@contextmanager
def direct_reads(path: Path, filesystem: str) -> Iterator[Reads]:
    """Reads of ``path`` that reach its disk. ``filesystem`` is its type, as ``Disk.filesystem``.

    Raises:
        LocalrunError: the file cannot be read past the page cache, or lies in memory.
    """
    if filesystem in _IN_MEMORY:
        raise no_direct(path, f"{filesystem} lies in memory")
    # Costs the time of numpy, which a command that only looks at a machine need not spend.
    from localrun.disk.files import open_direct
    from localrun.disk.timing import timed_reads

    try:
        descriptor = open_direct(path)
    except OSError as error:
        raise no_direct(path, error.strerror or str(error)) from error
    try:

        def reads(block: int, depth: int, seconds: float) -> Timed:
            size = os.fstat(descriptor).st_size
            if size < block:
                raise no_direct(path, f"{size} bytes, less than one read of {block}")
            try:
                return Timed(*timed_reads(descriptor, block, depth, seconds))
            except OSError as error:
                raise no_direct(path, error.strerror or str(error)) from error

        yield reads
    finally:
        os.close(descriptor)


def no_direct(path: Path, reason: str) -> LocalrunError:
    """Why a disk's speed cannot be measured at ``path``."""
    return LocalrunError(
        f"{path}: the disk's speed cannot be measured here: {reason}",
        hint="plans assume a speed by the kind of disk; --disk-speed states it",
    )
