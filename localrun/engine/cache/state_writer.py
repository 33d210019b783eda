"""Knows no index: the thread that writes states, and the folder's budget."""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from localrun.engine.cache.state_file import StateHeader, written
from localrun.errors import LocalrunError
from localrun.store.atomic import AtomicFile
from localrun.store.disk import make_private
from localrun.store.layout import owner_is_gone

SUFFIX: Final = ".state"
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StateJob:
    """A state for ``name``; then the files that it ``replaces`` go."""

    name: str
    header: StateHeader
    state: bytes
    replaces: tuple[str, ...]


class StateWriter:
    """Writes into ``folder``, which holds at most ``budget_bytes`` of states, whosever they are.

    At most ``queue_bytes`` wait to be written. Safe to call from any thread.
    """

    def __init__(self, folder: Path, budget_bytes: int, queue_bytes: int) -> None:
        self._folder = folder
        self._budget = budget_bytes
        self._most_queued = queue_bytes
        self._changed = threading.Condition()
        self._jobs: deque[StateJob] = deque()
        self._queued = 0  # bytes, of the job at hand too
        self._written = 0
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def written(self) -> int:
        """How many jobs have been done."""
        return self._written

    def has_room(self, size: int, wait_s: float) -> bool:
        """Whether ``put`` would take ``size`` bytes, within ``wait_s``."""
        with self._changed:
            return self._changed.wait_for(lambda: self._queued + size <= self._most_queued, wait_s)

    def put(self, job: StateJob) -> bool:
        """Queue ``job``; False where too much waits."""
        with self._changed:
            if self._closing or self._queued + len(job.state) > self._most_queued:
                return False
            self._jobs.append(job)
            self._queued += len(job.state)
            self._changed.notify_all()
            if self._thread is None:
                # A daemon: a disk that hangs must not keep the process from ending.
                self._thread = threading.Thread(target=self._run, name="states", daemon=True)
                self._thread.start()
        return True

    def flush(self, seconds: float) -> bool:
        """Wait until everything is written; False when that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queued, seconds)

    def close(self, seconds: float) -> bool:
        """As ``flush``, and the thread ends."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)
            return not self._thread.is_alive()
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closing)
                if not self._jobs:
                    return
                job = self._jobs.popleft()
            try:
                self._write(job)
            except (LocalrunError, OSError) as error:
                _LOG.warning("a state was not kept: %s", error)
            size = len(job.state)
            del job  # the next wait may be long
            with self._changed:
                self._queued -= size
                self._written += 1
                self._changed.notify_all()

    def _write(self, job: StateJob) -> None:
        private_folder(self._folder)
        self._make_room(job.header.file_size, job.name)
        target = self._folder / job.name
        with AtomicFile(target, expected_bytes=job.header.file_size) as file:
            for part in written(job.header, job.state):
                file.write(part)
            file.commit()
        for name in job.replaces:
            with suppress(OSError):
                (self._folder / name).unlink()

    def _make_room(self, size: int, name: str) -> None:
        """Remove what nobody used for longest until ``size`` more fit; others may do the same."""
        kept: list[tuple[int, int, Path]] = []
        for entry in os.scandir(self._folder):
            with suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if owner_is_gone(entry.name, time.time() - found.st_mtime):
                    os.unlink(entry.path)
                elif entry.name.endswith(SUFFIX) and entry.name != name:
                    kept.append((found.st_mtime_ns, found.st_size, Path(entry.path)))
        held = sum(each for _, each, _ in kept)
        for _, each, path in sorted(kept):
            if held + size <= self._budget:
                return
            with suppress(OSError):
                path.unlink()
                held -= each


def private_folder(folder: Path) -> None:
    """Create ``folder`` for its owner alone, or make it so.

    Raises:
        OSError: it cannot be made, or is no directory but a link to one.
    """
    make_private(folder)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{folder} is a link or a file, not a directory")
    if stat.S_IMODE(found.st_mode) & 0o077 and os.name != "nt":
        folder.chmod(0o700)
