"""Knows no model: a lock that saves work when two do the same thing, and guards nothing.

``flock`` is a silent no-op on some filesystems, so correctness rests on unique temporaries and
renames alone; without the lock two pulls download twice and both end well.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WAIT_SECONDS = 600.0
_POLL_SECONDS = 0.02
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


@contextmanager
def held(path: Path, wait_seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the lock where the system has one; go on without it where not, or after the wait.

    The lock ends with the process that holds it, so nothing is left to clean up.
    """
    try:
        descriptor = os.open(path, _FLAGS, 0o600)
    except OSError:  # a planted link, a read-only disk: work without
        yield
        return
    try:
        _wait(descriptor, wait_seconds)
        yield
    finally:
        os.close(descriptor)


def _wait(descriptor: int, seconds: float) -> None:
    with suppress(ImportError, OSError):  # Windows has no flock; some disks refuse it
        import fcntl

        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return
                time.sleep(_POLL_SECONDS)
