"""Knows no weight: the record of an unfinished output, a line for every job that is done.

The first line says whose it is. A line is written behind its job's bytes; whether those reached
the disk before the power failed is told by their checksums, so none of it is ever synced.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from localrun.errors import UsageError
from localrun.store import disk
from localrun.store.disk import disk_errors

_VERSION: Final = 1
_LINE_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Begun:
    """What an unfinished output was begun with: ``work`` is its fingerprint, ``source`` names the
    files that it is made of as they were, ``kernels`` the library whose bytes it holds."""

    work: str
    source: str
    kernels: str


@dataclass(frozen=True, slots=True)
class Done:
    """``sums`` are a checksum for each stretch that the job wrote; ``errors`` are, for each of its
    tasks, the energy of the numbers and of what was lost of them."""

    sums: tuple[int, ...]
    errors: tuple[tuple[float, float], ...]


class Journal:
    """Appends to ``path``. One process at a time; any thread.

    Raises:
        UsageError: another process writes this output. DiskFullError, LocalrunError: the disk.
    """

    def __init__(self, path: Path, begun: Begun) -> None:
        self.path = path
        with disk_errors(path):
            fresh = not path.exists()
            descriptor = disk.DISK.create(path) if fresh else disk.DISK.open(path)
        self._descriptor: int | None = descriptor
        try:
            _lock(descriptor, path)
            self.begun, self.done, whole = (None, {}, 0) if fresh else _read(descriptor)
            with disk_errors(path):
                disk.DISK.truncate(descriptor, whole)
                os.lseek(descriptor, whole, os.SEEK_SET)
            if self.begun is None:
                self._append(["begun", _VERSION, begun.work, begun.source, begun.kernels])
        except BaseException:
            self.close()
            raise

    def restart(self, begun: Begun) -> None:
        """Forget every job: what they were made of is gone."""
        assert self._descriptor is not None
        with disk_errors(self.path):
            disk.DISK.truncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.begun, self.done = None, {}
        self._append(["begun", _VERSION, begun.work, begun.source, begun.kernels])

    def add(self, job: int, done: Done) -> None:
        self._append([job, list(done.sums), [list(pair) for pair in done.errors]])
        self.done[job] = done

    def _append(self, line: Sequence[object]) -> None:
        assert self._descriptor is not None
        data = memoryview(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        with disk_errors(self.path, len(data)):
            while data:
                data = data[disk.DISK.write(self._descriptor, data) :]

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def remove(self) -> None:
        with suppress(OSError):
            disk.DISK.unlink(self.path)
        self.close()


def _lock(descriptor: int, path: Path) -> None:
    with suppress(ImportError):  # Windows: two runs at once there end in a checksum that is wrong
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(path) from None
        except OSError:
            return  # a disk without locks
        # Whoever had the lock may have ended, and taken the file's name away, since it was opened.
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return
        raise _taken(path)


def _taken(path: Path) -> UsageError:
    return UsageError(
        f"{path}: another process is writing this output",
        hint="wait for it, or name another OUT",
    )


def _read(descriptor: int) -> tuple[Begun | None, dict[int, Done], int]:
    """What stands in a journal up to the first line that is not whole, and where that begins."""
    begun: Begun | None = None
    found: dict[int, Done] = {}
    whole = 0
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        stream.seek(0)
        while line := stream.readline(_LINE_BYTES_MAX):
            if not line.endswith(b"\n"):
                break
            try:
                if begun is None:
                    begun = _begun(json.loads(line))
                else:
                    number, done = _done(json.loads(line))
                    found[number] = done
            except (ValueError, TypeError, KeyError):
                break
            whole += len(line)
    return begun, found, whole


def _begun(line: Any) -> Begun:
    match line:
        case ["begun", 1, str(work), str(source), str(kernels)]:
            return Begun(work, source, kernels)
    raise ValueError(line)


def _done(line: Any) -> tuple[int, Done]:
    number, sums, errors = line
    pairs = tuple((float(signal), float(noise)) for signal, noise in errors)
    return int(number), Done(tuple(map(int, sums)), pairs)
