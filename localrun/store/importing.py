"""Knows no network: takes in models that lie on this disk already, by links, never by moving."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from localrun.config import Settings
from localrun.errors import HeaderError, SourceError, UsageError
from localrun.formats.read import read_header
from localrun.ref import PART_MAX, LocalRef, check_part
from localrun.store import disk, lock, manifest, on_disk
from localrun.store.files import ModelFile, ModelFiles
from localrun.store.layout import Layout, child, temporary_name
from localrun.store.manifest import Manifest, ManifestFile
from localrun.store.on_disk import Found

PUBLISHER = "imported"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A model of another store that was not taken in, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import of a whole store brought."""

    models: tuple[ModelFiles, ...]
    skipped: tuple[Skipped, ...]


def import_path(path: Path, settings: Settings, ref: LocalRef | None = None) -> ModelFiles:
    """Take in a GGUF file (with its splits), a safetensors file or a directory of them.

    Raises:
        ModelNotFoundError: nothing there. SourceError, HeaderError: not a whole, sound model.
        UsageError: the name is taken by another model.
    """
    found = on_disk.find(path.expanduser().absolute())
    named = ref or LocalRef(PUBLISHER, plain_name(on_disk.model_name(path.absolute().name)))
    return link_model(named, found, settings)


def link_model(ref: LocalRef, found: Found, settings: Settings) -> ModelFiles:
    """Link the files below the store under ``ref``, and record them. Raises as ``import_path``."""
    sound = _checked(found)
    layout = Layout.of(settings)
    directory = layout.private_dir(layout.model_dir(ref))
    layout.private_dir(layout.lock(ref).parent)
    with lock.held(layout.lock(ref)):
        made: list[Path] = []
        try:
            for file in sound.files:
                _link(layout, directory, file, made)
            record = _record(ref, sound)
            manifest.write(layout, record)
        except BaseException:
            for path in made:
                with suppress(OSError):
                    disk.DISK.unlink(path)
            raise
    return record.located(layout)


def plain_name(text: str) -> str:
    """A name the grammar of references takes, near to what another store calls it."""
    name = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-._")
    name = re.sub(r"\.{2,}", ".", re.sub(r"-{2,}", "-", name))[:PART_MAX].rstrip("-._")
    return check_part(name or "model", "model name")


def _checked(found: Found) -> Found:
    """The same files, after their header was read and every one can be named in the store."""
    weights = [file.path for file in found.files if file.role == "weights" and file.path]
    header = read_header(weights)
    if header.format != found.format:
        raise HeaderError("magic", 0, f"not a {found.format} file", file=str(weights[0]))
    return Found(header.format, found.files)


def _link(layout: Layout, directory: Path, file: ModelFile, made: list[Path]) -> None:
    assert file.path is not None
    target = child(directory, file.name)
    layout.private_dir(target.parent)
    source = Path(os.path.realpath(file.path))
    if os.path.lexists(target):
        if os.path.realpath(target) == str(source):
            return
        raise UsageError(
            f"{target} is another file already", hint="choose another name, or rm that model first"
        )
    temporary = child(target.parent, temporary_name(".link"))
    with disk.disk_errors(target):
        try:
            disk.DISK.symlink(source, temporary)
        except OSError:  # Windows without the right, or a disk without links
            disk.DISK.link(source, temporary)
        disk.DISK.rename(temporary, target)
        made.append(target)


def _record(ref: LocalRef, found: Found) -> Manifest:
    return Manifest(
        ref=str(ref),
        source=str(ref),
        origin="local",
        format=found.format,
        files=tuple(
            ManifestFile(file.name, file.bytes, file.role, file.digest, linked=True)
            for file in found.files
        ),
        verification="header checked; bytes as they were found",
        fetched_by_us=False,
        created=manifest.now(),
    )


def import_each(models: Sequence[tuple[LocalRef, Found]], settings: Settings) -> Imported:
    """Take in many models; one that is not sound does not stop the others."""
    taken: list[ModelFiles] = []
    skipped: list[Skipped] = []
    for ref, found in models:
        try:
            taken.append(link_model(ref, found, settings))
        except (SourceError, UsageError) as error:
            skipped.append(Skipped(str(ref), error.message))
    return Imported(tuple(taken), tuple(skipped))
