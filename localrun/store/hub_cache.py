"""Knows no network: what the shared Hugging Face cache holds, whoever fetched it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from localrun.config import Settings
from localrun.errors import ModelNotFoundError, RefError, VerificationError
from localrun.ref import HubRef, check_part
from localrun.store.disk import disk_errors
from localrun.store.files import DigestKind, ModelFile, ModelFiles
from localrun.store.hub_choice import canonical, needed, select
from localrun.store.hub_layout import COMMIT, DEFAULT_REVISION, HubRepo, blob_digest, inside
from localrun.store.layout import name_problem
from localrun.store.quants import INDEX_SUFFIX, Grouped, Variant, group

INDEX_MAX_BYTES = 64 << 20
_CHUNK = 1 << 20


class Hash(Protocol):
    """The part of hashlib's objects that is needed here."""

    def update(self, data: bytes | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """One commit on disk: file names with the blobs they lead to.

    A blob may itself lead into huggingface_hub's store shared by repositories, whose names are
    other digests: links are followed once.
    """

    commit: str
    paths: Mapping[str, Path]

    @property
    def grouped(self) -> Grouped:
        return group((name, path.stat().st_size) for name, path in self.paths.items())


def find(ref: HubRef, settings: Settings, revision: str | None = None) -> ModelFiles | None:
    """The model as the cache holds it, complete, or None.

    Without ``revision`` the commit that ``main`` last stood for is looked at first, then the
    others, newest first. Sizes are what the disk says; ``verify`` checks content.
    """
    repo = HubRepo.of(ref, settings)
    for snapshot in _snapshots(repo, revision):
        with suppress(ModelNotFoundError, OSError):
            grouped = snapshot.grouped
            variant = select(ref, grouped)
            if _whole(snapshot, variant):
                return _files(repo, snapshot, grouped, variant, canonical(ref, grouped, variant))
    return None


def repositories(settings: Settings) -> Sequence[HubRepo]:
    """Every model repository that the cache has a corner for, by name."""
    root = settings.hub_cache
    found: list[HubRepo] = []
    with suppress(OSError):
        for name in sorted(os.listdir(root)):
            kind, *parts = name.split("--")
            if kind == "models" and len(parts) == 2:
                with suppress(RefError):
                    org = check_part(parts[0], "organisation")
                    found.append(HubRepo(root, org, check_part(parts[1], "repository")))
    return found


def scan(settings: Settings) -> Sequence[ModelFiles]:
    """Every complete model in the cache, one entry per quantization and commit, by name."""
    found: list[ModelFiles] = []
    for repo in repositories(settings):
        for snapshot in _snapshots(repo, None):
            with suppress(OSError):
                grouped = snapshot.grouped
                for variant in grouped.variants:
                    ref = canonical(HubRef(repo.org, repo.repo), grouped, variant)
                    if _whole(snapshot, variant):
                        found.append(_files(repo, snapshot, grouped, variant, ref))
    return found


def remove(files: ModelFiles, settings: Settings) -> int:
    """Remove a model of ``find`` or ``scan``: what no other model and no other commit uses.

    Links go before the blobs they lead to, so a crash in between wastes space and breaks nothing.

    Returns:
        Bytes freed.
    """
    if not isinstance(files.ref, HubRef) or files.revision is None:
        raise ModelNotFoundError(f"{files.ref} is not in the hub cache")
    repo = HubRepo.of(files.ref, settings)
    gone = {file.name for file in files.weights}
    snapshot = _read(repo, files.revision)
    left = group((name, 0) for name in snapshot.paths if name not in gone)
    if not left.variants:
        gone = set(snapshot.paths)
    candidates = {path for name, path in snapshot.paths.items() if name in gone}
    for name in gone & set(snapshot.paths):
        pointer = repo.pointer(files.revision, name)
        with disk_errors(pointer), suppress(FileNotFoundError):
            pointer.unlink()
        _prune(pointer.parent, repo.snapshots)
    used = {path for other in _snapshots(repo, None) for path in other.paths.values()}
    freed = 0
    for path in candidates - used:
        if path.parent == repo.blobs:
            with disk_errors(path), suppress(FileNotFoundError):
                size = path.stat().st_size
                path.unlink()
                freed += size
    repo.sweep()
    _forget_empty(repo)
    return freed


def broken_links(repo: HubRepo) -> Sequence[Path]:
    """Files of its commits that cannot be seen: their blob is gone, or lies outside the cache."""
    return [
        Path(directory, base)
        for directory, _, names in os.walk(repo.snapshots)
        for base in sorted(names)
        if not inside(repo.root, Path(directory, base))
    ]


def verify(file: ModelFile, advance: Callable[[int], None] = lambda _: None) -> None:
    """Read a file on disk and compare it with its digest; ``advance`` hears of the bytes read.

    Raises:
        VerificationError: it differs, or nothing says what it should be.
        LocalrunError: it cannot be read.
    """
    if file.path is None or file.digest is None:
        raise VerificationError(f"{file.name}: no published digest to compare with")
    hashing = hasher(file.digest.kind, file.bytes)
    with disk_errors(file.path), file.path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            hashing.update(chunk)
            advance(len(chunk))
    if hashing.hexdigest() != file.digest.value:
        raise VerificationError(
            f"{file.path} differs from its published digest {file.digest.value}",
            hint="remove the model and pull it again",
        )


def hasher(kind: DigestKind, size: int) -> Hash:
    """A running digest over ``size`` bytes that are still to come."""
    if kind == "sha256":
        return hashlib.sha256()
    hashing = hashlib.sha1(usedforsecurity=False)
    hashing.update(b"blob %d\0" % size)
    return hashing


def _snapshots(repo: HubRepo, revision: str | None) -> Iterator[_Snapshot]:
    first = repo.commit_of(revision or DEFAULT_REVISION)
    commits = [first] if first is not None else []
    if revision is None:
        with suppress(OSError):
            entries = [entry for entry in os.scandir(repo.snapshots) if COMMIT.match(entry.name)]
            entries.sort(key=lambda entry: (-entry.stat().st_mtime, entry.name))
            commits += [entry.name for entry in entries if entry.name != first]
    for commit in commits:
        snapshot = _read(repo, commit)
        if snapshot.paths:
            yield snapshot


def _read(repo: HubRepo, commit: str) -> _Snapshot:
    """What can be seen of a commit; links that lead nowhere or out of the cache cannot."""
    top = repo.snapshot(commit)
    paths: dict[str, Path] = {}
    if not inside(repo.root, top):
        return _Snapshot(commit, paths)
    for directory, _, names in os.walk(top):
        for base in names:
            path = Path(directory, base)
            name = path.relative_to(top).as_posix()
            if name_problem(name) is None and inside(repo.root, path) and path.is_file():
                with suppress(FileNotFoundError):
                    paths[name] = _blob(path)
    return _Snapshot(commit, dict(sorted(paths.items())))


def _blob(path: Path) -> Path:
    if not path.is_symlink():
        return path
    return Path(os.path.normpath(path.parent / os.readlink(path)))


def _whole(snapshot: _Snapshot, variant: Variant) -> bool:
    """Numbered shards were counted by ``group``; an index must find its shards here too."""
    if any(snapshot.paths[name].stat().st_size == 0 for name in variant.files):
        return False
    if variant.format == "gguf":
        return True
    home = PurePosixPath(variant.files[0]).parent
    return all(
        _indexed(path, home) <= {*variant.files}
        for name, path in snapshot.paths.items()
        if name.lower().endswith(INDEX_SUFFIX) and PurePosixPath(name).parent == home
    )


def _indexed(path: Path, home: PurePosixPath) -> set[str]:
    """The shards an index names; one that is no shard's name where the index cannot be read."""
    try:
        with path.open("rb") as file:
            weight_map = json.loads(file.read(INDEX_MAX_BYTES))["weight_map"]
        return {str(home / name) for name in weight_map.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {""}


def _files(
    repo: HubRepo, snapshot: _Snapshot, grouped: Grouped, variant: Variant, ref: HubRef
) -> ModelFiles:
    return ModelFiles(
        ref=ref,
        origin="hub",
        format=variant.format,
        files=tuple(
            ModelFile(
                name=name,
                bytes=snapshot.paths[name].stat().st_size,
                role=role,
                path=repo.pointer(snapshot.commit, name),
                digest=blob_digest(snapshot.paths[name].name),
            )
            for name, role in needed(grouped, variant, tuple(snapshot.paths)).items()
        ),
        revision=snapshot.commit,
        quants=grouped.tags,
    )


def _prune(directory: Path, top: Path) -> None:
    while directory != top and directory.is_relative_to(top):
        try:
            directory.rmdir()
        except OSError:
            return
        directory = directory.parent


def _forget_empty(repo: HubRepo) -> None:
    """Refs whose commit is gone would make other tools call the repository corrupt."""
    with suppress(OSError):
        for path in sorted(repo.refs.rglob("*"), reverse=True):
            commit = repo.commit_of(path.relative_to(repo.refs).as_posix())
            if commit is not None and not repo.snapshot(commit).is_dir():
                path.unlink()
    for directory in (repo.snapshots, repo.refs, repo.blobs, repo.directory):
        with suppress(OSError):
            directory.rmdir()
