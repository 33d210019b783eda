"""Knows no network: the record of one reference that is on this disk.

One JSON document per reference, written after everything it speaks of. A file that lies in the
reference's own directory (``Layout.model_dir``) has no ``path``: it is derived, so that a store
may be moved and a tampered record cannot point ``rm`` at somebody else's file. Only files of the
shared hub cache carry their absolute path.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from localrun.errors import RefError, SourceError, VerificationError
from localrun.formats.header import Format
from localrun.ref import HubRef, ModelRef, PathRef, parse
from localrun.store.atomic import AtomicFile
from localrun.store.files import Digest, DigestKind, ModelFile, ModelFiles, Origin, Role
from localrun.store.layout import Layout, child

MANIFEST_VERSION = 1
MANIFEST_MAX_BYTES = 4 << 20
_DIGEST_LENGTH = {"sha256": 64, "git-blob": 40}


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file. ``linked`` marks a link to what another tool or the user owns."""

    name: str
    bytes: int
    role: Role
    digest: Digest | None = None
    path: str | None = None
    linked: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """``ref`` is what was asked for, ``source`` where it came from; both canonical.

    ``verification`` says in words what the bytes were checked against; ``created`` is UTC,
    ISO 8601. ``fetched_by_us`` is False for what other tools brought to this disk.
    """

    ref: str
    source: str
    origin: Origin
    format: Format
    files: tuple[ManifestFile, ...]
    verification: str
    fetched_by_us: bool
    created: str
    revision: str | None = None
    licence: str | None = None

    def located(self, layout: Layout) -> ModelFiles:
        """The model with the paths its files have, or should have, on this disk."""
        source = parse(self.source)
        files = tuple(
            ModelFile(
                name=file.name,
                bytes=file.bytes,
                role=file.role,
                path=_place(layout, source, file),
                digest=file.digest,
            )
            for file in self.files
        )
        return ModelFiles(
            ref=parse(self.ref),
            origin=self.origin,
            format=self.format,
            files=files,
            revision=self.revision,
            licence=self.licence,
        )

    def missing(self, layout: Layout) -> tuple[str, ...]:
        """Names of the files that are gone or have another size."""
        return tuple(f.name for f in self.located(layout).files if not _present(f))


def _place(layout: Layout, source: ModelRef, file: ManifestFile) -> Path:
    return Path(file.path) if file.path else child(layout.model_dir(source), file.name)


def _present(file: ModelFile) -> bool:
    try:
        return file.path is not None and file.path.stat().st_size == file.bytes
    except OSError:
        return False


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def write(layout: Layout, manifest: Manifest) -> None:
    """Publish the record: from here on the model is listed.

    Raises:
        DiskFullError, LocalrunError: nothing is published.
    """
    document = {"version": MANIFEST_VERSION, **asdict(manifest)}
    data = json.dumps(document, indent=1).encode()
    layout.private_dir(layout.manifests)
    with AtomicFile(layout.manifest(parse(manifest.ref)), expected_bytes=len(data)) as out:
        out.write(data)
        out.commit()


def read(path: Path) -> Manifest:
    """Read one record strictly.

    Raises:
        FileNotFoundError: no such record.
        SourceError: the record is damaged; names the file and the field.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MANIFEST_MAX_BYTES + 1)
        if len(data) > MANIFEST_MAX_BYTES:
            raise ValueError(f"longer than {MANIFEST_MAX_BYTES} bytes")
        document = json.loads(data)
        if not isinstance(document, dict):
            raise ValueError("not an object")
        return _manifest(document)
    except FileNotFoundError:
        raise
    except _LaterVersion as error:
        raise SourceError(
            f"{path}: {error}", hint="update localrun; to do without, pull the model again"
        ) from error
    except (OSError, ValueError, RecursionError, RefError, VerificationError) as error:
        raise SourceError(
            f"{path}: damaged manifest: {error}", hint="pull the model again, or delete this file"
        ) from error


class _LaterVersion(ValueError):
    """Not damaged: written by a later program."""


def _manifest(document: dict[str, Any]) -> Manifest:
    version = document.get("version")
    if type(version) is int and version > MANIFEST_VERSION:
        raise _LaterVersion(
            f"a later localrun wrote it (version {version}, not {MANIFEST_VERSION})"
        )
    if version != MANIFEST_VERSION:
        raise ValueError(f"version {version!r}, this program reads {MANIFEST_VERSION}")
    files = document.get("files")
    if not isinstance(files, list) or not files:
        raise ValueError("files is not a list")
    manifest = Manifest(
        ref=_reference(document, "ref"),
        source=_reference(document, "source"),
        origin=_one_of(document, "origin", get_args(Origin)),
        format=_one_of(document, "format", get_args(Format)),
        files=tuple(_file(item) for item in files),
        verification=_text(document, "verification"),
        fetched_by_us=_flag(document, "fetched_by_us"),
        created=_text(document, "created"),
        revision=_optional(document, "revision"),
        licence=_optional(document, "licence"),
    )
    names = [file.name for file in manifest.files]
    if len(set(names)) != len(names):
        raise ValueError("files names one file twice")
    _check_places(manifest)
    return manifest


def _check_places(manifest: Manifest) -> None:
    source = parse(manifest.source)
    if manifest.origin == "hub":
        if not isinstance(source, HubRef) or not all(file.path for file in manifest.files):
            raise ValueError("a hub model names its repository and the paths of its files")
    else:
        Layout(Path()).model_dir(source)
        if any(file.path for file in manifest.files):
            raise ValueError("path is for files of the hub cache only")


def _file(item: object) -> ManifestFile:
    if not isinstance(item, dict):
        raise ValueError("files holds what is not an object")
    name = _text(item, "name")
    child(Path(), name)
    size = item.get("bytes")
    if type(size) is not int or size < 0:
        raise ValueError(f"bytes of {name!r} is {size!r}")
    path = _optional(item, "path")
    if path is not None and not Path(path).is_absolute():
        raise ValueError(f"path of {name!r} is not absolute")
    return ManifestFile(
        name=name,
        bytes=size,
        role=_one_of(item, "role", get_args(Role)),
        digest=_digest(item.get("digest")),
        path=path,
        linked=_flag(item, "linked"),
    )


def _digest(item: object) -> Digest | None:
    if item is None:
        return None
    if not isinstance(item, dict):
        raise ValueError("digest is not an object")
    kind: DigestKind = _one_of(item, "kind", get_args(DigestKind))
    value = _text(item, "value")
    if not re.fullmatch(f"[0-9a-f]{{{_DIGEST_LENGTH[kind]}}}", value):
        raise ValueError(f"digest {value!r} is not a {kind}")
    return Digest(kind, value)


def _reference(document: dict[str, Any], key: str) -> str:
    text = _text(document, key)
    if str(parse(text)) != text or isinstance(parse(text), PathRef):
        raise ValueError(f"{key} {text!r} is not in its canonical form")
    return text


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError(f"{key} is {value!r}, not a printable text")
    return value


def _optional(document: dict[str, Any], key: str) -> str | None:
    return None if document.get(key) is None else _text(document, key)


def _flag(document: dict[str, Any], key: str) -> bool:
    value = document.get(key)
    if not isinstance(value, bool):
        raise ValueError(f"{key} is {value!r}, neither true nor false")
    return value


def _one_of(document: dict[str, Any], key: str, allowed: tuple[str, ...]) -> Any:
    value = document.get(key)
    if value not in allowed:
        raise ValueError(f"{key} is {value!r}, not one of {', '.join(allowed)}")
    return value
