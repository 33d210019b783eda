"""Knows no model: how much of a file the kernel keeps in memory, and how to have it let go.

mincore(2) says of each page of a mapping whether it is in memory; since Linux 5.2 only to whoever
may write to the file. posix_fadvise(2) gives back what has reached the disk.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from localrun.errors import LocalrunError


def available() -> bool:
    """Whether this system tells: the calls are Linux's, and files must be ours."""
    return sys.platform == "linux"


def cached(paths: Iterable[Path]) -> int:
    """Bytes of the files that lie in the page cache, whole pages.

    Raises:
        LocalrunError: the kernel does not tell.
    """
    return sum(_cached(path) for path in paths)


def _cached(path: Path) -> int:
    size = path.stat().st_size
    if size == 0:
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = np.frombuffer(mapped, dtype=np.uint8)
        pages = np.zeros(-(-size // mmap.PAGESIZE), dtype=np.uint8)
        told = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(view.ctypes.data),
            ctypes.c_size_t(size),
            ctypes.c_void_p(pages.ctypes.data),
        )
        error = ctypes.get_errno()
        del view
    if told != 0:
        raise LocalrunError(f"{path}: mincore: {os.strerror(error)}")
    return int((pages & 1).sum()) * mmap.PAGESIZE


def drop(paths: Iterable[Path]) -> None:
    """Have the kernel forget the files; what was written goes to the disk first."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def read_bytes() -> int:
    """What this process has had read from disks since it began, by the kernel's count."""
    for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    raise LocalrunError("/proc/self/io has no read_bytes")
