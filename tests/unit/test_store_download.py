"""Row D1: a server that breaks off or lies costs time, never a wrong file."""

from __future__ import annotations

import os
import shutil
import signal
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from localrun.config import Settings
from localrun.errors import (
    AccessError,
    DiskFullError,
    DownloadError,
    LocalrunError,
    ModelNotFoundError,
    VerificationError,
)
from localrun.ref import HubRef, PathRef
from localrun.store.download import fetch
from localrun.store.download_stream import Patience
from localrun.store.files import ModelFiles
from localrun.store.hub import resolve
from localrun.store.hub_cache import find, scan
from localrun.store.progress import NoProgress
from tests.hub_stub import Fault, HubStub, noise, sha256

REF = HubRef("org", "repo")
NAME = "m-Q4_K_M.gguf"
DATA = noise(300_000)
CUT = Fault("cut", at=100_000)
ALWAYS = None


class Slept:
    """Counts the pauses instead of making them."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    @property
    def patience(self) -> Patience:
        return Patience(
            stall_s=0.25, connect_s=5, attempts=4, lock_poll_s=0.05, sleep=self.pauses.append
        )


class Counted:
    """A watcher that adds up."""

    def __init__(self) -> None:
        self.label, self.total, self.done, self.finished = "", 0, 0, 0

    def start(self, label: str, total_bytes: int, done_bytes: int = 0) -> None:
        self.label, self.total, self.done = label, total_bytes, done_bytes

    def advance(self, bytes: int) -> None:
        self.done += bytes

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def hub() -> Iterator[HubStub]:
    with HubStub() as stub:
        stub.add("org/repo", {NAME: DATA, "config.json": b"{}"})
        yield stub


@pytest.fixture
def here(hub: HubStub, tmp_path: Path) -> Settings:
    return hub.settings(tmp_path)


def content(files: ModelFiles) -> bytes:
    path = files.weights[0].path
    assert path is not None
    return path.read_bytes()


def blobs(here: Settings) -> dict[str, int]:
    place = here.hub_cache / "models--org--repo" / "blobs"
    return {path.name: path.stat().st_size for path in place.iterdir()} if place.exists() else {}


def partials(here: Settings) -> list[int]:
    return [path.stat().st_size for path in partial_paths(here)]


def partial_paths(here: Settings) -> list[Path]:
    """Those of the weights; the small file beside them may be stopped anywhere."""
    place = here.hub_cache / "models--org--repo" / "blobs"
    return list(place.glob(f"{sha256(DATA)}.*.incomplete"))


def ranges(hub: HubStub) -> list[str | None]:
    return [one.headers.get("range") for one in hub.gets(NAME)]


FROM_CUT = "bytes=100000-"
SURVIVED: dict[str, tuple[list[Fault], list[str | None]]] = {
    "nothing wrong": ([], [None]),
    "cut": ([CUT], [None, FROM_CUT]),
    "cut twice": ([CUT, Fault("cut", at=200_000)], [None, FROM_CUT, "bytes=200000-"]),
    "cut at once": ([Fault("cut", at=0)], [None, None]),
    "cut before the last byte": ([Fault("cut", at=299_999)], [None, "bytes=299999-"]),
    "200 for 206": ([CUT, Fault("full")], [None, FROM_CUT]),
    "changed ETag": ([CUT, Fault("etag")], [None, FROM_CUT, None]),
    "range refused": ([CUT, Fault("status", at=416)], [None, FROM_CUT, None]),
    "stall before the first byte": ([Fault("stall")], [None, None]),
    "stall on the way": ([Fault("hold", at=100_000)], [None, FROM_CUT]),
    "short without a length": ([Fault("short")], [None, "bytes=299996-"]),
    "overloaded": ([Fault("status", at=503), Fault("status", at=429)], [None, None, None]),
}


@pytest.mark.parametrize(("faults", "asked"), SURVIVED.values(), ids=SURVIVED)
def test_a_server_that_recovers_delivers_the_exact_file(
    hub: HubStub, here: Settings, faults: list[Fault], asked: list[str | None]
) -> None:
    hub.fault(NAME, *faults)
    slept, counted = Slept(), Counted()

    done = fetch(resolve(REF, here), here, counted, patience=slept.patience)

    assert content(done) == DATA
    assert ranges(hub) == asked
    assert partials(here) == []
    assert (counted.label, counted.finished) == ("hf:org/repo:Q4_K_M", 1)
    assert counted.done == counted.total == len(DATA) + 2


FATAL: dict[str, tuple[list[Fault], type[LocalrunError], list[int]]] = {
    "wrong Content-Range": ([CUT, Fault("range")], DownloadError, [100_000]),
    "wrong total": ([CUT, Fault("total")], DownloadError, [100_000]),
    "gzip": ([Fault("gzip")], DownloadError, []),
    "gzip on the way": ([CUT, Fault("gzip")], DownloadError, [100_000]),
    "0 bytes": ([Fault("empty")], DownloadError, []),
    "another length": ([Fault("length")], DownloadError, []),
    "extra bytes": ([Fault("extra")], VerificationError, []),
    "wrong bytes": ([Fault("wrong")], VerificationError, []),
    "wrong bytes on the way": ([CUT, Fault("wrong")], VerificationError, []),
    "missing": ([Fault("missing")], DownloadError, []),
    "gated": ([Fault("gated")], AccessError, []),
    "overloaded for good": ([Fault("status", at=503, times=ALWAYS)], DownloadError, []),
    "always cut at once": ([Fault("cut", at=0, times=ALWAYS)], DownloadError, []),
    "always cut there": ([Fault("cut", at=100_000, times=ALWAYS)], DownloadError, [100_000]),
    "always stalled": ([Fault("stall", times=ALWAYS)], DownloadError, []),
    "always another file": ([*(CUT, Fault("etag")) * 9], DownloadError, []),
    "never resumes": ([*(CUT, Fault("status", at=416)) * 9], DownloadError, []),
}


@pytest.mark.parametrize(("faults", "error", "kept"), FATAL.values(), ids=FATAL)
def test_a_server_that_lies_publishes_nothing_and_the_next_pull_works(
    hub: HubStub,
    here: Settings,
    faults: list[Fault],
    error: type[LocalrunError],
    kept: list[int],
) -> None:
    wanted = resolve(REF, here)
    assert wanted.weights[0].digest is not None
    hub.fault(NAME, *faults)

    with pytest.raises(error, match="m-Q4_K_M") as caught:
        fetch(wanted, here, NoProgress(), patience=Slept().patience)

    assert caught.value.exit_code == 5
    assert wanted.weights[0].digest.value not in blobs(here)
    assert partials(here) == kept
    assert find(REF, here) is None
    assert list(scan(here)) == []

    hub.fault(NAME)
    done = fetch(wanted, here, NoProgress(), patience=Slept().patience)
    assert content(done) == DATA
    assert partials(here) == []


def test_waits_grow_between_tries_and_end(hub: HubStub, here: Settings) -> None:
    hub.fault(NAME, Fault("status", at=503, times=ALWAYS))
    slept = Slept()

    with pytest.raises(DownloadError, match="503"):
        fetch(resolve(REF, here), here, NoProgress(), patience=slept.patience)

    assert len(slept.pauses) == 3
    assert slept.pauses == sorted(slept.pauses)


def test_the_default_patience_notices_a_stall_within_thirty_seconds() -> None:
    assert Patience().stall_s <= 30


def test_a_resume_asks_for_the_very_file_it_began(hub: HubStub, here: Settings) -> None:
    wanted = resolve(REF, here)
    digest = wanted.weights[0].digest
    assert digest is not None
    hub.fault(NAME, CUT, Fault("range"))
    with pytest.raises(DownloadError):
        fetch(wanted, here, NoProgress(), patience=Slept().patience)

    fetch(wanted, here, NoProgress(), patience=Slept().patience)

    assert ranges(hub) == [None, FROM_CUT, FROM_CUT]
    assert [one.headers.get("if-range") for one in hub.gets(NAME)[1:]] == [f'"{digest.value}"'] * 2
    assert {one.headers["accept-encoding"] for one in hub.gets(NAME)} == {"identity"}


def test_damaged_partial_bytes_are_noticed_and_fetched_again(hub: HubStub, here: Settings) -> None:
    wanted = resolve(REF, here)
    hub.fault(NAME, CUT, Fault("range"))
    with pytest.raises(DownloadError):
        fetch(wanted, here, NoProgress(), patience=Slept().patience)
    (partial,) = partial_paths(here)
    partial.write_bytes(bytes(100_000))
    counted = Counted()

    done = fetch(wanted, here, counted, patience=Slept().patience)

    assert content(done) == DATA
    assert ranges(hub)[2:] == [FROM_CUT, None]
    assert counted.done == counted.total


@pytest.mark.parametrize("size", [300_000, 300_001, 0])
def test_partials_of_odd_length_end_well(hub: HubStub, here: Settings, size: int) -> None:
    wanted = resolve(REF, here)
    hub.fault(NAME, CUT, Fault("range"))
    with pytest.raises(DownloadError):
        fetch(wanted, here, NoProgress(), patience=Slept().patience)
    (partial,) = partial_paths(here)
    partial.write_bytes((DATA + b"more")[:size])

    done = fetch(wanted, here, NoProgress(), patience=Slept().patience)

    assert content(done) == DATA
    assert ranges(hub)[2:] == ([] if size == 300_000 else [None])
    assert partials(here) == []


@pytest.mark.parametrize("plant", ["symlink", "hard link", "directory"])
def test_a_planted_partial_is_not_written_into(
    hub: HubStub, here: Settings, tmp_path: Path, plant: str
) -> None:
    wanted = resolve(REF, here)
    hub.fault(NAME, CUT, Fault("range"))
    with pytest.raises(DownloadError):
        fetch(wanted, here, NoProgress(), patience=Slept().patience)
    (partial,) = partial_paths(here)
    victim = tmp_path / "victim"
    victim.write_bytes(DATA[:1000])
    partial.unlink()
    if plant == "symlink":
        partial.symlink_to(victim)
    elif plant == "hard link":
        partial.hardlink_to(victim)
    else:
        partial.mkdir()

    done = fetch(wanted, here, NoProgress(), patience=Slept().patience)

    assert content(done) == DATA
    assert victim.read_bytes() == DATA[:1000]


def test_many_files_of_equal_content_are_one_download(hub: HubStub, here: Settings) -> None:
    hub.add("org/repo", {f"m-Q8_0-0000{n}-of-00006.gguf": DATA for n in range(1, 7)})
    counted = Counted()

    done = fetch(resolve(REF, here), here, counted)

    assert len({file.path for file in done.weights}) == 6
    assert sum(len(hub.gets(file.name)) for file in done.weights) == 1
    assert counted.done == counted.total == 6 * len(DATA)


def test_an_empty_file_is_a_file(hub: HubStub, here: Settings) -> None:
    hub.add("org/repo", {NAME: DATA, "config.json": b""})

    done = fetch(resolve(REF, here), here, NoProgress())

    assert done.files[1].path is not None
    assert done.files[1].path.read_bytes() == b""


def test_one_file_that_fails_stops_the_others(hub: HubStub, here: Settings) -> None:
    names = [f"m-Q8_0-0000{n}-of-00006.gguf" for n in range(1, 7)]
    hub.add("org/repo", {name: noise(200_000, name) for name in names})
    for name in names[1:4]:
        hub.fault(name, Fault("hold", at=50_000, times=ALWAYS))
    hub.fault(names[0], Fault("missing"))

    with pytest.raises(DownloadError, match=r"00001-of-00006\.gguf"):
        # Were the others not woken, this would wait for their stalls.
        fetch(resolve(REF, here), here, NoProgress(), patience=Patience(stall_s=600))

    assert list(scan(here)) == []


def test_an_interrupt_ends_a_silent_download_at_once_and_keeps_what_arrived(
    hub: HubStub, here: Settings
) -> None:
    hub.add("org/repo", {NAME: DATA})
    hub.fault(NAME, Fault("hold", at=100_000))

    class Impatient(Counted):
        def advance(self, bytes: int) -> None:
            super().advance(bytes)
            if self.done >= 100_000:
                os.kill(os.getpid(), signal.SIGINT)

    wanted = resolve(REF, here)
    with pytest.raises(KeyboardInterrupt):
        fetch(wanted, here, Impatient(), patience=Patience(stall_s=600))

    assert partials(here) == [100_000]
    assert content(fetch(wanted, here, NoProgress())) == DATA
    assert ranges(hub) == [None, FROM_CUT]


def test_too_little_space_is_told_before_the_first_byte(
    hub: HubStub, here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 100_000, 100_000))

    with pytest.raises(DiskFullError) as caught:
        fetch(resolve(REF, here), here, NoProgress())

    assert caught.value.needed_bytes == len(DATA) + 2 - 100_000
    assert caught.value.exit_code == 1
    assert hub.gets(NAME) == []

    monkeypatch.undo()
    assert fetch(resolve(REF, here), here, NoProgress()).complete


def test_fetch_refuses_what_is_no_hub_model_and_what_has_no_digest(
    hub: HubStub, here: Settings
) -> None:
    wanted = resolve(REF, here)
    with pytest.raises(ModelNotFoundError):
        fetch(replace(wanted, ref=PathRef("./x.gguf")), here, NoProgress())
    with pytest.raises(ModelNotFoundError):
        fetch(replace(wanted, revision="main"), here, NoProgress())
    bare = replace(wanted, files=(replace(wanted.files[0], digest=None),))
    with pytest.raises(VerificationError, match="no digest"):
        fetch(bare, here, NoProgress())
    lost = replace(wanted, files=(replace(wanted.files[0], url=None),))
    with pytest.raises(DownloadError, match="no address"):
        fetch(lost, here, NoProgress())
    assert hub.gets(NAME) == []


def test_partials_carry_the_mode_of_the_cache(hub: HubStub, here: Settings) -> None:
    before = os.umask(0o027)
    try:
        done = fetch(resolve(REF, here), here, NoProgress())
    finally:
        os.umask(before)

    path = done.weights[0].path
    assert path is not None
    assert path.stat().st_mode & 0o777 == 0o640
