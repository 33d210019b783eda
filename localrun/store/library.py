"""Knows no network: what models this disk has, ours and those of the shared hub cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from localrun.config import Settings
from localrun.errors import ModelNotFoundError, SourceError, UsageError
from localrun.ref import CatalogueRef, HubRef, ModelRef, PathRef, PipRef, parse
from localrun.store import catalogue, disk, hub_cache, lock, manifest, on_disk
from localrun.store.files import ModelFiles
from localrun.store.layout import Layout
from localrun.store.manifest import Manifest

RM_WAIT_SECONDS = 30.0
State = Literal["ok", "missing files", "damaged manifest"]


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One line of ``list``. ``files`` is None for a damaged manifest; ``detail`` says why."""

    ref: str
    state: State
    files: ModelFiles | None
    detail: str = ""
    verification: str = ""
    fetched_by_us: bool = False
    created: str | None = None

    @property
    def bytes(self) -> int:
        return self.files.bytes if self.files else 0


@dataclass(frozen=True, slots=True)
class Removed:
    """What ``remove`` did: paths that are gone, and the references that keep the others."""

    ref: str
    paths: tuple[Path, ...]
    freed_bytes: int
    kept_for: tuple[str, ...] = ()


class Library:
    """The models on this disk. Reads the disk anew at each call."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._layout = Layout.of(settings)

    def find(self, ref: ModelRef) -> ModelFiles | None:
        """The model if all of its files are here, otherwise None.

        Raises:
            SourceError: its manifest is damaged. ModelNotFoundError: a path with nothing there.
        """
        if isinstance(ref, PathRef):
            return on_disk.model_files(ref)
        if isinstance(ref, CatalogueRef):
            ref = catalogue.canonical(ref)
        record = self.record(ref)
        if record is not None and not record.missing(self._layout):
            return record.located(self._layout)
        if isinstance(ref, CatalogueRef):
            if catalogue.entry(ref.name) is None:
                return None
            found = self.find(catalogue.resolve(ref)[1])
            return None if found is None else replace(found, ref=ref)
        if isinstance(ref, HubRef):
            return hub_cache.find(ref, self._settings)
        return None

    def record(self, ref: ModelRef) -> Manifest | None:
        """The manifest of a reference, or one of another reference to the same wheel.

        Raises:
            SourceError: the manifest is damaged.
        """
        if isinstance(ref, PathRef):
            return None
        with suppress(FileNotFoundError):
            return manifest.read(self._layout.manifest(ref))
        if isinstance(ref, PipRef):
            for record in self._readable():
                if record.source == str(ref) or record.source.startswith(f"{ref}=="):
                    return replace(record, ref=str(ref))
        return None

    def list(self) -> tuple[StoredModel, ...]:
        """Every model here, by reference; a damaged record is listed as such."""
        stored, seen = [], set()
        for path in self._manifests():
            try:
                record = manifest.read(path)
            except FileNotFoundError:
                continue
            except SourceError as error:
                stored.append(StoredModel(path.stem, "damaged manifest", None, error.message))
                continue
            files = record.located(self._layout)
            seen |= {file.path for file in files.files}
            missing = record.missing(self._layout)
            stored.append(
                StoredModel(
                    ref=record.ref,
                    state="missing files" if missing else "ok",
                    files=files,
                    detail=", ".join(missing),
                    verification=record.verification,
                    fetched_by_us=record.fetched_by_us,
                    created=record.created,
                )
            )
        for files in self._hub_models():
            if not seen & {file.path for file in files.files}:
                stored.append(StoredModel(str(files.ref), "ok", files, "fetched by another tool"))
        return tuple(sorted(stored, key=lambda model: model.ref))

    def remove(self, ref: ModelRef, *, force: bool = False) -> Removed:
        """Remove a reference, and its files where no other reference uses them.

        The record goes first: a crash in between leaves files nobody lists, never the reverse.
        Of what was imported only our links go.

        Raises:
            ModelNotFoundError: nothing by that name is here.
            UsageError: another tool fetched the files, and ``force`` is not given.
        """
        if isinstance(ref, PathRef):
            raise UsageError(f"{ref}: rm removes models of the store, not files of yours")
        if isinstance(ref, CatalogueRef):
            ref = catalogue.canonical(ref)
        path = self._layout.manifest(ref)
        try:
            record = manifest.read(path)
        except FileNotFoundError:
            return self._remove_unrecorded(ref, force)
        except SourceError:
            with disk.disk_errors(path):
                disk.DISK.unlink(path)
            return Removed(str(ref), (path,), 0)
        return self._remove_recorded(record, force)

    def names(self) -> tuple[str, ...]:
        """References with a readable manifest, for nearest-name hints."""
        return tuple(record.ref for record in self._readable())

    def _remove_recorded(self, record: Manifest, force: bool) -> Removed:
        if not record.fetched_by_us and record.origin == "hub" and not force:
            raise _not_ours(record.ref)
        path = self._layout.manifest(parse(record.ref))
        with lock.held(self._layout.lock(parse(record.source)), wait_seconds=RM_WAIT_SECONDS):
            files = record.located(self._layout)
            used = self._users(except_for=record.ref)
            with disk.disk_errors(path), suppress(FileNotFoundError):
                disk.DISK.unlink(path)
                disk.DISK.sync_directory(path.parent)
            kept = tuple(sorted({used[file.path] for file in files.files if file.path in used}))
            if kept:
                return Removed(record.ref, (path,), 0, kept)
            if record.origin == "hub":
                return self._remove_hub(record.ref, replace(files, ref=parse(record.source)))
            return _unlinked(record, files)

    def _users(self, except_for: str) -> dict[Path | None, str]:
        return {
            file.path: other.ref
            for other in self._readable()
            if other.ref != except_for
            for file in other.located(self._layout).files
        }

    def _remove_unrecorded(self, ref: ModelRef, force: bool) -> Removed:
        """What has no record of its own: an alias of one that has, or another tool's."""
        found = self.find(ref)
        if found is not None and isinstance(ref, PipRef):
            package = str(PipRef(ref.package))
            known = [r.ref for r in self._readable() if r.source.partition("==")[0] == package]
            if str(ref) in known:  # it came while this looked
                return self.remove(ref, force=force)
            if known:
                raise UsageError(f"{ref} is here as {known[0]}", hint=f"`localrun rm {known[0]}`")
            found = None  # it went meanwhile
        if isinstance(ref, CatalogueRef) and found is not None:
            return self.remove(catalogue.resolve(ref)[1], force=force)
        if found is None or not isinstance(found.ref, HubRef):
            near = catalogue.closest(str(ref), self.names())
            said = f"; here are {', '.join(near)}" if near else ""
            raise ModelNotFoundError(f"{ref} is not on this disk{said}", nearest=near)
        if found.ref != ref and self._layout.manifest(found.ref).exists():
            return self.remove(found.ref, force=force)
        users = self._users(except_for=str(ref))
        owner = next((users[file.path] for file in found.weights if file.path in users), None)
        if owner is not None:
            raise UsageError(f"{ref} is here as {owner}", hint=f"`localrun rm {owner}`")
        if not force:
            raise _not_ours(str(ref))
        return self._remove_hub(str(found.ref), found)

    def _remove_hub(self, ref: str, files: ModelFiles) -> Removed:
        freed = hub_cache.remove(files, self._settings)
        gone = (file.path for file in files.files if file.path is not None)
        return Removed(ref, tuple(path for path in gone if not path.exists()), freed)

    def _manifests(self) -> tuple[Path, ...]:
        try:
            return tuple(sorted(self._layout.manifests.glob("*.json")))
        except OSError:
            return ()

    def _readable(self) -> Iterator[Manifest]:
        for path in self._manifests():
            with suppress(FileNotFoundError, SourceError):
                yield manifest.read(path)

    def _hub_models(self) -> tuple[ModelFiles, ...]:
        return tuple(hub_cache.scan(self._settings))


def _unlinked(record: Manifest, files: ModelFiles) -> Removed:
    gone, freed = [], 0
    for file, noted in zip(files.files, record.files, strict=True):
        assert file.path is not None
        with disk.disk_errors(file.path), suppress(FileNotFoundError):
            disk.DISK.unlink(file.path)
            gone.append(file.path)
            freed += 0 if noted.linked else file.bytes
    # A directory inside the model's own goes before it.
    for directory in sorted({path.parent for path in gone}, reverse=True):
        with suppress(OSError):  # not empty: something else lives there
            directory.rmdir()
    return Removed(record.ref, tuple(gone), freed)


def _not_ours(ref: str) -> UsageError:
    return UsageError(
        f"{ref} was fetched by another tool, which may still need it",
        hint=f"`localrun rm --force {ref}` removes it all the same",
    )
