"""Knows no file name and no clock: Linux's asynchronous reads, called without a library.

Threads that each wait for a read of their own stop at a fraction of what a drive gives; here one
thread hands the kernel many reads and takes them back as they end. Structures: linux/aio_abi.h.
Calls: io_setup(2), io_submit(2), io_getevents(2), io_destroy(2).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import struct
import sys
from types import TracebackType

# (io_setup, io_destroy, io_submit, io_getevents), asm/unistd.h of each architecture.
_NUMBERS = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4)}
_PREAD = 0
# struct iocb: data, key, rw_flags, opcode, priority, descriptor, buffer, bytes, offset, reserved,
# flags, eventfd.
_IOCB = struct.Struct("<QIiHhIQQqQII")
_OFFSET = struct.Struct("<q")
_OFFSET_AT = 40
# struct io_event: data, address of the iocb, result, second result.
_EVENT = struct.Struct("<QQqq")


def available() -> bool:
    """Whether this system has the calls, and no sandbox forbids them."""
    if sys.platform != "linux" or platform.machine() not in _NUMBERS:
        return False
    try:
        with KernelReads(-1, 4096, 1):
            return True
    except OSError:
        return False


class KernelReads:
    """Up to ``depth`` reads of ``block`` bytes under way on ``descriptor``, one in each slot.

    The buffers begin on pages, as direct reads ask for. What was read is thrown away.

    Raises:
        OSError: from every method, as the kernel says it.
    """

    def __init__(self, descriptor: int, block: int, depth: int) -> None:
        self._setup, self._destroy, self._submit, self._events = _NUMBERS[platform.machine()]
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._call.restype = ctypes.c_long
        self._block = block
        self._memory = mmap.mmap(-1, depth * block)
        self._view = (ctypes.c_char * (depth * block)).from_buffer(self._memory)
        buffer = ctypes.addressof(self._view)
        self._requests = bytearray(depth * _IOCB.size)
        for slot in range(depth):
            fields = (slot, 0, 0, _PREAD, 0, max(descriptor, 0), buffer + slot * block, block)
            _IOCB.pack_into(self._requests, slot * _IOCB.size, *fields, 0, 0, 0, 0)
        first = (ctypes.c_char * len(self._requests)).from_buffer(self._requests)
        self._first = ctypes.addressof(first)
        self._addresses = (ctypes.c_ulong * depth)()
        self._done = bytearray(depth * _EVENT.size)
        self._done_view = (ctypes.c_char * len(self._done)).from_buffer(self._done)
        self._context = ctypes.c_ulong(0)
        self._checked(self._setup, ctypes.c_uint(depth), ctypes.byref(self._context))

    def submit(self, slots: list[int], offsets: list[int]) -> int:
        """Begin a read in each slot; how many of them, from the first, the kernel took."""
        for index, (slot, offset) in enumerate(zip(slots, offsets, strict=True)):
            at = slot * _IOCB.size
            _OFFSET.pack_into(self._requests, at + _OFFSET_AT, offset)
            self._addresses[index] = self._first + at
        return self._checked(
            self._submit, self._context, ctypes.c_long(len(slots)), self._addresses
        )

    def wait(self, least: int) -> list[int]:
        """The slots whose reads have ended, at least so many.

        Raises:
            OSError: one of them failed, or gave less than a block.
        """
        most = len(self._done) // _EVENT.size
        count = self._checked(
            self._events,
            self._context,
            ctypes.c_long(least),
            ctypes.c_long(most),
            self._done_view,
            None,
        )
        slots = []
        for slot, _, result, _ in _EVENT.iter_unpack(self._done[: count * _EVENT.size]):
            if result != self._block:
                code = -result if result < 0 else errno.EIO
                raise OSError(code, os.strerror(code))
            slots.append(slot)
        return slots

    def _checked(self, number: int, *arguments: object) -> int:
        while True:
            result = int(self._call(ctypes.c_long(number), *arguments))
            if result >= 0:
                return result
            if (code := ctypes.get_errno()) != errno.EINTR:
                raise OSError(code, os.strerror(code))

    def __enter__(self) -> KernelReads:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The kernel waits here for reads under way: only then may their memory go.
        self._checked(self._destroy, self._context)
        del self._view
        self._memory.close()
