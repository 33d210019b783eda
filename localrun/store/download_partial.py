"""Knows no network: a blob on its way into the hub cache, kept over kills and power cuts.

A partial file belongs to one process: ``<digest>.<etag>.<pid>-<node>-<random>.tmp.incomplete``.
Whoever finds one whose process is gone renames it to a name of its own; only one finder can. So two
writers never share a file, also where file locks are silently ignored. Its bytes are hashed again
from the first one before anything is appended.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
import time
from contextlib import suppress
from pathlib import Path

from localrun.errors import VerificationError
from localrun.store import disk
from localrun.store.disk import disk_errors
from localrun.store.files import ModelFile
from localrun.store.hub_cache import Hash, hasher
from localrun.store.hub_layout import HubRepo, blob_name
from localrun.store.layout import owner_is_gone, temporary_name

_SUFFIX = ".incomplete"
_ETAG = re.compile(r"[A-Za-z0-9-]{1,70}\Z")
_NO_ETAG = "_"
_CHUNK = 1 << 20
# O_RDWR: what an earlier process wrote is read again. Readable by all that the umask allows, as
# huggingface_hub leaves its files, because the cache is shared.
_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_BINARY = getattr(os, "O_BINARY", 0)

_mine: set[str] = set()
_mine_lock = threading.Lock()


class Partial:
    """The bytes of one file that have arrived. ``offset`` is how many, all of them hashed.

    Raises:
        DiskFullError: from every method that writes; what has arrived stays for the next try.
        LocalrunError: the disk fails otherwise.
    """

    def __init__(self, repo: HubRepo, file: ModelFile) -> None:
        assert file.digest is not None
        self.file = file
        self.etag: str | None = None
        self.offset = 0
        self._repo = repo
        self._digest = file.digest
        self._path: Path | None = None
        self._descriptor: int | None = None
        self._hash: Hash = hasher(file.digest.kind, file.bytes)

    def resume(self, stopped: threading.Event) -> None:
        """Take over the largest partial that a dead process left, if there is one.

        Reading it again ends early, and to no use, once ``stopped`` is set.
        """
        for _, path in sorted(_orphans(self._repo, self.file), reverse=True):
            if self._adopt(path, stopped):
                return

    def restart(self, etag: str | None) -> None:
        """Begin at byte 0 with an empty file of our own; ``etag`` is what the server calls it."""
        self.discard()
        self.etag = etag if etag is not None and _ETAG.match(etag) else None
        path = self._own_name()
        with disk_errors(path, self.file.bytes):
            self._descriptor = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        self._path = path

    def write(self, data: bytes) -> None:
        """Append. The caller has checked that the file does not grow over its size."""
        assert self._descriptor is not None
        rest = memoryview(data)
        with disk_errors(self._repo.blobs, self.file.bytes - self.offset):
            while rest:
                count = disk.DISK.write(self._descriptor, rest)
                if count == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._hash.update(rest[:count])
                self.offset += count
                rest = rest[count:]

    def publish(self) -> None:
        """Check size and digest, then give the blob its name.

        Raises:
            VerificationError: it is not what was promised; its bytes are gone.
        """
        if self._descriptor is None:
            self.restart(None)
        assert self._path is not None
        assert self._descriptor is not None
        found = self._hash.hexdigest()
        if self.offset != self.file.bytes or found != self._digest.value:
            self.discard()
            raise VerificationError(
                f"{self.file.name}: {self.offset} bytes with {self._digest.kind} {found} arrived, "
                f"{self.file.bytes} with {self._digest.value} were promised"
            )
        blob = self._repo.blob(self._digest)
        with disk_errors(blob, 1):
            disk.DISK.sync(self._descriptor)
            disk.DISK.rename(self._path, blob)
            self.close()
            disk.DISK.sync_directory(blob.parent)

    def close(self) -> None:
        """Leave what has arrived for the next try."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
        path, self._path = self._path, None
        if path is not None:
            if self.offset == 0:
                with suppress(OSError):
                    path.unlink()
            with _mine_lock:
                _mine.discard(path.name)

    def discard(self) -> None:
        """Leave nothing."""
        path = self._path
        self.close()
        if path is not None:
            with disk_errors(path), suppress(FileNotFoundError):
                disk.DISK.unlink(path)
        self.offset = 0
        self._hash = hasher(self._digest.kind, self.file.bytes)

    def _own_name(self) -> Path:
        name = temporary_name(f"{blob_name(self._digest)}.{self.etag or _NO_ETAG}") + _SUFFIX
        with _mine_lock:
            _mine.add(name)
        return self._repo.blobs / name

    def _adopt(self, path: Path, stopped: threading.Event) -> bool:
        etag = path.name.split(".")[1]
        self.etag = None if etag == _NO_ETAG else etag
        mine = self._path = self._own_name()
        try:
            disk.DISK.rename(path, mine)
            self._descriptor = os.open(mine, _FLAGS | _BINARY)
            status = os.fstat(self._descriptor)
            # A second name would let us write into a file that is somebody's.
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                self.discard()
                return False
            if status.st_size > self.file.bytes:
                self.discard()
                return False
            with disk_errors(mine):
                while not stopped.is_set() and (chunk := os.read(self._descriptor, _CHUNK)):
                    self._hash.update(chunk)
                    self.offset += len(chunk)
        except OSError:  # another process was faster, or it is no file of ours
            self.discard()
            return False
        return True


