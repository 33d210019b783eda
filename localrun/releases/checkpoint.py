"""Knows no target format: a safetensors checkpoint on this disk, opened for a conversion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from localrun.disk.staged import Stage
from localrun.errors import HeaderError, LocalrunError, UsageError
from localrun.formats.reader import FileSource
from localrun.formats.safetensors import join_shards, read_index
from localrun.formats.strict_json import as_object, parse_json, read_config
from localrun.releases.opened import Opened
from localrun.store.files import ModelFiles
from localrun.store.layout import child

CONFIG: Final = "config.json"
_TEXT_BYTES_MAX: Final = 64 << 20


class Checkpoint(Opened):
    """The weights of ``files`` and what lies beside them.

    Raises:
        UsageError: no safetensors model, or no config.json beside the weights.
        ModelNotFoundError, HeaderError: a file is gone or malformed, or the index beside the
            weights tells of other tensors than they hold.
    """

    def __init__(self, files: ModelFiles, stage: Stage | None = None) -> None:
        if files.format != "safetensors":
            raise UsageError(
                f"{files.ref}: a {files.format} file; safetensors checkpoints are converted",
                hint="name the checkpoint that the file was made of",
            )
        super().__init__(files, stage)
        try:
            self.config: Mapping[str, object] = self._config()
            for file in files.files:
                if file.role == "index" and file.path is not None:
                    self._hold_to(file.path)
        except (LocalrunError, OSError):
            self.close()
            raise

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
        raw = self.raw(name)
        try:
            return None if raw is None else raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise HeaderError("text", error.start, "is not UTF-8", file=name) from None

    def _hold_to(self, index: Path) -> None:
        """Raises HeaderError where the index and the shards disagree. A repository may hold the
        index of other files too, in which the same model is stored once more."""
        with FileSource(index) as source:
            placed = read_index(source, index.name)
        if not {path.name for path in self.paths} & set(placed.values()):
            return
        try:
            join_shards(self.parts, placed)
        except HeaderError as error:
            raise (error if error.file else error.in_file(index.name)) from None

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
        raw = self.raw(name)
        try:
            return None if raw is None else parse_json(raw, "text", 0)
        except HeaderError as error:
            raise error.in_file(name) from None

    def raw(self, name: str) -> bytes | None:
        """The bytes of a file beside the weights; None where there is no such file.

        Raises:
            HeaderError: too large.
        """
        path = child(self.folder, name)
        if not path.is_file():
            return None
        with FileSource(path) as source:
            if source.size > _TEXT_BYTES_MAX:
                raise HeaderError("file", 0, f"{source.size} bytes are too many", file=name)
            return source.read(0, source.size)
