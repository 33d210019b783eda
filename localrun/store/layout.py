"""Knows no model: the one module that joins text into paths of the store.

    <data>/                                  0700, as every directory below
        manifests/<slug>-<hash>.json         one per reference, written last
        models/<publisher>/<name>/<file>     models that are not the hub's
        models/pip/<package>-<version>/      …from a wheel
        locks/<slug>-<hash>.lock             saves bandwidth, guards nothing
        incomplete/<pid>-<node>-<random>/    wheels on their way; swept when their process is gone

Hub files lie in the shared hub cache (``hub_cache.py``). Every path made here is inside its root
whatever the text was: parts are judged by POSIX and by Windows rules on every system.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import stat
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from localrun.config import Settings
from localrun.errors import RefError, UsageError, VerificationError
from localrun.ref import PART_MAX, LocalRef, ModelRef, PipRef, check_part
from localrun.store import disk
from localrun.store.disk import disk_errors, make_private

PIP_PUBLISHER = "pip"
NAME_MAX_BYTES = 200  # leaves room for a temporary's suffix below the 255 of most disks
DEPTH_MAX = 16
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|\Z)", re.IGNORECASE)
_WINDOWS_FORBIDDEN = frozenset('<>:"|?*\\')


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the store keeps what. Nothing is created until a ``private_*`` method is called."""

    data: Path

    @staticmethod
    def of(settings: Settings) -> Layout:
        return Layout(settings.data)

    @property
    def models(self) -> Path:
        return self.data / "models"

    @property
    def manifests(self) -> Path:
        return self.data / "manifests"

    @property
    def incomplete(self) -> Path:
        return self.data / "incomplete"

    def model_dir(self, ref: ModelRef) -> Path:
        """The directory of a model that is not the hub's.

        Raises:
            RefError: the reference has no directory here, or takes the wheels' publisher name.
        """
        match ref:
            case PipRef(package, version) if version is not None:
                return self.models / PIP_PUBLISHER / _pip_name(package, version)
            case LocalRef(publisher, name):
                if publisher.lower() == PIP_PUBLISHER:
                    raise RefError(f"{ref}: publisher {publisher!r} is taken by wheels")
                return self.models / check_part(publisher, "publisher") / check_part(name, "name")
            case _:
                raise RefError(f"{ref} has no directory of its own in the store")

    def manifest(self, ref: ModelRef) -> Path:
        return self.manifests / f"{_file_stem(str(ref))}.json"

    def lock(self, ref: ModelRef) -> Path:
        """One lock for all versions of a wheel: which one comes is not known beforehand."""
        if isinstance(ref, PipRef):
            ref = PipRef(ref.package)
        return self.data / "locks" / f"{_file_stem(str(ref))}.lock"

    def private_dir(self, path: Path) -> Path:
        """Create ``path``, at or below ``data``, each new directory with mode 0700.

        Raises:
            UsageError: a link or a file stands where a directory of the store belongs.
        """
        with disk_errors(self.data):
            make_private(self.data)
        current = self.data
        for part in path.relative_to(self.data).parts:
            current = current / part
            if not _is_link(current):
                with disk_errors(current), suppress(FileExistsError):
                    disk.DISK.mkdir(current)
                    disk.DISK.sync_directory(current.parent)
            if _is_link(current) or not current.is_dir():
                raise UsageError(
                    f"{current} is a link or a file where a directory of the store belongs",
                    hint="remove it; to keep models on another disk set LOCALRUN_HOME",
                )
        return current

    def new_scratch(self) -> Path:
        """A fresh private directory for one process's temporaries."""
        parent = self.private_dir(self.incomplete)
        scratch = parent / temporary_name()
        with disk_errors(scratch):
            disk.DISK.mkdir(scratch)
        return scratch

    def leftovers(self) -> tuple[Path, ...]:
        """Temporaries whose process is gone."""
        places = [self.incomplete, self.manifests]
        with suppress(OSError):
            places += [*self.models.glob("*/*"), *self.models.glob("*/*/*/")]
        found: list[Path] = []
        for place in places:
            if not any(_is_link(path) for path in (place, place.parent, place.parent.parent)):
                found += _abandoned(place)
        return tuple(found)

    def sweep(self) -> None:
        """Remove the leftovers. Never fails."""
        for path in self.leftovers():
            with suppress(OSError):
                if path.is_dir() and not _is_link(path):
                    shutil.rmtree(path)
                else:
                    path.unlink()


def temporary_name(target: str = "") -> str:
    """An unguessable name that says which process on which machine it belongs to."""
    return f"{target}.{os.getpid()}-{_node():08x}-{secrets.token_hex(8)}.tmp"


def owner_is_gone(name: str, age_seconds: float) -> bool:
    """True for a temporary that no live process can be writing; False when unsure.

    Names of other machines (a shared disk, another container) count as abandoned after a day.
    """
    found = re.search(r"\.([0-9]{1,10})-([0-9a-f]{8})-[0-9a-f]{16}\.tmp\Z", name)
    if found is None:
        return False
    if int(found[2], 16) != _node() or os.name == "nt":
        return age_seconds > 24 * 3600
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def child(root: Path, relative: str) -> Path:
    """``root`` joined with a name that a stranger wrote, as ``sub/dir/file``.

    Raises:
        VerificationError: naming the text, if any disk could read it as leaving ``root``.
    """
    problem = name_problem(relative)
    if problem is not None:
        raise VerificationError(f"file name {relative!r} {problem}", hint="the source is hostile")
    return root.joinpath(*relative.split("/"))


def name_problem(relative: str) -> str | None:
    """Why ``relative`` may not become a path below a directory of ours; None when it may."""
    if not relative or not relative.isprintable():
        return "is empty or holds a character that cannot be printed"
    if PurePosixPath(relative).is_absolute() or PureWindowsPath(relative).anchor:
        return "is absolute"
    parts = relative.split("/")
    if len(parts) > DEPTH_MAX:
        return f"is more than {DEPTH_MAX} directories deep"
    for part in parts:
        if part in ("", ".", ".."):
            return "leaves its directory or has an empty part"
        if len(part.encode("utf-8", "replace")) > NAME_MAX_BYTES:
            return f"has a part longer than {NAME_MAX_BYTES} bytes"
        if _WINDOWS_FORBIDDEN & set(part) or part[-1] in ". " or _RESERVED.match(part):
            return "is not a name that every disk can hold"
    return None


def _abandoned(directory: Path) -> list[Path]:
    found: list[Path] = []
    with suppress(OSError):
        for entry in os.scandir(directory):
            with suppress(OSError):
                age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                if owner_is_gone(entry.name, age):
                    found.append(Path(entry.path))
    return found


def _pip_name(package: str, version: str) -> str:
    # Versions may hold '!' and '+', which not every disk takes; 1!2 and 1_2 must stay apart.
    name = f"{package}-{version}"
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    if plain != name or len(plain) > PART_MAX:
        plain = f"{plain[:60].rstrip('.-_')}-{_digest(name)[:16]}"
    return check_part(plain, "package directory")


def _file_stem(text: str) -> str:
    # The hash keeps apart what the slug, or a disk that ignores case, would merge.
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[-60:].strip("-")
    return f"{slug or 'model'}-{_digest(text)[:16]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _node() -> int:
    import platform

    return zlib.crc32(platform.node().encode())


def _is_link(path: Path) -> bool:
    try:
        return stat.S_ISLNK(path.lstat().st_mode)
    except FileNotFoundError:
        return False
