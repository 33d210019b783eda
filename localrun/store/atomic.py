"""Knows no model: the one way a file of the store comes into being.

A file is written beside its place under a name nobody can guess, hashed on the way, synced,
renamed, and its directory synced. Whoever looks sees the old file or the whole new one.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from localrun.store import disk
from localrun.store.disk import disk_errors, make_private
from localrun.store.layout import temporary_name


class AtomicFile:
    """A file on its way to ``target``. Leaving the ``with`` without ``commit`` discards it.

    ``expected_bytes`` is the final size where it is known: a full disk is then reported with the
    bytes that are missing. ``parents`` makes the folder again that a removal took meanwhile, as it
    may on a disk without locks.

    Raises:
        DiskFullError, LocalrunError: from every method, as ``disk_errors``; nothing is published.
    """

    def __init__(self, target: Path, *, expected_bytes: int = 0, parents: bool = False) -> None:
        self.target = target
        self.written = 0
        self._expected = expected_bytes
        self._temporary = target.with_name(temporary_name(f".{target.name}"))
        self._sha256 = hashlib.sha256()
        self._descriptor: int | None = None
        with disk_errors(target, expected_bytes):
            try:
                self._descriptor = disk.DISK.create(self._temporary)
            except FileNotFoundError:
                if not parents:
                    raise
                make_private(target.parent)
                self._descriptor = disk.DISK.create(self._temporary)

    def write(self, data: bytes | memoryview) -> None:
        """Append all of ``data``."""
        if self._descriptor is None:
            raise ValueError("write to a closed AtomicFile")
        rest = memoryview(data).cast("B")
        self._sha256.update(rest)
        with disk_errors(self.target, max(self._expected - self.written, len(rest))):
            while rest:
                count = disk.DISK.write(self._descriptor, rest)
                if count == 0:  # a disk that takes nothing and reports nothing is full
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self.written += count
                rest = rest[count:]

    @property
    def path(self) -> Path:
        """Where the bytes lie until ``commit``, for whoever reads them back before that."""
        return self._temporary

    @property
    def sha256(self) -> str:
        """Of what has been written so far, in hexadecimal."""
        return self._sha256.hexdigest()

    def commit(self) -> None:
        """Publish at ``target`` in place of what was there; a link there is not followed."""
        if self._descriptor is None:
            raise ValueError("commit of a closed AtomicFile")
        fresh = not os.path.lexists(self.target)
        try:
            with disk_errors(self.target, max(self._expected - self.written, 1)):
                disk.DISK.sync(self._descriptor)
                self._close()
                disk.DISK.rename(self._temporary, self.target)
                try:
                    disk.DISK.sync_directory(self.target.parent)
                except FileNotFoundError:
                    pass  # published, and removed with its folder by someone else since
                except OSError:
                    if fresh:  # what failed must not be visible; what was there before is
                        disk.DISK.unlink(self.target)
                    raise
        finally:
            self.discard()

    def discard(self) -> None:
        """Leave nothing behind; harmless after ``commit``."""
        self._close()
        with suppress(OSError):
            disk.DISK.unlink(self._temporary)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._descriptor is not None:
            self.discard()


def discard(paths: Iterable[Path]) -> None:
    """Remove files that no record speaks of, and folders that they leave empty. Never fails."""
    for path in paths:
        with suppress(OSError):
            disk.DISK.unlink(path)
            path.parent.rmdir()
