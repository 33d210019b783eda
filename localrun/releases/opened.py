"""Knows no format: the weight files of one model on this disk, held open and watched for change."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from localrun.disk.staged import Stage
from localrun.errors import LocalrunError, ModelNotFoundError
from localrun.formats.header import Header, TensorInfo
from localrun.formats.read import join, read_source, require_shards
from localrun.formats.reader import FileSource, Lookable
from localrun.store.files import ModelFiles


class Opened:
    """``files`` as one model. What a header says is what is read: it comes from the open file.

    Several threads may read from ``source`` at once. What lies in ``stage`` is read from there.
    Close it, or use it as a context.

    Raises:
        ModelNotFoundError: a file is not on this disk.
        HeaderError: a header is malformed, or the files are not one model's.
    """

    def __init__(self, files: ModelFiles, stage: Stage | None = None) -> None:
        self.paths = tuple(file.path for file in files.weights if file.path is not None)
        if not self.paths or len(self.paths) != len(files.weights):
            raise ModelNotFoundError(f"{files.ref} is not whole on this disk")
        self.ref = files.ref
        self.licence = files.licence
        self.folder = self.paths[0].parent
        self._stage = stage
        self._stack = ExitStack()
        self._before = self._seen()
        try:
            require_shards(len(self.paths))
            self._sources = [self._stack.enter_context(FileSource(path)) for path in self.paths]
            self.parts: tuple[Header, ...] = tuple(
                read_source(source, path.name)
                for source, path in zip(self._sources, self.paths, strict=True)
            )
            self.header: Header = join(self.parts)
        except (LocalrunError, OSError):
            self._stack.close()
            raise

    def source(self, tensor: TensorInfo) -> Lookable:
        behind = self._sources[tensor.file]
        return behind if self._stage is None else self._stage.source(tensor.file, behind)

    def forget(self) -> None:
        """What was read need not stay in the system's memory: it is not read again, or past it."""
        for source in self._sources:
            source.forget()

    @property
    def identity(self) -> str:
        """The files of weights as they were opened: names, sizes, and when they were written."""
        listed = zip(self.paths, self._before, strict=True)
        return " ".join(f"{path.name}:{size}:{written}" for path, (_, size, written) in listed)

    def require_unchanged(self) -> None:
        """Hold that nobody wrote to the weights since they were opened.

        Raises:
            LocalrunError: somebody did.
        """
        if self._seen() != self._before:
            raise LocalrunError(
                f"{self.folder}: the weights changed while they were read; nothing is published",
                hint="let whoever writes them finish, then try again",
            )

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _seen(self) -> list[tuple[int, int, int]]:
        """Of each file of weights: which it is, its size, and when it was written."""
        return [(s.st_ino, s.st_size, s.st_mtime_ns) for s in map(_status, self.paths)]


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise ModelNotFoundError(f"{path}: {error.strerror}") from error
