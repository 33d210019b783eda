"""Knows no plan: how fast the disk under a directory answers, large reads and small.

Speeds are of direct reads at random places: what weights and table rows are read by once memory
is full. A model file is read where there is a large one; else a file is written for the purpose,
which has no name while it is used and so is gone however the measuring ends.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from localrun.errors import DiskFullError
from localrun.hardware.direct_reads import Reads, direct_reads, no_direct
from localrun.hardware.disk_classes import DEPTHS, LARGE_DEPTHS
from localrun.hardware.measurements import MeasuredDisk

MIB, GIB = 1 << 20, 1 << 30
LARGE_BLOCK = 8 * MIB
SMALL_BLOCK = 4096
POINT_SECONDS = 2.0
# Less would lie within a drive's own cache; of a larger file the rest is not needed.
SMALLEST_FILE, SCRATCH_BYTES = 1 * GIB, 2 * GIB
SMALLEST_SCRATCH = 256 * MIB
# A slow disk gives a smaller file.
_WRITE_SECONDS = 7.0
# In blocks: what lies in memory yet takes no time, until the end asks for all of it at once.
_SYNC_EVERY = 16
_FREE_AFTERWARDS = 1 * GIB

Say = Callable[[str], None]


def measure_disk(
    place: Path,
    filesystem: str,
    *,
    files: Sequence[Path] = (),
    point_seconds: float = POINT_SECONDS,
    scratch_bytes: int = SCRATCH_BYTES,
    say: Say = lambda line: None,
) -> MeasuredDisk:
    """Seven points of ``point_seconds`` on the disk under the directory ``place``.

    ``files`` are candidates to read, on that disk; the first that is large, whole and no link to
    another disk is taken. ``say`` is told what is being measured.

    Raises:
        LocalrunError: reads that pass the page cache are not possible there.
        DiskFullError: no file to read and no room to write one.
    """
    file = next((path for path in files if _fit(path, place)), None)
    if file is not None:
        with direct_reads(file, filesystem) as reads:
            return points(reads, point_seconds, say)
    with _scratch(place, filesystem, scratch_bytes, say) as reads:
        return points(reads, point_seconds, say)


def points(reads: Reads, seconds: float, say: Say) -> MeasuredDisk:
    """Large reads at each depth in GB/s, then small ones at each depth a second."""
    large, iops = {}, {}
    for depth in LARGE_DEPTHS:
        say(f"disk: reads of {LARGE_BLOCK // MIB} MiB, {depth} at once")
        large[depth] = reads(LARGE_BLOCK, depth, seconds).rate * LARGE_BLOCK / 1e9
    for depth in DEPTHS:
        say(f"disk: reads of {SMALL_BLOCK // 1024} KiB, {depth} at once")
        iops[depth] = reads(SMALL_BLOCK, depth, seconds).rate
    return MeasuredDisk(iops, large)


def _fit(path: Path, place: Path) -> bool:
    """Large, on the same disk, and with a block on it for nearly every byte."""
    try:
        status = path.stat()
        return (
            status.st_size >= SMALLEST_FILE
            and status.st_dev == place.stat().st_dev
            and status.st_blocks * 512 >= status.st_size * 0.9
        )
    except (OSError, AttributeError):  # Windows counts no blocks
        return False


@contextmanager
def _scratch(place: Path, filesystem: str, most: int, say: Say) -> Iterator[Reads]:
    """Reads of a file that was written for them."""
    try:
        size = min(most, shutil.disk_usage(place).free - _FREE_AFTERWARDS)
        if size < min(most, SMALLEST_SCRATCH):
            raise DiskFullError(str(place), _FREE_AFTERWARDS + min(most, SMALLEST_SCRATCH))
        descriptor, name = tempfile.mkstemp(prefix=".localrun-disk-", dir=place)
    except OSError as error:
        raise no_direct(place, error.strerror or str(error)) from error
    path = Path(name)
    try:
        # Opened before its name goes: from then on nothing can leave the file behind.
        with direct_reads(path, filesystem) as reads:
            with suppress(OSError):  # Windows keeps the name of an open file; see below
                path.unlink()
            say(f"disk: writing {size // MIB} MiB to read")
            try:
                _fill(descriptor, size)
            except OSError as error:
                raise no_direct(place, error.strerror or str(error)) from error
            yield reads
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)


def _fill(descriptor: int, size: int) -> None:
    """Bytes that no drive can compress or take for one another, synced."""
    from localrun.disk.files import around_the_cache

    around_the_cache(descriptor)
    pattern = os.urandom(LARGE_BLOCK)
    start = time.monotonic()
    for index in range(max(1, size // LARGE_BLOCK)):
        shift = (index * 4093) % LARGE_BLOCK
        block = memoryview(pattern[shift:] + pattern[:shift])
        while block:
            block = block[os.write(descriptor, block) :]
        if index % _SYNC_EVERY == 0:
            os.fsync(descriptor)
        if time.monotonic() - start > _WRITE_SECONDS:
            break
    os.fsync(descriptor)
