"""Knows no network and mends nothing: what is wrong with the models on this disk, and the cure.

Records, presence, sizes and what nobody names are looked at without reading weights. With
``rehash`` every byte is read as well and compared with its digest.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from localrun.config import Settings
from localrun.errors import LocalrunError, SourceError
from localrun.formats.read import read_header
from localrun.ref import HubRef, parse
from localrun.store import download_partial, hub_cache, manifest
from localrun.store.files import ModelFile, ModelFiles
from localrun.store.hub_layout import HubRepo, inside
from localrun.store.layout import Layout
from localrun.store.library import Library
from localrun.store.manifest import Manifest, ManifestFile
from localrun.store.progress import NoProgress, Progress


@dataclass(frozen=True, slots=True)
class Finding:
    """``name`` is the model's reference where one is known. ``fix`` is what to type.

    ``harmless`` is what only takes space: every model works without it being mended.
    """

    name: str
    path: Path
    problem: str
    fix: str
    harmless: bool = False


@dataclass(frozen=True, slots=True)
class _Recorded:
    place: Path
    manifest: Manifest
    files: ModelFiles


def examine(
    settings: Settings, *, rehash: bool = False, progress: Progress | None = None
) -> tuple[Finding, ...]:
    """Everything that is wrong, in the order in which it is best mended. Changes nothing.

    ``rehash`` reads every byte of every model that is listed; files that came without a digest
    have their headers read.
    """
    layout = Layout.of(settings)
    findings = list(_places(layout))
    records, damaged = _records(layout)
    findings += damaged
    findings += _contradictions(records)
    for record in records:
        for noted, file in zip(record.manifest.files, record.files.files, strict=True):
            findings += _file(record.manifest, noted, file, settings)
    seen = {finding.path for finding in findings}
    findings += [each for each in _hub(settings) if each.path not in seen]
    if rehash:
        known = {os.path.realpath(finding.path) for finding in findings}
        findings += _contents(settings, known, progress or NoProgress())
    if not damaged:  # what nobody names may belong to a record that cannot be read
        findings += _orphans(layout, records)
    findings += _leftovers(layout)
    return tuple(findings)


def _places(layout: Layout) -> Iterator[Finding]:
    """Directories of the store that are links or files, or cannot be read."""
    for place in (layout.manifests, layout.models, layout.incomplete):
        if not os.path.lexists(place):
            continue
        if place.is_symlink() or not place.is_dir():
            yield Finding(
                place.name,
                place,
                "is a link or a file where a directory of the store belongs",
                "remove it; to keep models on another disk set LOCALRUN_HOME",
            )
            continue
        try:
            os.listdir(place)
        except OSError as error:
            yield Finding(place.name, place, f"cannot be read: {error.strerror}", "chmod u+rwx it")


def _records(layout: Layout) -> tuple[list[_Recorded], list[Finding]]:
    records: list[_Recorded] = []
    damaged: list[Finding] = []
    for place in sorted(layout.manifests.glob("*.json")):
        try:
            found = manifest.read(place)
        except FileNotFoundError:
            continue
        except SourceError as error:
            problem = error.message.removeprefix(f"{place}: ")
            damaged.append(Finding(place.stem, place, problem, error.hint))
            continue
        records.append(_Recorded(place, found, found.located(layout)))
        right = layout.manifest(parse(found.ref))
        if place != right:
            problem = f"is not where the record of {found.ref} belongs ({right.name})"
            damaged.append(Finding(found.ref, place, problem, f"rm {_quoted(place)}"))
    return records, damaged


def _contradictions(records: Iterable[_Recorded]) -> Iterator[Finding]:
    """Two records may share a file, but not say different things of it."""
    first: dict[Path, tuple[_Recorded, ModelFile]] = {}
    for record in records:
        for file in record.files.files:
            assert file.path is not None
            other, same = first.setdefault(file.path, (record, file))
            if (file.bytes, file.digest) != (same.bytes, same.digest):
                refs = (other.manifest.ref, record.manifest.ref)
                yield Finding(
                    record.manifest.ref,
                    file.path,
                    f"has two records that differ, of {refs[0]} and of {refs[1]}",
                    f"rm {_quoted(other.place)} {_quoted(record.place)}"
                    f" && localrun pull {refs[0]} && localrun pull {refs[1]}",
                )


def _file(
    record: Manifest, noted: ManifestFile, file: ModelFile, settings: Settings
) -> Iterator[Finding]:
    """Whether one file of a record is there, whole, and where it may be."""
    path = file.path
    assert path is not None
    problem, fix = None, _again(record.ref, linked=noted.linked)
    if record.origin == "hub" and not _below(path, settings.hub_cache):
        problem = f"is not in the hub cache {settings.hub_cache}"
        fix = f"set HF_HUB_CACHE to where it lies, or localrun rm {record.ref} and pull it again"
    elif not os.path.lexists(path):
        problem = "is not there"
    elif path.is_symlink() and record.origin != "hub" and not noted.linked:
        problem = "is a link where a file of the store belongs"
        fix = f"rm {_quoted(path)} && {fix}"
    elif not path.exists():
        problem = f"leads to {os.path.realpath(path)}, which is not there"
    elif record.origin == "hub" and not inside(settings.hub_cache, path):
        problem = f"leads out of the hub cache, to {os.path.realpath(path)}"
        fix = f"rm {_quoted(path)} && {fix}"
    else:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            problem = "is not a file"
            fix = f"remove it, then {fix}"
        elif status.st_size != file.bytes:
            problem = f"has {status.st_size} bytes where {file.bytes} belong"
    if problem is not None:
        yield Finding(record.ref, path, problem, fix)


def _again(ref: str, *, linked: bool) -> str:
    if linked:
        return f"put the file back, or localrun rm {ref} and import it from where it is now"
    return f"localrun pull {ref}"


def _below(path: Path, root: Path) -> bool:
    return Path(os.path.normpath(path)).is_relative_to(root)


def _hub(settings: Settings) -> Iterator[Finding]:
    """What the records do not tell of the shared cache: other tools fill it too."""
    for repo in hub_cache.repositories(settings):
        ref = str(HubRef(repo.org, repo.repo))
        for path in hub_cache.broken_links(repo):
            problem = f"leads to {os.path.realpath(path)}, which is not there"
            if path.exists():
                problem = f"leads out of the hub cache, to {os.path.realpath(path)}"
            fix = f"localrun pull {ref}; to do without: rm {_quoted(path)} (a link)"
            yield Finding(ref, path, problem, fix)
        yield from _partials(repo, ref)


def _partials(repo: HubRepo, ref: str) -> Iterator[Finding]:
    for size, path in download_partial.abandoned(repo):
        problem = f"{size} bytes of a download that stopped"
        fix = f"localrun pull {ref} continues it; to give it up: rm {_quoted(path)}"
        yield Finding(ref, path, problem, fix, harmless=True)


def _contents(settings: Settings, known: set[str], progress: Progress) -> Iterator[Finding]:
    """Read every byte of what is listed, each file once, but for what is ``known`` to be wrong."""
    models = [model.files for model in Library(settings).list() if model.files is not None]
    unique: dict[str, tuple[ModelFiles, ModelFile]] = {}
    for files in models:
        for file in files.files:
            if file.digest is not None and _ours_to_read(files, file, settings):
                unique.setdefault(os.path.realpath(str(file.path)), (files, file))
    unique = {real: one for real, one in unique.items() if real not in known}
    progress.start("reading every byte", sum(file.bytes for _, file in unique.values()))
    try:
        for real, (files, file) in unique.items():
            try:
                hub_cache.verify(file, progress.advance)
            except LocalrunError as error:
                problem = error.message.removeprefix(f"{file.path}").strip(": ")
                yield Finding(str(files.ref), Path(real), problem, _replaced(files, real))
    finally:
        progress.finish()
    for files in models:
        if any(file.digest is None for file in files.weights):
            yield from _header(files)


def _ours_to_read(files: ModelFiles, file: ModelFile, settings: Settings) -> bool:
    """Not where a tampered record leads: what differs is to be deleted."""
    if file.path is None or not file.path.is_file():
        return False
    if files.origin == "hub":
        return inside(settings.hub_cache, file.path)
    return files.origin == "local" or not file.path.is_symlink()


def _replaced(files: ModelFiles, real: str) -> str:
    if files.origin == "local":
        return f"get the file again where it came from, or localrun rm {files.ref}"
    return f"rm {_quoted(Path(real))} && localrun pull {files.ref}"


def _header(files: ModelFiles) -> Iterator[Finding]:
    """Of files without a digest, at least that their headers hold together."""
    paths = [file.path for file in files.weights if file.path is not None]
    if not all(path.is_file() for path in paths):
        return
    try:
        read_header(paths)
    except LocalrunError as error:
        fix = f"get the file again where it came from, or localrun rm {files.ref}"
        yield Finding(str(files.ref), paths[0], error.message, fix)


def _orphans(layout: Layout, records: Iterable[_Recorded]) -> Iterator[Finding]:
    """Files below models/ that no record names, by directory."""
    named = {file.path for record in records for file in record.files.files}
    strangers: dict[Path, list[Path]] = defaultdict(list)
    mixed: set[Path] = set()
    if layout.models.is_symlink():
        return
    for top, directories, names in os.walk(layout.models):
        links = [path for name in directories if (path := Path(top, name)).is_symlink()]
        for path in (*(Path(top, name) for name in names), *links):
            if path in named:
                mixed.add(path.parent)
            elif path.suffix != ".tmp":
                strangers[path.parent].append(path)
    for directory, paths in sorted(strangers.items()):
        for place in paths if directory in mixed or directory == layout.models else [directory]:
            yield Finding(
                place.name,
                place,
                f"{_size(paths if place == directory else [place])} bytes that no model names",
                f"rm -r {_quoted(place)}",
                harmless=True,
            )


def _size(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        with suppress(OSError):
            total += path.lstat().st_size
    return total


def _leftovers(layout: Layout) -> Iterator[Finding]:
    for path in layout.leftovers():
        problem = "was left by a process that is gone"
        yield Finding(path.name, path, problem, f"rm -r {_quoted(path)}", harmless=True)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
