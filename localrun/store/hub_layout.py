"""Knows no network and no weights: where the Hugging Face cache keeps what, and its one rule.

    <hub_cache>/
        .locks/models--org--repo/<digest>.lock
        models--org--repo/
            blobs/<digest>                     sha256 of LFS files, git blob id of the others
            blobs/<digest>.….incomplete        ours, on its way
            snapshots/<commit>/<file> -> ../../blobs/<digest>
            refs/<branch or tag>               holds a commit

The layout is huggingface_hub's
(https://huggingface.co/docs/huggingface_hub/guides/manage-cache). The rule: nothing is read or
written through a link that leaves the cache.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from localrun.config import Settings
from localrun.errors import RefError, SourceError, VerificationError
from localrun.ref import HubRef, check_part
from localrun.store import disk
from localrun.store.disk import disk_errors
from localrun.store.files import Digest
from localrun.store.layout import child, owner_is_gone, temporary_name

DEFAULT_REVISION = "main"
COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_VALUE = {"sha256": re.compile(r"[0-9a-f]{64}\Z"), "git-blob": re.compile(r"[0-9a-f]{40}\Z")}
_REF_MAX_BYTES = 1024
_BLOCK_BYTES = 4096  # what a new name may need of a full disk


@dataclass(frozen=True, slots=True)
class HubRepo:
    """One repository's corner of the cache. Nothing is created until a ``make`` or ``link``."""

    root: Path
    org: str
    repo: str

    @staticmethod
    def of(ref: HubRef, settings: Settings) -> HubRepo:
        return HubRepo(settings.hub_cache, check_part(ref.org, "organisation"), ref.repo)

    @property
    def directory(self) -> Path:
        return self.root / f"models--{self.org}--{check_part(self.repo, 'repository')}"

    @property
    def blobs(self) -> Path:
        return self.directory / "blobs"

    @property
    def snapshots(self) -> Path:
        return self.directory / "snapshots"

    @property
    def refs(self) -> Path:
        return self.directory / "refs"

    def blob(self, digest: Digest) -> Path:
        return self.blobs / blob_name(digest)

    def lock(self, digest: Digest) -> Path:
        return self.root / ".locks" / self.directory.name / f"{blob_name(digest)}.lock"

    def snapshot(self, commit: str) -> Path:
        if not COMMIT.match(commit):
            raise SourceError(f"{self.org}/{self.repo}: {commit[:80]!r} is not a commit")
        return self.snapshots / commit

    def pointer(self, commit: str, name: str) -> Path:
        """Where ``name`` of a commit lies.

        Raises:
            VerificationError: the name is not one that every disk keeps inside its directory.
        """
        return child(self.snapshot(commit), name)

    def ref(self, revision: str) -> Path:
        """Where a branch or tag notes its commit.

        Raises:
            RefError: the revision is not a name that every disk can hold.
        """
        parts = revision.split("/")
        return self.refs.joinpath(*(check_part(part, "revision") for part in parts))

    def commit_of(self, revision: str) -> str | None:
        """The commit a revision stood for when it was last fetched, None when never."""
        if COMMIT.match(revision):
            return revision
        try:
            path = self.ref(revision)
            with path.open("rb") as file:
                commit = file.read(_REF_MAX_BYTES).decode("ascii").strip()
        except (OSError, UnicodeDecodeError, RefError):
            return None
        return commit if COMMIT.match(commit) else None

    def make(self, directory: Path) -> Path:
        """Create a directory of the cache, level by level.

        Raises:
            SourceError: on the way lies a link that leaves the cache, or a file.
            LocalrunError: the disk fails, or another process removes the directory meanwhile.
        """
        with disk_errors(self.root, _BLOCK_BYTES):
            self.root.mkdir(parents=True, exist_ok=True)
            current = self.root
            for part in directory.relative_to(self.root).parts:
                current = current / part
                with suppress(FileExistsError):
                    current.mkdir()
                if not self._holds(current):
                    current.lstat()  # gone again: an rm at the same moment, not a planted link
                    if not self._holds(current):
                        raise SourceError(
                            f"{current} is a file or a link that leaves the hub cache",
                            hint="remove it; to keep models elsewhere set HF_HUB_CACHE",
                        )
        return directory

    def _holds(self, directory: Path) -> bool:
        return directory.is_dir() and inside(self.root, directory)

    def link(self, commit: str, name: str, digest: Digest) -> Path:
        """Let a commit's file be seen: a relative link to its blob, replaced in one step."""
        pointer = self.pointer(commit, name)
        self.make(pointer.parent)
        target = os.path.relpath(self.blob(digest), pointer.parent)
        with disk_errors(pointer, _BLOCK_BYTES):
            if pointer.is_symlink() and os.readlink(pointer) == target:
                return pointer
            temporary = self._temporary()
            try:
                disk.DISK.symlink(Path(target), temporary)
                disk.DISK.rename(temporary, pointer)
            finally:
                temporary.unlink(missing_ok=True)
            disk.DISK.sync_directory(pointer.parent)
        return pointer

    def note(self, revision: str, commit: str) -> None:
        """Let a branch or tag stand for a commit; the last step of a download."""
        if COMMIT.match(revision) or self.commit_of(revision) == commit:
            return
        path = self.ref(revision)
        self.make(path.parent)
        temporary = self._temporary()
        with disk_errors(path, _BLOCK_BYTES):
            try:
                descriptor = disk.DISK.create(temporary)
                try:
                    disk.DISK.write(descriptor, memoryview(commit.encode("ascii")))
                    disk.DISK.sync(descriptor)
                finally:
                    os.close(descriptor)
                temporary.chmod(self.directory.stat().st_mode & 0o666)  # the cache is shared
                disk.DISK.rename(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            disk.DISK.sync_directory(path.parent)

    def sweep(self) -> None:
        """Remove what killed processes left between two steps. Never fails."""
        with suppress(OSError):
            for path in self.directory.glob(".*.tmp"):
                if owner_is_gone(path.name, time.time() - path.lstat().st_mtime):
                    path.unlink()

    def _temporary(self) -> Path:
        """Beside snapshots/ and refs/, where other tools do not take it for a file or a branch."""
        return self.directory / temporary_name(".localrun")


def blob_name(digest: Digest) -> str:
    """A blob's file name.

    Raises:
        VerificationError: the digest is not one.
    """
    if not _VALUE[digest.kind].match(digest.value):
        raise VerificationError(f"{digest.value[:80]!r} is not a {digest.kind} digest")
    return digest.value


def blob_digest(name: str) -> Digest | None:
    """The digest a blob's name promises, None where the name promises nothing."""
    if _VALUE["sha256"].match(name):
        return Digest("sha256", name)
    return Digest("git-blob", name) if _VALUE["git-blob"].match(name) else None


def inside(root: Path, path: Path) -> bool:
    """True if ``path``, all links followed, lies in ``root``."""
    try:
        return path.resolve(strict=True).is_relative_to(root.resolve(strict=True))
    except (OSError, RuntimeError):
        return False