def left_behind(repo: HubRepo, file: ModelFile) -> int:
    """Bytes of the largest partial that ``Partial.resume`` would take over."""
    return max((size for size, _ in _orphans(repo, file)), default=0)


def abandoned(repo: HubRepo) -> list[tuple[int, Path]]:
    """Partial files of dead processes, of any file of the repository, with their bytes."""
    found: list[tuple[int, Path]] = []
    with suppress(OSError):
        for entry in os.scandir(repo.blobs):
            if entry.name.endswith(_SUFFIX):
                with suppress(OSError):
                    info = entry.stat(follow_symlinks=False)
                    if _is_orphan(entry.name, info.st_mtime):
                        found.append((info.st_size, Path(entry.path)))
    return found


def growth(repo: HubRepo, file: ModelFile) -> tuple[tuple[str, int, int], ...]:
    """Changes while some process, here or elsewhere, is getting this file."""
    return tuple(
        sorted((entry.name, info.st_size, info.st_mtime_ns) for entry, info in _entries(repo, file))
    )


def sweep(repo: HubRepo, file: ModelFile) -> None:
    """Remove what dead processes left of a file that is complete now."""
    for _, path in _orphans(repo, file):
        with suppress(OSError):
            path.unlink()


def _entries(repo: HubRepo, file: ModelFile) -> list[tuple[os.DirEntry[str], os.stat_result]]:
    assert file.digest is not None
    start = f"{blob_name(file.digest)}."
    found: list[tuple[os.DirEntry[str], os.stat_result]] = []
    with suppress(OSError):
        for entry in os.scandir(repo.blobs):
            if entry.name.startswith(start) and entry.name.endswith(_SUFFIX):
                with suppress(OSError):
                    found.append((entry, entry.stat(follow_symlinks=False)))
    return found


def _orphans(repo: HubRepo, file: ModelFile) -> list[tuple[int, Path]]:
    return [
        (info.st_size, Path(entry.path))
        for entry, info in _entries(repo, file)
        if stat.S_ISREG(info.st_mode) and _is_orphan(entry.name, info.st_mtime)
    ]


def _is_orphan(name: str, modified: float) -> bool:
    owned = name.removesuffix(_SUFFIX)
    if owner_is_gone(owned, time.time() - modified):
        return True
    found = re.search(r"\.([0-9]{1,10})-[0-9a-f]{8}-[0-9a-f]{16}\.tmp\Z", owned)
    if found is None or owner_is_gone(owned, float("inf")):
        return False
    with _mine_lock:
        if int(found[1]) == os.getpid():  # ours, or our number's owner's before us
            return name not in _mine
    return _started_after(int(found[1]), modified)


def _started_after(pid: int, moment: float) -> bool:
    """True if the process of that number is younger than the moment: the number was used again."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time()) > moment + 2.0
    except (psutil.Error, OSError):
        return False
