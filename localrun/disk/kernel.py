"""Knows no file name and no clock: Linux's asynchronous reads, called without a library.

Threads that each wait for a read of their own stop at a fraction of what a drive gives; here one
thread hands the kernel many reads and takes them back as they end. io_uring would do the same with
fewer calls, but containers commonly forbid it. Structures: linux/aio_abi.h. Calls: io_setup(2),
io_submit(2), io_getevents(2), io_destroy(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from types import TracebackType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from localrun.disk.calls import ENDED, READ, WOKEN, Array

# (io_setup, io_destroy, io_submit, io_getevents), asm/unistd.h of each architecture.
_NUMBERS: Final = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4)}


def available() -> bool:
    """Whether this system has the calls, and no sandbox forbids them."""
    if sys.platform != "linux" or platform.machine() not in _NUMBERS:
        return False
    try:
        with KernelCalls(1) as calls:
            calls.wake()
            calls.ended(1, 1.0)
            return not calls.woken
    except OSError:
        return False


class KernelCalls:
    """Up to ``depth`` reads under way.

    Raises:
        OSError: from every method, as the kernel says it.
    """

    def __init__(self, depth: int) -> None:
        self._setup, self._destroy, self._submit, self._events = _NUMBERS[platform.machine()]
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._call.restype = ctypes.c_long
        self._call.argtypes = [ctypes.c_long] * 6
        self._depth = depth
        self._reads: Array | None = None
        self._pointers, self._pointers_at = np.empty(0, np.uint64), 0
        self._done = np.empty(depth + 1, ENDED)
        self._done_at = self._done.ctypes.data
        # A read of nothing that ends at once: the one way to end a wait for others.
        self._nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._wake = np.zeros(1, READ)
        self._wake["data"], self._wake["descriptor"] = WOKEN, self._nothing
        self._wake_pointer = _pointers(self._wake)
        self._wake_at = self._wake_pointer.ctypes.data
        self.woken = False
        """Whether ``wake`` was called and has not ended a wait yet."""
        context = ctypes.c_ulong(0)
        if self._call(self._setup, depth + 1, ctypes.addressof(context), 0, 0, 0) < 0:
            os.close(self._nothing)
            raise _failed()
        self._context = context.value

    def submit(self, reads: Array, first: int, count: int) -> int:
        if reads is not self._reads:
            self._reads, self._pointers = reads, _pointers(reads)
            self._pointers_at = self._pointers.ctypes.data
        at = self._pointers_at + first * self._pointers.itemsize
        taken = int(self._call(self._submit, self._context, min(count, self._depth), at, 0, 0))
        if taken < 0:
            raise _failed()
        return taken

    def ended(self, least: int, seconds: float | None = None) -> Array:
        until = None if seconds is None else _time(seconds)
        at = 0 if until is None else ctypes.addressof(until)
        most = len(self._done)
        count = int(self._call(self._events, self._context, least, most, self._done_at, at))
        if count < 0:
            error = _failed()
            if error.errno != errno.EINTR:
                raise error
            count = 0
        done: Array = self._done[:count]
        if self.woken and (left := done["data"] != WOKEN).sum() < count:
            self.woken = False
            done = done[left]
        return done

    def wake(self) -> None:
        if not self.woken:
            self.woken = True
            if self._call(self._submit, self._context, 1, self._wake_at, 0, 0) < 0:
                self.woken = False
                raise _failed()

    def close(self) -> None:
        if self._context:
            # The kernel waits here for reads under way.
            self._call(self._destroy, self._context, 0, 0, 0, 0)
            self._context = 0
            os.close(self._nothing)

    def __enter__(self) -> KernelCalls:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _pointers(reads: Array) -> NDArray[np.uint64]:
    """Where each of ``reads`` lies."""
    at = np.arange(len(reads), dtype=np.uint64)
    at *= np.uint64(READ.itemsize)
    at += np.uint64(reads.ctypes.data)
    return at


def _failed() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


def _time(seconds: float) -> ctypes.Array[ctypes.c_long]:
    """struct timespec."""
    whole = int(seconds)
    return (ctypes.c_long * 2)(whole, int((seconds - whole) * 1e9))
