"""Knows no runner: what is kept of states on disk, and what becomes of files that are not right."""

from __future__ import annotations

import logging
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localrun.engine.cache import state_file
from localrun.engine.cache.state_file import (
    DamagedStateError,
    StateHeader,
    compact,
    read,
    read_header,
)
from localrun.engine.cache.states import StateStore
from localrun.store import disk

LONG = list(range(100))
STATE = bytes(range(256)) * 40
MOST = 1 << 24
posix = pytest.mark.skipif(os.name == "nt", reason="no modes and no links there")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "states"


@pytest.fixture
def open_store(folder: Path) -> Iterator[Callable[..., StateStore]]:
    """Another process's store of the same folder, each time."""
    opened: list[StateStore] = []

    def new(key: str = "model", budget: int = 1 << 20, queue: int = 1 << 20) -> StateStore:
        opened.append(StateStore(folder, key=key, budget_bytes=budget, queue_bytes=queue))
        return opened[-1]

    yield new
    for store in opened:
        assert store.close(10)


def put(store: StateStore, tokens: list[int], state: bytes = STATE, owner: str = "ann") -> None:
    assert store.put(owner, tokens, state)
    assert store.flush(10)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*")) if folder.exists() else []


def found(store: StateStore, prompt: list[int], owner: str = "ann", **how: Any) -> int:
    hit = store.find(prompt, owner, **how)
    return hit[1] if hit else 0


def test_a_state_outlives_its_store(open_store: Callable[..., StateStore]) -> None:
    put(open_store(), LONG)
    store = open_store()
    hit = store.find([*LONG, 7, 7], "ann")

    assert hit is not None
    assert hit[1] == 100
    assert store.load(hit[0]) == (LONG, STATE)


def test_the_store_that_wrote_it_finds_it_too(open_store: Callable[..., StateStore]) -> None:
    store = open_store()
    assert found(store, LONG) == 0
    put(store, LONG)
    assert found(store, LONG) == 100
    put(store, [7] * 100)
    assert found(store, [7] * 100) == 100


def test_an_empty_or_missing_folder_holds_nothing(
    open_store: Callable[..., StateStore], folder: Path
) -> None:
    store = open_store()
    assert found(store, LONG) == 0
    folder.mkdir(parents=True)
    assert found(store, LONG) == 0
    assert store.load("no such state") is None


@pytest.mark.parametrize(("key", "owner"), [("model", "bob"), ("model", ""), ("other", "ann")])
def test_nobody_else_finds_it(
    key: str, owner: str, open_store: Callable[..., StateStore], folder: Path
) -> None:
    put(open_store(), LONG)
    store = open_store(key)

    assert found(store, LONG, owner) == 0
    assert store.wants(owner, LONG, 1)
    assert len(files(folder)) == 1


def test_neither_owner_nor_key_stands_in_it(
    open_store: Callable[..., StateStore], folder: Path
) -> None:
    put(open_store("a-model-file"), LONG, owner="sk-secret")
    (path,) = files(folder)

    assert b"sk-secret" not in path.read_bytes()
    assert b"a-model-file" not in path.read_bytes()


@posix
def test_files_and_folders_are_their_users_alone(
    open_store: Callable[..., StateStore], folder: Path
) -> None:
    folder.mkdir(parents=True, mode=0o755)
    put(open_store(), LONG)
    (path,) = files(folder)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_one_that_spares_most_is_found(open_store: Callable[..., StateStore]) -> None:
    store = open_store()
    for length in (60, 90, 75):
        put(store, [*LONG[:length], *[500 + length] * 10])

    assert found(store, LONG) == 90
    assert found(store, [*LONG[:80], 1]) == 80
    assert found(store, [*LONG[:80], 1], whole=True) == 0
    assert found(store, [*LONG[:75], *[575] * 10, 1], whole=True) == 85


def test_a_long_state_is_not_loaded_for_a_short_beginning(
    open_store: Callable[..., StateStore],
) -> None:
    store = open_store()
    put(store, [*LONG, *[7] * 3000])

    assert found(store, LONG) == 0
    assert found(store, [*LONG, *[7] * 2000]) == 2100


def test_a_longer_state_takes_the_place_of_what_it_extends(
    open_store: Callable[..., StateStore], folder: Path
) -> None:
    store = open_store()
    put(store, LONG)
    put(store, LONG, owner="bob")
    found(store, LONG)
    put(store, [*LONG, 7])

    assert len(files(folder)) == 2
    assert found(store, [*LONG, 7, 8]) == 101
    assert found(store, LONG, "bob") == 100


