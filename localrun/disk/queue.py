"""Knows no file: the reads of one disk, handed to it by one thread so that it is never short of
any.

Reads that somebody needs go in the order they were begun; reads ahead of need only while there is
none of them, and few at once, so that one that comes does not wait long.
"""

from __future__ import annotations

import errno
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import numpy as np

from localrun.disk.calls import Array, Calls
from localrun.disk.pending import Part
from localrun.errors import DiskReadError

_AHEAD_BYTES: Final = 8 << 20
# Of small reads an eighth of what is under way is taken back at once: fewer calls, and the disk
# still has seven eighths.
_TAKEN_BACK: Final = 8
_RETRY_S: Final = 0.01
_INDEX_BITS: Final = 32
_INDEX: Final = np.uint64((1 << _INDEX_BITS) - 1)
# Before anything was read, disks are taken for alike.
_FIRST_RATE: Final = 1e9
_RATE_S: Final = 0.25


class DiskQueue:
    """``closed`` is called when no read is left and none will come."""

    def __init__(self, calls: Calls, depth: int, closed: Callable[[], None]) -> None:
        self._calls, self._depth, self._closed = calls, depth, closed
        self._lock = threading.Lock()
        self._needed: deque[Part] = deque()
        self._ahead: deque[Part] = deque()
        self._numbers = itertools.count()
        self._parts: dict[int, Part] = {}
        """By the upper half of their reads' ``data``: what is here is kept until it has ended."""
        self._under_way = self._under_way_ahead = 0
        self._asleep = self._closing = self._full_of_small = self._refused = False
        self.ended = self.bytes_read = self.backlog = 0
        """``backlog``: bytes that were begun and have not ended."""
        self.rate = _FIRST_RATE
        """Bytes a second of late."""
        self._since, self._bytes_since = 0.0, 0
        self._thread = threading.Thread(target=self._run, name="disk-queue", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether reads that somebody needs now are under way or waiting."""
        with self._lock:
            waiting = any(part.next < len(part.reads) for part in self._needed)
            return waiting or self._under_way > self._under_way_ahead

    def begin(self, part: Part) -> None:
        with self._lock:
            if self._closing:
                raise DiskReadError(
                    str(part.file(0).path), int(part.reads["offset"][0]), "the reader is closed"
                )
            self._stir()  # first: where that fails nothing is begun
            number = next(self._numbers)
            part.reads["data"] = np.arange(len(part.reads), dtype=np.uint64)
            part.reads["data"] |= np.uint64(number << _INDEX_BITS)
            self._parts[number] = part
            self.backlog += int(part.expected.sum())
            (self._ahead if part.ahead else self._needed).append(part)

    def hurry(self, part: Part) -> None:
        with self._lock:
            if not part.ahead:
                return
            part.ahead = False
            self._under_way_ahead -= part.under_way
            if part in self._ahead:
                self._ahead.remove(part)
                self._needed.append(part)
                self._stir()

    def leave(self, part: Part) -> None:
        with self._lock:
            if part.next < len(part.reads):
                offset = int(part.reads["offset"][part.next])
                part.pending.fail(part.file(part.next), offset, "nobody waits for it any more")
                self._drop(part)

    def close(self) -> None:
        """Nothing more is handed to the disk; does not wait."""
        with self._lock:
            if not self._closing:
                self._closing = True
                self._calls.wake()

    def join(self, seconds: float) -> None:
        """Until all has ended, or so long: the thread stays behind then, and holds the memory."""
        self._thread.join(seconds)

    def _stir(self) -> None:
        if self._asleep:
            self._calls.wake()
            self._asleep = False

    def _run(self) -> None:
        problem = ""
        try:
            while self._fill():
                least = 1
                if self._full_of_small:
                    least = max(1, self._under_way // _TAKEN_BACK)
                done = self._calls.ended(least, _RETRY_S if self._refused else None)
                if len(done):
                    with self._lock:
                        self._account(done)
        except (OSError, MemoryError, LookupError, ValueError) as error:
            # Or all that wait, now and later, would wait for nobody.
            problem = f"reads of this disk have ended: {error}"
            with self._lock:
                self._closing, self._asleep = True, False
        self._calls.close()
        with self._lock:
            self._needed.clear()
            self._ahead.clear()
            for number, part in tuple(self._parts.items()):
                part.pending.fail(part.file(0), int(part.reads["offset"][0]), problem)
                part.left = 0
                self._end(part, number)
        self._closed()

    def _fill(self) -> bool:
        """Hands over what there is room for. False: closed, and nothing is under way."""
        self._refused = False
        while True:
            with self._lock:
                if self._closing:
                    self._drop_waiting()
                part, count = self._next()
                if part is None:
                    self._asleep = self._under_way < self._depth
                    return not self._closing or self._under_way > 0
                if not self._under_way:
                    self._since, self._bytes_since = time.perf_counter(), 0
                first = part.next
                part.next += count
                self._count(part, count)
                self._full_of_small = part.small and self._under_way == self._depth
            part.pending.started()
            if not self._hand_over(part, first, count):
                self._asleep = False
                return True

    def _hand_over(self, part: Part, first: int, count: int) -> bool:
        """Outside the lock: the kernel may take its time. False: it takes no more for now."""
        refused = 0
        try:
            taken = self._calls.submit(part.reads, first, count)
        except OSError as error:
            taken, refused = 0, error.errno or errno.EIO
        if taken == count:
            return True
        with self._lock:
            part.next -= count - taken
            self._count(part, taken - count)
            if refused and refused != errno.EAGAIN:
                part.failed(first, -refused)
                self._drop(part)
                return True
        self._refused = True
        return False

    def _next(self) -> tuple[Part | None, int]:
        """Whose reads go next, and how many of them."""
        room = self._depth - self._under_way
        for waiting in (self._needed, self._ahead):
            while waiting:
                part = waiting[0]
                if part.pending.is_failed:
                    self._drop(part)
                if part.next == len(part.reads):
                    waiting.popleft()
                    continue
                if part.ahead:
                    if self._under_way > self._under_way_ahead:
                        return None, 0
                    few = max(1, _AHEAD_BYTES // int(part.reads["bytes"][part.next]))
                    room = min(room, few - self._under_way)
                count = min(room, len(part.reads) - part.next)
                return (part, count) if count > 0 else (None, 0)
        return None, 0

    def _count(self, part: Part, more: int) -> None:
        self._under_way += more
        if part.ahead:
            self._under_way_ahead += more

    def _account(self, done: Array) -> None:
        numbers = done["data"] >> np.uint64(_INDEX_BITS)
        first = int(numbers[0])
        if len(done) == 1 or (numbers == numbers[0]).all():
            self._part_read(first, done)
        else:
            for number in set(numbers.tolist()):
                self._part_read(number, done[numbers == number])
        self.ended += len(done)
        now = time.perf_counter()
        if (spent := now - self._since) >= _RATE_S or not self._under_way:
            # Short bursts say little: they weigh by how long they took.
            weight = min(1.0, spent / _RATE_S) / 2
            if spent > 0:
                self.rate += weight * (self._bytes_since / spent - self.rate)
            self._since, self._bytes_since = now, 0

    def _part_read(self, number: int, done: Array) -> None:
        """These reads of one part have ended."""
        part = self._parts[number]
        index = (done["data"] & _INDEX).astype(np.int64)
        result, expected = done["result"], part.expected[index]
        self._count(part, -len(done))
        part.left -= len(done)
        self.backlog -= int(expected.sum())
        wrong = result != expected
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            part.failed(int(index[at]), int(result[at]))
            result = result.clip(0)
            self._drop(part)
        read = int(result.sum())
        self.bytes_read += read
        self._bytes_since += read
        self._end(part, number)

    def _drop(self, part: Part) -> None:
        """What the disk was not given yet of a part that has failed will not be read."""
        self.backlog -= int(part.expected[part.next :].sum())
        part.drop()
        self._end(part, int(part.reads["data"][0]) >> _INDEX_BITS)

    def _end(self, part: Part, number: int) -> None:
        if not part.left and self._parts.pop(number, None) is not None:
            part.pending.part_ended()

    def _drop_waiting(self) -> None:
        for part in (*self._needed, *self._ahead):
            if part.next < len(part.reads):
                offset = int(part.reads["offset"][part.next])
                part.pending.fail(part.file(part.next), offset, "the reader was closed")
                self._drop(part)
        self._needed.clear()
        self._ahead.clear()
