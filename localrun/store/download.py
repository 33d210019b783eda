"""Knows no model: brings hub files into the shared cache, whole and verified or not at all.

For each file: continue what an earlier process left, hash every byte, compare size and digest,
rename the blob into place. When all blobs are there: links of the snapshot, then the revision's
name. Whatever stops it leaves the cache as it was, and partial files that the next try continues.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import replace

from localrun.config import Settings
from localrun.errors import DownloadError, LocalrunError, ModelNotFoundError, VerificationError
from localrun.ref import HubRef
from localrun.store.disk import require_space
from localrun.store.download_partial import Partial, growth, left_behind, sweep
from localrun.store.download_stream import Interruption, OutOfDate, Patience, Source
from localrun.store.files import ModelFile, ModelFiles
from localrun.store.hub_address import endpoint
from localrun.store.hub_layout import COMMIT, DEFAULT_REVISION, HubRepo, inside
from localrun.store.progress import Progress

PARALLEL_FILES = 4
_ROUNDS = 5


def fetch(
    files: ModelFiles,
    settings: Settings,
    progress: Progress,
    *,
    revision: str | None = None,
    patience: Patience | None = None,
) -> ModelFiles:
    """Download what ``hub.resolve`` found into the Hugging Face cache; returns it with paths.

    ``revision`` is what ``resolve`` was asked for: the branch or tag that shall stand for the
    commit from now on, ``main`` without.

    Raises:
        DownloadError: the network or the server; what has arrived is kept for the next try.
        AccessError: gated or private.
        VerificationError: bytes differ from their digest (discarded), or a name cannot be.
        DiskFullError: with the bytes needed; what has arrived is kept.
        LocalrunError: the disk fails otherwise.
    """
    if not isinstance(files.ref, HubRef) or not COMMIT.match(files.revision or ""):
        raise ModelNotFoundError(f"{files.ref} is not a model of the hub at a commit")
    assert files.revision is not None
    repo = HubRepo.of(files.ref, settings)
    for file in files.files:  # every name and digest is judged before any byte is asked for
        repo.pointer(files.revision, file.name)
        if file.digest is None:
            raise VerificationError(f"{file.name}: the hub publishes no digest for it")
        repo.blob(file.digest)
    for _ in range(_ROUNDS):
        try:
            missing = [file for file in files.files if not _present(repo, file)]
            if missing:
                _download(files, missing, repo, settings, progress, patience or Patience())
            if _link(repo, files):
                repo.note(revision or DEFAULT_REVISION, files.revision)
                repo.sweep()
                return _with_paths(repo, files)
        except LocalrunError as error:
            # Another process removes the model and takes directories from under us.
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
    raise DownloadError(f"{files.ref}: another process keeps removing it from {repo.directory}")


def _download(
    files: ModelFiles,
    missing: Sequence[ModelFile],
    repo: HubRepo,
    settings: Settings,
    progress: Progress,
    patience: Patience,
) -> None:
    if settings.offline:
        raise DownloadError(
            f"{files.ref}: {missing[0].name} is not in the hub cache, and HF_HUB_OFFLINE is set",
            hint="unset HF_HUB_OFFLINE and pull again",
        )
    if any(file.url is None for file in missing):
        raise DownloadError(f"{files.ref}: not everything is on disk and no address is known")
    hub = endpoint(settings.hub_endpoint)
    for directory in (repo.blobs, repo.snapshots):
        repo.make(directory)
    needed = sum(max(0, file.bytes - left_behind(repo, file)) for file in missing)
    require_space(repo.blobs, needed)
    absent = sum(file.bytes for file in missing)
    meter = _Meter(progress)
    progress.start(str(files.ref), files.bytes, files.bytes - absent)
    source = Source(hub, settings.hub_token, patience)
    try:
        with ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="download") as pool:
            try:
                _await([pool.submit(_bring, repo, file, source, meter) for file in missing])
            finally:
                source.stop()
                pool.shutdown(wait=False, cancel_futures=True)
    finally:
        source.close()
        progress.finish()


def _await(running: Sequence[Future[None]]) -> None:
    """Until all are done or one fails; the first failure in file order is raised."""
    finished, _ = wait(running, return_when=FIRST_EXCEPTION)
    for future in running:
        if future in finished:
            future.result()


def _bring(repo: HubRepo, file: ModelFile, source: Source, meter: _Meter) -> None:
    """One file, from whatever is there to a published blob."""
    with _turn(repo, file, source):
        if _present(repo, file):  # while we waited for our turn
            meter.advance(file.bytes)
            return
        partial = Partial(repo, file)
        try:
            partial.resume(source.stopped)
            meter.advance(partial.offset)
            continued = partial.offset > 0
            _fill(partial, source, meter)
            try:
                partial.publish()
            except VerificationError:
                meter.advance(-file.bytes)
                if not continued:
                    raise
                # A power cut leaves holes in what was not synced: once more, from the first byte.
                _fill(partial, source, meter)
                partial.publish()
        finally:
            partial.close()
        sweep(repo, file)


def _fill(partial: Partial, source: Source, meter: _Meter) -> None:
    """Read until the file is whole, over dropped connections and changed files."""
    failures = restarts = 0
    while partial.offset < partial.file.bytes:
        before = partial.offset
        try:
            _read_once(partial, source, meter)
        except Interruption:
            if source.stopped.is_set():
                raise
            failures = 0 if partial.offset > before else failures + 1
            restarts += partial.offset < before
            if failures >= source.patience.attempts or restarts > source.patience.restarts:
                raise
            source.patience.pause(failures)
        except OutOfDate:
            meter.advance(-partial.offset)
            partial.discard()
            restarts += 1
            if restarts > source.patience.restarts:
                raise


def _read_once(partial: Partial, source: Source, meter: _Meter) -> None:
    file = partial.file
    with source.read(file, partial.offset, partial.etag) as (begin, etag, chunks):
        if begin == 0:
            meter.advance(-partial.offset)
            partial.restart(etag)
        for chunk in chunks:
            if partial.offset + len(chunk) > file.bytes:
                meter.advance(-partial.offset)
                partial.discard()
                raise VerificationError(f"{file.name}: more than {file.bytes} bytes arrived")
            partial.write(chunk)
            meter.advance(len(chunk))
    if partial.offset < file.bytes:
        raise Interruption(f"{file.name} ended after {partial.offset} of {file.bytes} bytes")


@contextmanager
def _turn(repo: HubRepo, file: ModelFile, source: Source) -> Iterator[None]:
    """Wait while another process fetches this file, as long as it gets somewhere.

    The lock is huggingface_hub's own and saves bandwidth only: disks that ignore it cost a second
    download, never a wrong file.
    """
    import filelock

    assert file.digest is not None
    path = repo.lock(file.digest)
    repo.make(path.parent)
    lock = filelock.FileLock(path, mode=0o664)
    seen, quiet_s = growth(repo, file), 0.0
    while not source.stopped.is_set():
        try:
            lock.acquire(timeout=source.patience.lock_poll_s)
            break
        except filelock.Timeout:
            now = growth(repo, file)
            quiet_s = quiet_s + source.patience.lock_poll_s if now == seen else 0.0
            seen = now
            if quiet_s >= source.patience.stall_s or _present(repo, file):
                break
        except (OSError, NotImplementedError):
            break
    try:
        yield
    finally:
        with suppress(OSError):
            lock.release()


def _present(repo: HubRepo, file: ModelFile) -> bool:
    assert file.digest is not None
    blob = repo.blob(file.digest)
    try:
        return inside(repo.root, blob) and blob.is_file() and blob.stat().st_size == file.bytes
    except FileNotFoundError:  # removed between two questions
        return False


def _link(repo: HubRepo, files: ModelFiles) -> bool:
    """Show the files under their commit. False if a blob went away meanwhile."""
    assert files.revision is not None
    for file in files.files:
        assert file.digest is not None
        if not _present(repo, file):
            return False
        repo.link(files.revision, file.name, file.digest)
    return all(_present(repo, file) for file in files.files)


def _with_paths(repo: HubRepo, files: ModelFiles) -> ModelFiles:
    assert files.revision is not None
    commit = files.revision
    return replace(
        files,
        files=tuple(replace(file, path=repo.pointer(commit, file.name)) for file in files.files),
    )


class _Meter:
    """Lets one thread at a time tell the watcher."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()

    def advance(self, bytes: int) -> None:
        if bytes:
            with self._lock:
                self._progress.advance(bytes)