def test_a_state_that_cannot_be_cut_replaces_nothing(
    open_store: Callable[..., StateStore],
) -> None:
    store = open_store()
    put(store, LONG)
    found(store, LONG)
    assert store.put("ann", [*LONG, 7], STATE, whole=True)
    assert store.flush(10)

    assert found(store, [*LONG, 8], whole=True) == 100
    assert found(store, [*LONG, 7, 8], whole=True) == 101


def test_what_is_there_already_is_not_wanted_again(open_store: Callable[..., StateStore]) -> None:
    store = open_store()
    put(store, LONG)

    assert not store.wants("ann", LONG, 1)
    assert not store.wants("ann", LONG[:50], 1)
    assert store.wants("ann", LONG[:50], 1, whole=True)
    assert store.wants("ann", [*LONG, 7], 1)
    assert not store.wants("ann", [], 1)


def age(path: Path, seconds: int) -> None:
    os.utime(path, (seconds, seconds))


def test_the_longest_unused_give_way_whatever_model_they_are_of(
    open_store: Callable[..., StateStore], folder: Path
) -> None:
    size = len(STATE) + 1000
    for at, key in enumerate(["one", "two", "three"]):
        put(open_store(key, 3 * size), LONG)
        for path in files(folder):
            if path.stat().st_mtime > 1000:
                age(path, at)
    first = open_store("one", 3 * size)
    hit = first.find(LONG, "ann")
    assert hit is not None
    assert first.load(hit[0]) is not None  # used now

    put(open_store("four", 3 * size), LONG)

    left = [key for key in ("one", "two", "three", "four") if found(open_store(key), LONG)]
    assert left == ["one", "three", "four"]
    assert sum(path.stat().st_size for path in files(folder)) <= 3 * size


def test_more_than_the_budget_is_refused(
    open_store: Callable[..., StateStore], folder: Path
) -> None:
    store = open_store(budget=len(STATE))

    assert store.most_bytes == len(STATE)
    assert not store.wants("ann", LONG, len(STATE) + 1)
    assert not store.put("ann", LONG, STATE)
    assert files(folder) == []


