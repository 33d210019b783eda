"""Knows neither network nor disk: the files of one model, wherever they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from localrun.formats.header import Format
from localrun.ref import ModelRef

Role = Literal["weights", "projector", "config", "tokenizer", "index", "other"]
Origin = Literal["hub", "pip", "local", "path"]
DigestKind = Literal["sha256", "git-blob"]


@dataclass(frozen=True, slots=True)
class Digest:
    """``git-blob`` is sha1 over ``blob <size>\\0`` and the content: the hub's id of plain files."""

    kind: DigestKind
    value: str


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file. ``path`` is None while it is not on disk, ``url`` None where there is no remote."""

    name: str
    bytes: int
    role: Role
    path: Path | None = None
    url: str | None = None
    digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of one model, weights in shard order."""

    ref: ModelRef
    origin: Origin
    format: Format
    files: tuple[ModelFile, ...]
    revision: str | None = None
    licence: str | None = None
    quants: tuple[str, ...] = ()

    @property
    def weights(self) -> tuple[ModelFile, ...]:
        return tuple(file for file in self.files if file.role == "weights")

    @property
    def complete(self) -> bool:
        return all(file.path is not None for file in self.files)

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)
