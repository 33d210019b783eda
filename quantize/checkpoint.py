"""Knows no target format: a safetensors checkpoint on this disk, opened for a conversion."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from localrun.errors import HeaderError, LocalrunError, ModelNotFoundError, UsageError
from localrun.formats.header import Header, TensorInfo
from localrun.formats.read import read_header
from localrun.formats.reader import FileSource, Source
from localrun.formats.strict_json import as_object, parse_json, read_config
from localrun.store.files import ModelFiles
from localrun.store.layout import child

CONFIG: Final = "config.json"
_TEXT_BYTES_MAX: Final = 64 << 20


class Checkpoint:
    """The weights of ``files`` and what lies beside them. Close it, or use it as a context.

    Raises:
        UsageError: no safetensors model, or no config.json beside the weights.
        ModelNotFoundError, HeaderError: a file is gone or malformed.
    """

    def __init__(self, files: ModelFiles) -> None:
        if files.format != "safetensors":
            raise UsageError(
                f"{files.ref}: a {files.format} file; safetensors checkpoints are converted",
                hint="name the checkpoint that the file was made of",
            )
        self.paths = tuple(file.path for file in files.weights if file.path is not None)
        if not self.paths or len(self.paths) != len(files.weights):
            raise ModelNotFoundError(f"{files.ref} is not whole on this disk")
        self.ref = files.ref
        self.licence = files.licence
        self.folder = self.paths[0].parent
        self.config: Mapping[str, object] = self._config()
        self._stack = ExitStack()
        try:
            self.header: Header = read_header(self.paths)
            self._sources = [FileSource(path) for path in self.paths]
            for source in self._sources:
                self._stack.callback(source.close)
        except (LocalrunError, OSError):
            self._stack.close()
            raise
        self._before = self._seen()

    def source(self, tensor: TensorInfo) -> Source:
        return self._sources[tensor.file]

    def json(self, name: str) -> dict[str, object] | None:
        """The JSON object in a file beside the weights; None where there is no such file.

        Raises:
            HeaderError: too large, or not one JSON object.
        """
        found = self._json(name)
        return None if found is None else as_object(found, name)

    def list_of_objects(self, name: str) -> list[dict[str, object]] | None:
        """The same of a list of objects."""
        found = self._json(name)
        if found is None:
            return None
        if not isinstance(found, list):
            raise HeaderError(name, 0, f"is a JSON {type(found).__name__}, not a list", file=name)
        return [as_object(item, name) for item in found]

    def text(self, name: str) -> str | None:
        """A text beside the weights; None where there is no such file.

        Raises:
            HeaderError: too large, or not UTF-8.
        """
        raw = self._bytes(name)
        try:
            return None if raw is None else raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise HeaderError("text", error.start, "is not UTF-8", file=name) from None

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

    def _config(self) -> Mapping[str, object]:
        path = child(self.folder, CONFIG)
        if not path.is_file():
            raise UsageError(
                f"{self.folder}: no {CONFIG} beside the weights",
                hint="name the directory of the whole checkpoint",
            )
        with FileSource(path) as source:
            return read_config(source, CONFIG)

    def _json(self, name: str) -> object:
        raw = self._bytes(name)
        try:
            return None if raw is None else parse_json(raw, "text", 0)
        except HeaderError as error:
            raise error.in_file(name) from None

    def _bytes(self, name: str) -> bytes | None:
        path = child(self.folder, name)
        if not path.is_file():
            return None
        with FileSource(path) as source:
            if source.size > _TEXT_BYTES_MAX:
                raise HeaderError("file", 0, f"{source.size} bytes are too many", file=name)
            return source.read(0, source.size)

    def _seen(self) -> list[tuple[int, int, int]]:
        """Of each file of weights: which it is, its size, and when it was written."""
        return [(s.st_ino, s.st_size, s.st_mtime_ns) for s in map(_status, self.paths)]


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise ModelNotFoundError(f"{path}: {error.strerror}") from error
