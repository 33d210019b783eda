"""Knows no figure: small private files of JSON, read with a bound and replaced as a whole.

What cannot be read is worth less than the next run: it is left out with a note, and written anew.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter

VERSION: Final = 1
LARGEST_FILE: Final = 8 << 20
MOST_FILES: Final = 512
LOCK_S: Final = 5.0
_LOCK: Final = ".lock"


@dataclass(frozen=True, slots=True)
class Document:
    """What a file holds; ``version`` says how the rest is to be read."""

    version: int


D = TypeVar("D", bound=Document)


class Kept(Generic[D]):
    """A kind of file. ``parts`` are the dataclasses inside ``document``."""

    def __init__(self, suffix: str, document: type[D], *parts: type) -> None:
        self._suffix = suffix
        self._document = document
        self._parts = parts
        self._adapts: TypeAdapter[D] | None = None

    def read(self, folder: Path, stem: str) -> tuple[D | None, str]:
        """What the file holds, and why one that is there was left out. Never raises."""
        path = self._path(folder, stem)
        try:
            with path.open("rb") as file:
                text = file.read(LARGEST_FILE + 1)
        except FileNotFoundError:
            return None, ""
        except OSError as error:
            return None, _note(path, error.strerror or str(error))
        if len(text) > LARGEST_FILE:
            return None, _note(path, f"more than {LARGEST_FILE} bytes")
        from pydantic import ValidationError

        try:
            document = self._adapter().validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            return None, _note(path, f"{field}: {first['msg']}".removeprefix(": "))
        if document.version != VERSION:
            return None, _note(path, f"version {document.version}, this program reads {VERSION}")
        return document, ""

    def change(self, folder: Path, stem: str, changed: Callable[[D | None], D]) -> None:
        """Replace what the file holds by ``changed`` of it; another process waits its turn.

        Raises:
            OSError: it cannot be written; what was there is untouched.
        """
        path = self._path(folder, stem)
        _make_private(folder)
        with _turn(folder):
            document = changed(self.read(folder, stem)[0])
            _write(path, json.dumps(asdict(document)).encode())
            _forget_oldest(folder)

    def _adapter(self) -> TypeAdapter[D]:
        if self._adapts is None:
            from pydantic import ConfigDict, TypeAdapter, with_config

            for value in (*self._parts, self._document):
                with_config(ConfigDict(extra="forbid", strict=True))(value)
            self._adapts = TypeAdapter(self._document)
        return self._adapts

    def _path(self, folder: Path, stem: str) -> Path:
        return folder / f"{stem}.{self._suffix}.json"


def _note(path: Path, reason: str) -> str:
    return f"{path}: what runs taught is left out ({reason}); the next run writes it anew"


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Alone in ``folder``.

    Raises:
        TimeoutError: another process has been in it for long.
    """
    import filelock

    lock = filelock.FileLock(folder / _LOCK, mode=0o600)
    # A disk without locks costs the counts of one of two runs that end at once, never a file.
    with suppress(NotImplementedError):
        try:
            lock.acquire(timeout=LOCK_S)
        except filelock.Timeout as error:
            raise TimeoutError(errno.ETIMEDOUT, "another process holds it", str(folder)) from error
    try:
        yield
    finally:
        lock.release()


def _write(path: Path, data: bytes) -> None:
    if len(data) > LARGEST_FILE:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _forget_oldest(folder: Path) -> None:
    """Bounds the folder; what a process left that was killed goes too, in time."""
    held = [path for path in folder.iterdir() if path.name != _LOCK]
    if len(held) <= MOST_FILES:
        return
    held.sort(key=_changed)
    for path in held[:-MOST_FILES]:
        with suppress(OSError):
            path.unlink()


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _make_private(folder: Path) -> None:
    """Each new folder on the way for its owner alone, as all of the user's data."""
    for place in (*reversed(folder.parents), folder):
        if not place.exists():
            place.mkdir(mode=0o700, exist_ok=True)
