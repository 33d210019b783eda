"""Rows D3 and P2 for hub pulls: a disk that fails anywhere, and names that point elsewhere."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from localrun.config import Settings
from localrun.errors import DiskFullError, LocalrunError, SourceError, VerificationError
from localrun.ref import HubRef
from localrun.store import disk, download
from localrun.store.disk import Disk
from localrun.store.download import fetch
from localrun.store.files import ModelFiles
from localrun.store.hub import resolve
from localrun.store.hub_cache import scan, verify
from localrun.store.progress import NoProgress
from tests.hub_stub import HubStub, git_blob, noise

REF = HubRef("org", "repo")
NAME = "m-Q4_K_M.gguf"
DATA = noise(200_000)


@pytest.fixture
def hub() -> Iterator[HubStub]:
    with HubStub() as stub:
        stub.add("org/repo", {NAME: DATA, "config.json": b"{}"})
        yield stub


class Failing(Disk):
    """Fails one call, the ``at``-th, or that and all after it."""

    def __init__(self, at: int, code: int, *, for_good: bool) -> None:
        self.calls, self.failed = 0, ""
        self._at, self._code, self._for_good = at, code, for_good
        self._lock = threading.Lock()

    def _count(self, name: str) -> None:
        with self._lock:
            due = self.calls == self._at or (self._for_good and self.calls > self._at)
            self.calls += 1
            if due:
                self.failed = self.failed or name
                raise OSError(self._code, os.strerror(self._code))

    def __getattribute__(self, name: str) -> Any:
        real = super().__getattribute__(name)
        if name not in vars(Disk) or name == "unlink":  # even a full disk gives space back
            return real

        def call(*arguments: Any) -> Any:
            self._count(name)
            return real(*arguments)

        return call


@pytest.mark.parametrize(
    ("code", "for_good"),
    [
        pytest.param(errno.ENOSPC, True, id="full from then on"),
        pytest.param(errno.EIO, False, id="one bad block"),
        pytest.param(errno.EDQUOT, False, id="quota once", marks=pytest.mark.long),
        pytest.param(errno.EIO, True, id="dead from then on", marks=pytest.mark.long),
    ],
)
def test_a_disk_that_fails_at_any_call_publishes_nothing_wrong(
    hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, for_good: bool
) -> None:
    monkeypatch.setattr(download, "PARALLEL_FILES", 1)
    wanted = resolve(REF, hub.settings(tmp_path))
    failed: set[str] = set()
    for at in count():
        here = hub.settings(tmp_path / str(at))
        failing = Failing(at, code, for_good=for_good)
        with monkeypatch.context() as patch:
            patch.setattr(disk, "DISK", failing)
            if not _fails(wanted, here, code):
                assert not failing.failed
                break
        failed.add(failing.failed)
        for entry in scan(here):
            verify(entry.weights[0])

        done = fetch(wanted, here, NoProgress())

        assert all(file.path is not None for file in done.files)
        verify(done.weights[0])
        leftovers = [*(here.hub_cache / "models--org--repo").rglob("*.tmp*")]
        assert leftovers == []
    assert failed == {"write", "sync", "rename", "sync_directory", "symlink", "create"}


def _fails(wanted: ModelFiles, here: Settings, code: int) -> bool:
    try:
        fetch(wanted, here, NoProgress())
    except LocalrunError as caught:
        error = caught
    else:
        return False
    assert error.exit_code == 1
    assert "\n" not in error.message
    if code == errno.EIO:
        assert os.strerror(code) in error.message
    else:
        assert isinstance(error, DiskFullError)
        assert error.needed_bytes > 0
    return True


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=["ENOSPC", "EDQUOT"])
def test_a_full_disk_keeps_what_arrived_for_the_next_pull(
    hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    here = hub.settings(tmp_path)
    hub.add("org/repo", {NAME: DATA})
    wanted = resolve(REF, here)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "DISK", Failing(2, code, for_good=True))
        with pytest.raises(DiskFullError) as caught:
            fetch(wanted, here, NoProgress())

    fetch(wanted, here, NoProgress())

    (first, second) = hub.gets(NAME)
    kept = len(DATA) - caught.value.needed_bytes
    assert kept > 0
    assert "range" not in first.headers
    assert second.headers["range"] == f"bytes={kept}-"


def test_a_partial_that_cannot_be_created_is_one_line(
    hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = hub.settings(tmp_path)
    wanted = resolve(REF, here)
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if str(path).endswith(".incomplete"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(LocalrunError, match="Read-only file system"):
            fetch(wanted, here, NoProgress())

    assert fetch(wanted, here, NoProgress()).complete


NASTY = [
    "../evil.gguf",
    "../../../../evil.gguf",
    "a/../../evil.gguf",
    "a/../b.gguf",
    "./m.gguf",
    "a/./m.gguf",
    "/etc/evil.gguf",
    "//host/share/evil.gguf",
    "a//m.gguf",
    "m.gguf/",
    "..",
    "",
    "C:\\Windows\\evil.gguf",
    "C:evil.gguf",
    "sub/D:evil.gguf",
    "\\\\host\\share\\evil.gguf",
    "..\\..\\evil.gguf",
    "a\\b.gguf",
    "m.gguf:stream",
    "CON.gguf",
    "sub/nul.gguf",
    "COM1.gguf",
    "m.gguf ",
    "m.gguf.",
    "sub./m.gguf",
    "m\0.gguf",
    "m\n.gguf",
    "m\x1b[2J.gguf",
    "m\u202efugg.gguf",
    "x" * 300 + ".gguf",
    "d/" * 40 + "m.gguf",
    "m?.gguf",
    "m*.gguf",
    "m|.gguf",
    '"m.gguf',
    "../README.md",
]


def fingerprint(root: Path) -> dict[str, str]:
    """Every name below ``root``, with what it is and holds."""
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = f"link {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "directory"
    return found


@pytest.fixture
def sentinel(hub: HubStub, tmp_path: Path) -> Path:
    """A tree with things worth overwriting, the hub cache deep inside it."""
    for name in ("evil.gguf", "x/evil.gguf", "x/hf/evil.gguf", "x/hf/hub/evil.gguf"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"precious {name}")
    return tmp_path


@pytest.mark.parametrize("name", NASTY, ids=[ascii(name)[:40] for name in NASTY])
def test_a_hub_cannot_name_a_file_outside_its_place(
    hub: HubStub, sentinel: Path, name: str
) -> None:
    here = hub.settings(sentinel / "x")
    wanted = resolve(REF, here)
    good = hub.repos["org/repo"]
    good.siblings = [
        {"rfilename": "m-Q8_0.gguf", "size": 4, "blobId": git_blob(b"good")},
        {"rfilename": name, "size": 4, "blobId": git_blob(b"evil")},
    ]
    before = fingerprint(sentinel)

    with pytest.raises(SourceError) as listed:
        resolve(REF, here)
    planted = replace(wanted, files=(replace(wanted.files[0], name=name), *wanted.files[1:]))
    with pytest.raises(VerificationError) as fetched:
        fetch(planted, here, NoProgress())

    for caught in (listed, fetched):
        assert repr(name) in caught.value.message
        assert caught.value.exit_code == 5
        assert caught.value.message.isprintable()
    assert fingerprint(sentinel) == before
