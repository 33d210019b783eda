"""Knows no system call: reads that were begun together, the part of them that each disk has, and
how they ended."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from localrun.disk.calls import Array
from localrun.disk.files import OpenFile
from localrun.disk.reader import nobody
from localrun.errors import DiskReadError

_TICK_S: Final = 0.1


class Queue(Protocol):
    """What reads wait in for their disk."""

    ended: int
    """Reads that have ended there, ever."""

    def begin(self, part: Part) -> None:
        """Raises: DiskReadError: nothing is read any more."""
        ...

    def hurry(self, part: Part) -> None:
        """Somebody waits for what was begun ahead of need."""
        ...

    def leave(self, part: Part) -> None:
        """Nobody will wait for it."""
        ...


class Part:
    """Reads of one disk. Its queue alone changes it, under that queue's lock."""

    __slots__ = ("ahead", "expected", "files", "left", "next", "pending", "queue", "reads", "small")

    def __init__(
        self,
        pending: Begun,
        queue: Queue,
        reads: Array,
        expected: NDArray[np.int64],
        files: Sequence[OpenFile],
        *,
        small: bool,
        ahead: bool,
    ) -> None:
        self.pending, self.queue, self.reads, self.expected = pending, queue, reads, expected
        self.files = files
        """Those that may be read, told apart by their descriptors."""
        self.small, self.ahead = small, ahead
        self.next, self.left = 0, len(reads)
        """The first read that the disk was not given yet; how many have not ended."""

    @property
    def under_way(self) -> int:
        return self.left - (len(self.reads) - self.next)

    def drop(self) -> None:
        """What the disk was not given yet will not be read."""
        self.left = self.under_way
        self.next = len(self.reads)

    def failed(self, index: int, result: int) -> None:
        """Read ``index`` gave ``result`` bytes, or an error's number below zero."""
        if result < 0:
            problem = os.strerror(-result)
        else:
            problem = f"the read ended after {result} of {self.expected[index]} bytes"
        self.pending.fail(self.file(index), int(self.reads["offset"][index]), problem)

    def file(self, index: int) -> OpenFile:
        """The file of read ``index``."""
        descriptor = int(self.reads["descriptor"][index])
        return next(file for file in self.files if file.descriptor == descriptor)


class Begun:
    """A ``Pending``. ``look`` says what has happened to its files since they were opened; the
    memory it keeps is read into by others until the last part has ended."""

    def __init__(
        self,
        into: NDArray[np.uint8],
        look: Callable[[], tuple[OpenFile, str] | None],
        stall_s: float,
    ) -> None:
        self._into: NDArray[np.uint8] | None = into
        self._look, self._stall_s = look, stall_s
        self._lock, self._over = threading.Lock(), threading.Event()
        self._failure: tuple[OpenFile, int, str] | None = None
        self._first: float | None = None
        self._last: float | None = None
        self._parts: Sequence[Part] = ()
        self._left = 0

    def consists_of(self, parts: Sequence[Part]) -> None:
        """Said once, before any of them is begun."""
        self._parts, self._left = parts, len(parts)
        if not parts:
            self._over.set()

    @property
    def done(self) -> bool:
        return self._over.is_set()

    @property
    def seconds(self) -> float:
        if self._first is None:
            return 0.0
        return (self._last or time.perf_counter()) - self._first

    @property
    def is_failed(self) -> bool:
        return self._failure is not None

    def started(self) -> None:
        """The disk was given the first reads of a part."""
        if self._first is None:
            self._first = time.perf_counter()

    def fail(self, file: OpenFile, offset: int, problem: str) -> None:
        """The first failure is the one that is told."""
        with self._lock:
            self._failure = self._failure or (file, offset, problem)

    def part_ended(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left:
                return
        self._last = time.perf_counter()
        self._into = None  # now, not when somebody looks for what only holds itself
        self._over.set()

    def wait(self, check: Callable[[], None] = nobody) -> None:
        for part in self._parts:
            if part.ahead:
                part.queue.hurry(part)
        quiet, seen = 0.0, -1
        # Ticks, not a clock: of a program that was stopped for a minute no disk has stalled.
        while not self._over.wait(_TICK_S):
            check()
            ended = sum(part.queue.ended for part in self._parts if part.left)
            quiet, seen = (quiet + _TICK_S, seen) if ended == seen else (0.0, ended)
            if quiet >= self._stall_s:
                raise self._stalled()
        if self._failure is not None:
            file, offset, problem = self._failure
            raise DiskReadError(str(file.path), offset, file.changed() or problem)
        if (found := self._look()) is not None:
            file, problem = found
            raise DiskReadError(str(file.path), self._offset(file), problem)

    def leave(self) -> None:
        for part in self._parts:
            if not self.done:
                part.queue.leave(part)

    def _stalled(self) -> DiskReadError:
        part = next((part for part in self._parts if part.left), self._parts[0])
        offset = int(part.reads["offset"][0])
        problem = f"the disk gave nothing for {self._stall_s:g} s"
        return DiskReadError(str(part.file(0).path), offset, problem)

    def _offset(self, file: OpenFile) -> int:
        """Where the first read of ``file`` began."""
        for part in self._parts:
            found = np.flatnonzero(part.reads["descriptor"] == file.descriptor)
            if len(found):
                return int(part.reads["offset"][found[0]])
        return 0