class Gate(disk.Disk):
    """A disk that is not asked before the test lets it."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def create(self, path: Path) -> int:
        self.open.wait(60)
        return super().create(path)


def test_a_slow_disk_holds_nobody_up(
    open_store: Callable[..., StateStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    monkeypatch.setattr(disk, "DISK", gate)
    store = open_store(queue=2 * len(STATE))

    assert store.put("ann", LONG, STATE)
    assert store.put("bob", LONG, STATE)
    assert not store.put("cid", LONG, STATE)
    assert not store.wants("cid", LONG, 1, wait_s=0.01)
    assert not store.flush(0.01)
    assert not store.close(0.01)
    assert not store.put("dan", LONG, b"")
    gate.open.set()
    assert store.close(10)
    assert [found(open_store(), LONG, owner) for owner in ("ann", "bob", "cid")] == [100, 100, 0]


def test_a_full_disk_keeps_nothing_and_says_so_once(
    open_store: Callable[..., StateStore],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Full(disk.Disk):
        def write(self, descriptor: int, data: memoryview) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "DISK", Full())
    store = open_store()
    put(store, LONG)

    assert files(folder) == []
    assert len(caplog.records) == 1
    assert "no space left" in caplog.text
    monkeypatch.undo()
    put(store, LONG)
    assert found(store, LONG) == 100


@posix
@pytest.mark.parametrize("what", ["a file", "a link"])
def test_what_is_no_folder_is_left_alone(
    what: str, open_store: Callable[..., StateStore], folder: Path, tmp_path: Path
) -> None:
    folder.parent.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if what == "a link":
        folder.symlink_to(elsewhere)
    else:
        folder.write_text("mine")
    store = open_store()
    put(store, LONG)

    assert found(store, LONG) == 0
    assert files(elsewhere) == []


@posix
def test_links_and_pipes_in_the_folder_are_not_opened(
    open_store: Callable[..., StateStore], folder: Path, tmp_path: Path
) -> None:
    put(open_store(), LONG)
    (path,) = files(folder)
    target = tmp_path / "target"
    path.rename(target)
    path.symlink_to(target)
    os.mkfifo(path.with_name(path.name.replace(".state", "0.state")))

    assert found(open_store(), LONG) == 0
    assert target.exists()


def test_what_a_dead_process_left_is_swept(
    open_store: Callable[..., StateStore], folder: Path
) -> None:
    folder.mkdir(parents=True)
    left = folder / ".x.state.1-00000000-0123456789abcdef.tmp"
    left.write_bytes(b"half")
    age(left, 1000)
    put(open_store(), LONG)

    assert [path.suffix for path in files(folder)] == [".state"]


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "the magic": lambda data: flipped(data, 0),
    "the key": lambda data: flipped(data, 12),
    "the owner": lambda data: flipped(data, 44),
    "the count of tokens": lambda data: flipped(data, 76),
    "tokens without end": lambda data: data[:76] + b"\xff" * 4 + data[80:],
    "the size of the state": lambda data: flipped(data, 80),
    "a state without end": lambda data: data[:80] + b"\xff" * 8 + data[88:],
    "a token": lambda data: flipped(data, 88 + 4 * 50),
    "the header's checksum": lambda data: flipped(data, 88 + 400),
    "the state's first byte": lambda data: flipped(data, 88 + 404),
    "the state's last byte": lambda data: flipped(data, -5 + len(data)),
    "the state's checksum": lambda data: flipped(data, len(data) - 1),
    "one byte less": lambda data: data[:-1],
    "one byte more": lambda data: data + b"\0",
    "half of it": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "another file": lambda data: b"GGUF" + data[4:],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("known", [False, True], ids=["unseen", "in the index"])
def test_a_damaged_file_is_absent_and_removed(
    damage: str,
    known: bool,
    open_store: Callable[..., StateStore],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(open_store(), LONG)
    (path,) = files(folder)
    store = open_store()
    if known:
        assert found(store, LONG) == 100
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    hit = store.find(LONG, "ann")

    assert hit is None or store.load(hit[0]) is None
    assert store.find(LONG, "ann") is None
    assert files(folder) == []
    assert path.name in caplog.text
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_another_version_is_absent_and_stays(
    open_store: Callable[..., StateStore], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(state_file, "VERSION", 2)
        put(open_store(), LONG)
    store = open_store()

    assert found(store, LONG) == 0
    assert len(files(folder)) == 1


def test_another_models_file_under_our_name_is_absent_and_stays(
    open_store: Callable[..., StateStore], folder: Path
) -> None:
    put(open_store("other"), LONG)
    put(open_store(), LONG)
    hit = open_store().find(LONG, "ann")
    assert hit is not None
    ours = folder / hit[0]
    (theirs,) = (path for path in files(folder) if path != ours)
    store = open_store()
    assert found(store, LONG) == 100  # knows its own
    theirs.replace(ours)

    assert store.load(ours.name) is None
    assert found(open_store(), LONG) == 0
    assert ours.exists()


def test_a_file_that_another_process_removed_is_absent(
    open_store: Callable[..., StateStore], folder: Path
) -> None:
    put(open_store(), LONG)
    store = open_store()
    hit = store.find(LONG, "ann")
    assert hit is not None
    (path,) = files(folder)
    path.unlink()

    assert store.load(hit[0]) is None
    store.discard(hit[0])
    assert store.find(LONG, "ann") is None


def test_processes_that_share_a_folder_see_each_others_states(
    open_store: Callable[..., StateStore],
) -> None:
    one, other = open_store(), open_store()
    assert found(other, LONG) == 0
    put(one, LONG)
    put(other, [7] * 100)

    assert found(one, [7] * 100) == 100
    assert found(other, LONG) == 100


def test_a_file_larger_than_the_budget_is_never_read(tmp_path: Path) -> None:
    path = tmp_path / "x.state"
    header = StateHeader(b"k" * 32, b"o" * 32, compact(LONG), 1 << 40)
    with path.open("wb") as file:
        file.write(b"".join(bytes(part) for part in state_file.written(header, b""))[:492])
        file.truncate(header.file_size)  # holes, no bytes

    with pytest.raises(DamagedStateError):
        read_header(path, 1 << 30)


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 2**31 - 1), max_size=40),
    st.integers(0, 3 * 2**20) | st.sampled_from([0, 1, 2**20 - 1, 2**20, 2**20 + 1]),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[int], size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.state"
    state = b"\xa5" * size
    header = StateHeader(b"k" * 32, b"o" * 32, compact(tokens), size)
    data = b"".join(bytes(part) for part in state_file.written(header, state))
    path.write_bytes(data)

    assert len(data) == header.file_size
    assert read(path, MOST) == (header, state)
    assert read_header(path, MOST) == header


@settings(max_examples=200)
@given(st.binary(max_size=300), st.integers(0, 3), st.integers(0, 2**64 - 1))
def test_no_bytes_do_more_than_count_as_damaged(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, count: int, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.state"
    head = struct.pack("<8sI64sIQ", state_file.MAGIC, 1, b"", count, size)
    for content in (data, head + data):
        path.write_bytes(content)
        with pytest.raises(DamagedStateError):
            read(path, MOST)
