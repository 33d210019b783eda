"""Knows no network: headers of files that are not on this disk, and the lists of such files.

    <cache>/headers/<key>      a sha256 over the rest, then the first bytes of a file or a list

A file is known by its hub, digest and size. The digest is the hub's entity tag of the file, so what
is kept under it never goes out of date. Every file here may be deleted at any time; damaged ones
are ignored and written anew, and the oldest go when all take more than ``BYTES_MAX``.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from localrun.config import Settings
from localrun.errors import HeaderError, LocalrunError, ModelNotFoundError, RefError
from localrun.formats.reader import FileSource
from localrun.ref import HubRef, parse
from localrun.store import disk
from localrun.store.atomic import AtomicFile
from localrun.store.disk import make_private
from localrun.store.files import Digest, ModelFile, ModelFiles
from localrun.store.layout import owner_is_gone

BYTES_MAX = 256 << 20
_VERSION = 1
_SEAL_BYTES = 32


@dataclass(frozen=True, slots=True)
class HeaderCache:
    """One directory. Nothing is created before the first ``keep``; failing disks fail nobody."""

    directory: Path
    endpoint: str

    @staticmethod
    def of(settings: Settings) -> HeaderCache:
        return HeaderCache(settings.cache / "headers", settings.hub_endpoint)

    def file_key(self, file: ModelFile) -> str | None:
        """What a file's first bytes are kept under; None for a file without a digest."""
        if file.digest is None:
            return None
        return self._key("file", file.digest.kind, file.digest.value, str(file.bytes))

    def list_key(self, ref: HubRef, revision: str) -> str:
        return self._key("list", str(ref), revision)

    def _key(self, *parts: str) -> str:
        text = json.dumps([_VERSION, self.endpoint, *parts])
        return hashlib.sha256(text.encode()).hexdigest()

    def get(self, key: str | None) -> bytes | None:
        """What was kept under the key, whole as it was, or None."""
        if key is None:
            return None
        path = self.directory / key
        try:
            with FileSource(path) as source:
                if not _SEAL_BYTES <= source.size <= BYTES_MAX:
                    return None
                seal = source.read(0, _SEAL_BYTES)
                data = source.read(_SEAL_BYTES, source.size - _SEAL_BYTES)
        except (ModelNotFoundError, HeaderError):
            return None
        if hashlib.sha256(data).digest() != seal:
            return None
        with suppress(OSError):
            os.utime(path)  # the least recently used are the oldest
        return data

    def keep(self, key: str | None, data: bytes) -> None:
        """Keep ``data`` under the key, in place of what was there. Never fails."""
        if key is None:
            return
        with suppress(LocalrunError, OSError):
            make_private(self.directory)
            with AtomicFile(self.directory / key, expected_bytes=len(data)) as out:
                out.write(hashlib.sha256(data).digest())
                out.write(data)
                out.commit()

    def sweep(self) -> None:
        """Remove the oldest beyond ``BYTES_MAX`` and what killed processes left. Never fails."""
        kept: list[tuple[int, str, int]] = []
        with suppress(OSError):
            for entry in os.scandir(self.directory):
                with suppress(OSError):
                    info = entry.stat(follow_symlinks=False)
                    if owner_is_gone(entry.name, time.time() - info.st_mtime):
                        disk.DISK.unlink(Path(entry.path))
                    else:
                        kept.append((info.st_mtime_ns, entry.path, info.st_size))
        total = sum(size for _, _, size in kept)
        for _, path, size in sorted(kept):
            if total <= BYTES_MAX:
                return
            with suppress(OSError):
                disk.DISK.unlink(Path(path))
                total -= size


class HeadSource:
    """A file of which only the header is here. What is behind it reads as zeros: readers fill
    their windows past a header's end and look at nothing there."""

    def __init__(self, head: bytes, size: int) -> None:
        self._head = head
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        if not 0 <= length <= self._size - offset:
            raise HeaderError(
                "file", offset, f"{length} bytes expected, {self._size - offset} there"
            )
        return self._head[offset : offset + length].ljust(length, b"\0")


def list_bytes(files: ModelFiles) -> bytes:
    """A hub model's list of files, for ``list_of``: without paths and addresses."""
    return json.dumps(
        {
            "ref": str(files.ref),
            "format": files.format,
            "revision": files.revision,
            "licence": files.licence,
            "quants": files.quants,
            "files": [
                (file.name, file.bytes, file.role, file.digest.kind, file.digest.value)
                for file in files.files
                if file.digest is not None
            ],
        }
    ).encode()


def list_of(data: bytes | None) -> ModelFiles | None:
    """What ``list_bytes`` wrote; None where it was not written by this version."""
    if data is None:
        return None
    try:
        document = json.loads(data)
        return ModelFiles(
            ref=parse(document["ref"]),
            origin="hub",
            format=document["format"],
            files=tuple(map(_file, document["files"])),
            revision=document["revision"],
            licence=document["licence"],
            quants=tuple(document["quants"]),
        )
    except (ValueError, KeyError, TypeError, RefError):
        return None


def _file(fields: Sequence[object]) -> ModelFile:
    name, size, role, kind, value = fields
    return ModelFile(name, size, role, digest=Digest(kind, value))  # type: ignore[arg-type]  # sealed
