"""Knows no format: bytes by offset, and a cursor that checks each claim against what remains.

A ``Source`` is a local file or bytes in memory; a remote file read by range is one more.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from localrun.errors import HeaderError, ModelNotFoundError

_WINDOW = 256 * 1024
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Source(Protocol):
    """Bytes by offset. ``read`` returns exactly ``length`` bytes or raises HeaderError."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...


class Lookable(Protocol):
    """The same for whoever only looks at the bytes: they may lie in memory of somebody else's."""

    def read(self, offset: int, length: int) -> bytes | memoryview: ...


class BytesSource:
    """A source already in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        part = self._data[offset : offset + length]
        if len(part) != length:
            raise HeaderError("file", offset, f"{length} bytes expected, {len(part)} there")
        return part


class FileSource:
    """A local regular file, opened once; nothing is mapped. Several threads may read at once.

    Raises:
        ModelNotFoundError: no such file.
        HeaderError: it cannot be read, or it is no regular file.
    """

    def __init__(self, path: Path) -> None:
        # A FIFO in a file's place would block the open for ever.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError as error:
            raise ModelNotFoundError(f"{path}: no such file") from error
        except OSError as error:
            raise HeaderError("file", 0, error.strerror or "unreadable", file=path.name) from error
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise HeaderError("file", 0, "not a regular file", file=path.name)
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        self._seeking = threading.Lock()
        self._size = status.st_size

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        parts: list[bytes] = []
        missing = length
        try:
            while missing and (part := self._some(offset + length - missing, missing)):
                parts.append(part)
                missing -= len(part)
        except OSError as error:
            raise HeaderError("file", offset, error.strerror or "unreadable") from error
        if missing:
            raise HeaderError("file", offset, f"{missing} bytes fewer than the file had at first")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    if sys.platform == "win32":

        def _some(self, offset: int, length: int) -> bytes:
            """Windows reads only where the file's one position is."""
            with self._seeking:
                self._file.seek(offset)
                return self._file.read(length)
    else:

        def _some(self, offset: int, length: int) -> bytes:
            return os.pread(self._file.fileno(), length, offset)

    def forget(self) -> None:
        """Let the system drop the pages that it keeps of the file, where it can be told to."""
        if sys.platform == "linux":
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Reader:
    """A cursor over the first ``limit`` bytes of a source, little endian.

    ``position`` is the offset from the file's start. What is behind it stays in memory, so the
    window never outgrows the limit; it doubles, so a header costs a few reads.
    """

    def __init__(self, source: Source, *, limit: int) -> None:
        self._source = source
        self._end = min(source.size, limit)
        self._capped = source.size > limit
        self._window = b""
        self.position = 0

    @property
    def remaining(self) -> int:
        return self._end - self.position

    def require(self, count: int, field: str) -> None:
        """Hold that ``count`` more bytes exist, before anything is made of them.

        Raises:
            HeaderError: they do not.
        """
        if count > self.remaining:
            whose = "the header may still take" if self._capped else "remain in the file"
            raise HeaderError(
                field, self.position, f"needs {count} bytes where {self.remaining} {whose}"
            )

    def _fill(self, stop: int) -> None:
        have = len(self._window)
        if stop > have:
            want = min(self._end, max(stop, 2 * have, _WINDOW))
            self._window += self._source.read(have, want - have)

    def take(self, count: int, field: str) -> bytes:
        self.require(count, field)
        start, stop = self.position, self.position + count
        self._fill(stop)
        self.position = stop
        return self._window[start:stop]

    def passed(self, start: int) -> bytes:
        """The bytes from ``start`` to here once more."""
        return self._window[start : self.position]

    def u32(self, field: str) -> int:
        value: int = _U32.unpack(self.take(4, field))[0]
        return value

    def u64(self, field: str) -> int:
        value: int = _U64.unpack(self.take(8, field))[0]
        return value

    def string(self, field: str, *, longest: int) -> bytes:
        """Bytes after a 64-bit length."""
        start = self.position
        length = self.u64(field)
        if length > longest:
            raise HeaderError(field, start, f"length {length} is over the limit of {longest}")
        return self.take(length, field)

    def strings(self, count: int, field: str, *, longest: int) -> tuple[str, ...]:
        """``count`` strings; bytes that are not UTF-8 become lone surrogates (PEP 383).

        This loop is the reader's hot path: a vocabulary has hundreds of thousands of entries.
        """
        self.require(8 * count, field)
        found: list[str] = []
        append, unpack = found.append, _U64.unpack_from
        while len(found) < count:
            window, position = self._window, self.position
            end = len(window) - 8
            for _ in range(count - len(found)):
                if position > end:
                    break
                start = position + 8
                stop = start + unpack(window, position)[0]
                if stop > end + 8 or stop - start > longest:
                    break
                append(window[start:stop].decode("utf-8", "surrogateescape"))
                position = stop
            self.position = position
            if len(found) < count:
                self._reach_next_string(f"{field}[{len(found)}]", longest)
        return tuple(found)

    def _reach_next_string(self, field: str, longest: int) -> None:
        start = self.position
        self.string(field, longest=longest)
        self.position = start
