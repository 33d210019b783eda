"""Knows no model: a directory for files that fill a disk, gone however a benchmark ends."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from localrun.errors import UsageError

# What others write meanwhile.
SPARE = 1 << 30
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})


@contextmanager
def scratch(place: Path, needed: int) -> Iterator[Path]:
    """A new directory under ``place``, removed at the end: of an interrupt and a request to
    terminate as well.

    Raises:
        UsageError: ``place`` is no directory, lies in memory, or has less than ``needed`` bytes
            free; nothing is written then.
    """
    if not place.is_dir():
        raise UsageError(f"{place} is no directory", hint="name one with --place")
    if filesystem(place) in _IN_MEMORY:
        raise UsageError(f"{place} lies in memory", hint="name a directory on a disk with --place")
    free = shutil.disk_usage(place).free
    if free < needed + SPARE:
        raise UsageError(
            f"{place}: {needed + SPARE} bytes are needed, {free} are free",
            hint="--place names another disk, --scale a smaller model",
        )
    before = signal.signal(signal.SIGTERM, _interrupted)
    try:
        with tempfile.TemporaryDirectory(prefix="localrun-bench-", dir=place) as made:
            yield Path(made)
    finally:
        signal.signal(signal.SIGTERM, before)


def filesystem(place: Path) -> str:
    """The type of the file system that a directory lies on; empty where nobody says."""
    import psutil

    there = place.resolve()
    mounts = [
        part for part in psutil.disk_partitions(all=True) if there.is_relative_to(part.mountpoint)
    ]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else ""


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
