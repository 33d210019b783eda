"""Knows no model: the calls through which the store reaches a disk, and what a disk answers.

Everything goes through ``DISK``, so that tests can make each call fail or stop after it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from localrun.errors import DiskFullError, LocalrunError

_BLOCK = 4096  # the least a disk gives out: a directory's entry, a small file
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)


class Disk:
    """The calls through which every byte of the store reaches a disk."""

    def create(self, path: Path) -> int:
        flags = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        return os.open(path, _CREATE | flags, 0o600)

    def write(self, descriptor: int, data: memoryview) -> int:
        return os.write(descriptor, data)

    def open(self, path: Path, *, append: bool = False) -> int:
        """A file of ours that is there already, to be read and written."""
        flags = os.O_RDWR | (os.O_APPEND if append else 0) | getattr(os, "O_NOFOLLOW", 0)
        return os.open(path, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))

    def write_at(self, descriptor: int, data: memoryview, offset: int) -> int:
        return os.pwrite(descriptor, data, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def sync_directory(self, path: Path) -> None:
        if os.name == "nt":  # Windows opens no directory; its rename is journalled
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def mkdir(self, path: Path) -> None:
        path.mkdir(mode=0o700)

    def symlink(self, source: Path, target: Path) -> None:
        os.symlink(source, target)

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        path.unlink()


DISK = Disk()


def make_private(directory: Path) -> None:
    """Create ``directory`` and what is missing above it, each for its owner alone.

    Raises:
        OSError: it cannot be made. A file in its place is left to whoever opens it.
    """
    for place in (*reversed(directory.parents), directory):
        if not place.exists():
            with suppress(FileExistsError):
                place.mkdir(mode=0o700)


@contextmanager
def disk_errors(place: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Turn what a disk answers into one line a user can act on.

    Raises:
        DiskFullError: no space or no quota; carries ``needed_bytes``.
        LocalrunError: any other failure of the disk, naming ``place``.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(str(place), needed_bytes or _BLOCK) from error
        reason = error.strerror or str(error)
        raise LocalrunError(
            f"{place}: {reason}", hint="check the disk and its permissions, then try again"
        ) from error


def require_space(path: Path, needed_bytes: int) -> None:
    """Check before a long write that ``needed_bytes`` fit on the disk of ``path``.

    Raises:
        DiskFullError: with the bytes that are missing.
    """
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    with disk_errors(path, needed_bytes):
        free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise DiskFullError(str(path), needed_bytes - free)
