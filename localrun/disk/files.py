"""Knows no queue: files opened past the page cache, and whether they are still what was opened."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from localrun.disk.memory import aligned
from localrun.disk.reader import ALIGNMENT
from localrun.errors import DiskReadError, UsageError

_SAMPLES: Final = 16


@dataclass(frozen=True, slots=True)
class OpenFile:
    """``device`` is the disk's number; ``direct``: reads pass the page cache."""

    path: Path
    descriptor: int
    size: int
    device: int
    direct: bool
    inode: int
    written: int

    def changed(self) -> str | None:
        """What has happened to it since it was opened, if anything has. A file whose name is gone
        is still the file that was opened."""
        try:
            now = os.stat(self.path)
        except OSError:
            return None
        if (now.st_dev, now.st_ino) != (self.device, self.inode):
            return "the file was replaced while it was in use"
        if now.st_size < self.size:
            return f"the file was cut to {now.st_size} bytes while it was in use"
        if (now.st_size, now.st_mtime_ns) != (self.size, self.written):
            return "the file was written to while it was in use"
        return None

    def close(self) -> None:
        os.close(self.descriptor)


def open_file(path: Path) -> OpenFile:
    """For reading only.

    Raises:
        DiskReadError: it cannot be opened, or is no file with bytes in places.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe is to wait for its other end
            raise DiskReadError(str(path), 0, "this is not a regular file")
        descriptor, direct = _open(path)
    except OSError as error:
        raise DiskReadError(str(path), 0, error.strerror or str(error)) from error
    status = os.fstat(descriptor)
    return OpenFile(
        path,
        descriptor,
        status.st_size,
        status.st_dev,
        direct,
        status.st_ino,
        status.st_mtime_ns,
    )


def open_direct(path: Path) -> int:
    """A descriptor whose reads pass the page cache.

    Raises:
        OSError: it cannot be opened, or its filesystem (``EINVAL``) or this system (``ENOTSUP``)
            has no such reads.
    """
    direct = getattr(os, "O_DIRECT", 0)
    if not hasattr(os, "preadv") or not (direct or sys.platform == "darwin"):
        raise OSError(errno.ENOTSUP, "this system has no direct reads")
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | direct)
    around_the_cache(descriptor)
    return descriptor


def around_the_cache(descriptor: int) -> None:
    """On a Mac: what is read or written by this descriptor leaves no copy in memory."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_NOCACHE, 1)


def _open(path: Path) -> tuple[int, bool]:
    """Some filesystems refuse direct reads when a file is opened, some at the first read."""
    try:
        descriptor = open_direct(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
        return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)), False
    try:
        os.preadv(descriptor, [aligned(ALIGNMENT).data], 0)
    except OSError as error:
        os.close(descriptor)
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False
    return descriptor, True


def mirrored(files: Sequence[OpenFile], folder: Path) -> list[OpenFile]:
    """The copies of ``files`` under their names in ``folder``.

    Raises:
        UsageError: one is missing, or differs in size or in one of the blocks that are compared.
    """
    if len({file.path.name for file in files}) < len(files):
        raise UsageError(f"{folder}: files of one name cannot be mirrored in one directory")
    copies: list[OpenFile] = []
    try:
        for file in files:
            copies.append(_copy(file, folder / file.path.name))
    except BaseException:
        for copy in copies:
            copy.close()
        raise
    return copies


def _copy(file: OpenFile, path: Path) -> OpenFile:
    try:
        copy = open_file(path)
    except DiskReadError as error:
        raise UsageError(f"{path}: no copy of {file.path}: {error.problem}") from error
    if copy.size != file.size:
        copy.close()
        raise UsageError(f"{path}: {copy.size} bytes; {file.path} has {file.size}")
    # Another model's file of the same shape differs everywhere, so a few places tell.
    blocks = aligned(2 * ALIGNMENT).reshape(2, ALIGNMENT)
    step = max(ALIGNMENT, file.size // _SAMPLES // ALIGNMENT * ALIGNMENT)
    for offset in range(0, file.size, step):
        blocks[:] = 0
        try:
            for side, block in zip((file, copy), blocks, strict=True):
                os.preadv(side.descriptor, [block.data], offset)
        except OSError as error:
            copy.close()
            problem = f"cannot be compared with {file.path} at offset {offset}: {error.strerror}"
            raise UsageError(f"{path}: {problem}") from error
        if (blocks[0] != blocks[1]).any():
            copy.close()
            raise UsageError(f"{path}: other bytes than {file.path} at offset {offset}")
    return copy
