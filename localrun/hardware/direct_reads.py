"""Knows no model and no store: random reads past the page cache, many at once, timed."""

from __future__ import annotations

import mmap
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from localrun.errors import LocalrunError
from localrun.hardware import kernel_reads
from localrun.hardware.kernel_reads import KernelReads

ALIGNMENT = 4096
_MOST_THREADS = 64
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
    descriptor = _open(path)
    try:
        timed = _kernel_timed if kernel_reads.available() else _threads_timed

        def reads(block: int, depth: int, seconds: float) -> Timed:
            size = os.fstat(descriptor).st_size
            if size < block:
                raise no_direct(path, f"{size} bytes, less than one read of {block}")
            try:
                return timed(descriptor, block, depth, seconds, _places(size, block))
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


def _open(path: Path) -> int:
    direct = getattr(os, "O_DIRECT", 0)
    if not hasattr(os, "preadv") or not (direct or sys.platform == "darwin"):
        raise no_direct(path, "this system has no direct reads")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | direct)
    except OSError as error:
        raise no_direct(path, error.strerror or str(error)) from error
    around_the_cache(descriptor)
    return descriptor


def around_the_cache(descriptor: int) -> None:
    """On a Mac: what is read or written by this descriptor leaves no copy in memory."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_NOCACHE, 1)


def _places(size: int, block: int) -> Callable[[], int]:
    """Random offsets, aligned, at which ``block`` bytes can be read."""
    steps = (size - block) // ALIGNMENT + 1
    pick = random.Random(size).random  # noqa: S311  # where to read is no secret
    return lambda: int(pick() * steps) * ALIGNMENT


def _kernel_timed(
    descriptor: int, block: int, depth: int, seconds: float, place: Callable[[], int]
) -> Timed:
    """Keeps ``depth`` reads under way; each that ends gives its slot to a new place."""
    ended, waiting = 0, list(range(depth))
    under_way = 0
    # An eighth at a time: fewer calls, and the queue is never less than seven eighths full.
    least = max(1, depth // 8)
    with KernelReads(descriptor, block, depth) as reads:
        start = now = time.perf_counter()
        while now - start < seconds or not ended:
            if waiting:
                taken = reads.submit(waiting, [place() for _ in waiting])
                under_way, waiting = under_way + taken, waiting[taken:]
            done = reads.wait(min(least, under_way))
            now = time.perf_counter()
            ended += len(done)
            under_way -= len(done)
            waiting += done
    return Timed(ended, now - start)


def _threads_timed(
    descriptor: int, block: int, depth: int, seconds: float, place: Callable[[], int]
) -> Timed:
    """One thread for each read under way, as many as there can sensibly be."""
    threads = min(depth, _MOST_THREADS)
    start = time.perf_counter()

    def read_on() -> int:
        count = 0
        with mmap.mmap(-1, block) as buffer:
            while time.perf_counter() - start < seconds or not count:
                if os.preadv(descriptor, [buffer], place()) != block:
                    raise OSError("a read ended early")
                count += 1
        return count

    with ThreadPoolExecutor(threads) as pool:
        counts = [pool.submit(read_on) for _ in range(threads)]
        total = sum(count.result() for count in counts)
    return Timed(total, time.perf_counter() - start)
