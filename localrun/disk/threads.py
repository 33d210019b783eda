"""Knows no file name: reads by threads that each wait for one, where the kernel takes no more.

For systems without Linux's calls, and for filesystems without direct reads: there a read is made
through the page cache and dropped from it afterwards.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections import deque
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Final

import numpy as np

from localrun.disk.calls import ENDED, Array

_MOST: Final = 64
_FIELDS: Final = ["data", "descriptor", "buffer", "bytes", "offset"]
_Read = tuple[int, int, int, int, int]


class ThreadCalls:
    """Up to ``depth`` reads under way, each on one of at most 64 threads. ``forget`` drops from the
    page cache what was read."""

    def __init__(self, depth: int, *, forget: bool = False) -> None:
        self._forget = forget and hasattr(os, "posix_fadvise")
        self._asked: SimpleQueue[_Read | None] = SimpleQueue()
        self._done: deque[tuple[int, int, int, int]] = deque()
        self._changed = threading.Condition()
        self._woken = False
        self._under_way = 0
        # Not of a pool, whose threads Python waits for at its end, though a read may never end.
        self._threads = [
            threading.Thread(target=self._read_on, name="disk-read", daemon=True)
            for _ in range(min(depth, _MOST))
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, reads: Array, first: int, count: int) -> int:
        self._under_way += count
        for read in reads[first : first + count][_FIELDS].tolist():
            self._asked.put(read)
        return count

    def ended(self, least: int, seconds: float | None = None) -> Array:
        with self._changed:
            self._changed.wait_for(lambda: len(self._done) + self._woken >= least, seconds)
            self._woken = False
            found = np.array(list(self._done), ENDED)
            self._done.clear()
        self._under_way -= len(found)
        return found

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify()

    def close(self) -> None:
        while self._under_way:
            self.ended(1)
        for _ in self._threads:
            self._asked.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _read_on(self) -> None:
        while (read := self._asked.get()) is not None:
            number, descriptor, address, length, offset = read
            try:
                result = _read(descriptor, address, length, offset)
            except (OSError, MemoryError, ValueError) as error:
                result = -(getattr(error, "errno", None) or errno.EIO)
            if self._forget:
                with suppress(OSError):  # what was read was read
                    os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
            with self._changed:
                self._done.append((number, 0, result, 0))
                self._changed.notify()

    def __enter__(self) -> ThreadCalls:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _read(descriptor: int, address: int, length: int, offset: int) -> int:
    memory = (ctypes.c_char * length).from_address(address)
    return os.preadv(descriptor, [memory], offset)
