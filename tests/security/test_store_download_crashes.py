"""Rows D1, D2 and D4 for hub pulls: kill -9 anywhere, and many pulls of one model at once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import huggingface_hub
import pytest

from localrun.config import Settings
from localrun.ref import HubRef
from localrun.store.download import fetch
from localrun.store.hub import resolve
from localrun.store.hub_cache import find, scan, verify
from localrun.store.progress import NoProgress
from tests.hub_stub import Fault, HubStub, noise, sha256
from tests.pull_children import Children

REF = HubRef("org", "repo")
NAME = "m-Q4_K_M.gguf"
SIZE = 1_500_000
DATA = noise(SIZE)
KILLS_PER_HOME = 5


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as parent:
        yield parent


@pytest.fixture
def hub() -> Iterator[HubStub]:
    with HubStub() as stub:
        stub.add("org/repo", {NAME: DATA})
        yield stub


def environment(hub: HubStub, home: Path) -> dict[str, str]:
    return {
        "LOCALRUN_HOME": str(home / "home"),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": hub.endpoint,
    }


def blobs(here: Settings) -> dict[str, int]:
    place = here.hub_cache / "models--org--repo" / "blobs"
    return {path.name: path.stat().st_size for path in place.iterdir()}


def check_finished(here: Settings) -> None:
    """Ours and huggingface_hub's view of the one right file, and no leftovers."""
    found = find(REF, here)
    assert found is not None
    verify(found.weights[0])
    theirs = huggingface_hub.hf_hub_download(
        "org/repo", NAME, local_files_only=True, cache_dir=here.hub_cache
    )
    assert Path(theirs).read_bytes() == DATA
    assert sha256(DATA) in blobs(here)


@pytest.mark.parametrize(
    "points",
    [pytest.param(25, id="25"), pytest.param(200, marks=pytest.mark.long, id="200")],
)
def test_pulls_killed_at_random_bytes_continue_where_they_stopped(
    hub: HubStub, children: Children, tmp_path: Path, points: int
) -> None:
    choose = random.Random(points)
    for round in range(points // KILLS_PER_HOME):
        home = tmp_path / str(round)
        here = hub.settings(home)
        hub.asked.clear()
        kept = 0
        for cut in sorted(choose.sample(range(1, SIZE), KILLS_PER_HOME)):
            hub.fault(NAME, Fault("hold", at=cut))

            got = children.pull_and_kill(environment(hub, home), cut)

            assert got == cut
            assert blobs(here) == dict.fromkeys(blobs(here), cut), "one partial, every byte"
            assert len(blobs(here)) == 1
            assert find(REF, here) is None
            assert list(scan(here)) == []
            asked = hub.gets(NAME)[-1].headers.get("range")
            assert asked == (f"bytes={kept}-" if kept else None)
            kept = cut
        hub.fault(NAME)
        fetch(resolve(REF, here), here, NoProgress())
        assert hub.gets(NAME)[-1].headers["range"] == f"bytes={kept}-"
        check_finished(here)
        assert len(blobs(here)) == 1


def test_pulls_killed_at_each_disk_call_leave_nothing_wrong(
    hub: HubStub, children: Children, tmp_path: Path
) -> None:
    """Sync, rename and link are where a half state could become visible."""
    hub.add("org/repo", {NAME: DATA[:100_000], "config.json": b"{}"})
    data = DATA[:100_000]
    for step in count():
        home = tmp_path / str(step)
        here = hub.settings(home)
        *_, end = children.run(environment(hub, home), die_at=step)
        seen = scan(here)
        assert all(entry.weights[0].path is not None for entry in seen)
        for entry in seen:
            verify(entry.weights[0])
        try:
            listed = huggingface_hub.scan_cache_dir(here.hub_cache)
        except huggingface_hub.CacheNotFound:
            pass
        else:
            assert listed.warnings == []
        if end["exits"] == [0]:
            assert seen
            break
        done = fetch(resolve(REF, here), here, NoProgress())
        path = done.weights[0].path
        assert path is not None
        assert path.read_bytes() == data
        assert list((here.hub_cache / "models--org--repo").rglob("*.tmp*")) == []
    assert step > 12


@pytest.mark.parametrize("no_flock", [False, True], ids=["locks", "locks ignored"])
@pytest.mark.parametrize(
    "rounds", [pytest.param(1, id="1"), pytest.param(10, marks=pytest.mark.long, id="10")]
)
def test_eight_pulls_at_once_all_end_well(
    hub: HubStub, children: Children, tmp_path: Path, no_flock: bool, rounds: int
) -> None:
    for round in range(rounds):
        home = tmp_path / str(round)
        here = hub.settings(home)
        hub.asked.clear()

        events = list(children.run(environment(hub, home), count=8, no_flock=no_flock))

        ended = [event for event in events if "ended" in event]
        assert [event["ended"] for event in ended] == ["ok"] * 8, ended
        assert no_flock or len(hub.gets(NAME)) == 1
        check_finished(here)
        assert len(blobs(here)) == 1


@pytest.mark.parametrize("no_flock", [False, True], ids=["locks", "locks ignored"])
def test_eight_heirs_of_one_killed_pull_end_well(
    hub: HubStub, children: Children, tmp_path: Path, no_flock: bool
) -> None:
    here = hub.settings(tmp_path)
    hub.fault(NAME, Fault("hold", at=700_000))
    children.pull_and_kill(environment(hub, tmp_path), 700_000)

    events = list(children.run(environment(hub, tmp_path), count=8, no_flock=no_flock))

    ended = [event for event in events if "ended" in event]
    assert [event["ended"] for event in ended] == ["ok"] * 8, ended
    resumed = [one for one in hub.gets(NAME) if "range" in one.headers]
    assert [one.headers["range"] for one in resumed] == ["bytes=700000-"]
    check_finished(here)
    assert len(blobs(here)) == 1
