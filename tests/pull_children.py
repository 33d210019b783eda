"""Pulls in real child processes that can be killed, started in milliseconds.

One parent imports everything once and forks a child for each pull; it has no thread, so forking is
safe. As a program it reads one JSON job a line and prints one JSON event a line:

    {"pid": 17, "got": 65536}     a child received bytes
    {"pid": 17, "ended": "ok"}    or the name of its error's class
    {"exits": [0, -9]}            all children of the job are gone
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class Children:
    """Use in a ``with``; one job at a time."""

    def __init__(self) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "HF_TOKEN"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.pull_children"],
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=30)

    def run(self, environment: dict[str, str], **job: object) -> Iterator[dict[str, Any]]:
        """Start a job and yield its events, the last one with ``exits``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"environment": environment, **job}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            event = json.loads(line)
            yield event
            if "exits" in event:
                return
        raise AssertionError("the parent of the children ended")

    def pull_and_kill(self, environment: dict[str, str], at: int) -> int:
        """Kill a pull with SIGKILL once it has ``at`` bytes; returns how many it had."""
        got = -1
        for event in self.run(environment):
            if event.get("got", -1) >= at > got:
                got = int(event["got"])
                os.kill(event["pid"], signal.SIGKILL)
            if "exits" in event:
                assert event["exits"] == [-signal.SIGKILL], event
        return got


class _Telling:
    def __init__(self) -> None:
        self.got = 0

    def start(self, label: str, total_bytes: int, done_bytes: int = 0) -> None:
        self.advance(0)

    def advance(self, bytes: int) -> None:
        self.got += bytes
        _tell(got=self.got)

    def finish(self) -> None:
        return None


def _tell(**event: object) -> None:
    # One write below PIPE_BUF: lines of several children do not mix.
    os.write(1, (json.dumps({"pid": os.getpid(), **event}) + "\n").encode())


def _pull(job: dict[str, Any]) -> None:
    from localrun.config import settings
    from localrun.errors import LocalrunError
    from localrun.ref import HubRef
    from localrun.store import disk, download, hub
    from localrun.store.download_stream import Patience

    if job.get("no_flock"):
        import fcntl

        fcntl.flock = lambda *_: None
    if "die_at" in job:
        download.PARALLEL_FILES = 1
        disk.DISK = _mortal(job["die_at"])
    here = settings(job["environment"])
    try:
        wanted = hub.resolve(HubRef("org", "repo"), here)
        download.fetch(wanted, here, _Telling(), patience=Patience(lock_poll_s=0.05))
    except LocalrunError as error:
        _tell(ended=type(error).__name__, message=str(error))
    else:
        _tell(ended="ok")


def _mortal(die_at: int) -> Any:
    """A disk under which the process is killed just before its n-th call."""
    from localrun.store.disk import Disk

    left = [die_at]

    class Mortal(Disk):
        def __getattribute__(self, name: str) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getattribute__(name)

    return Mortal()


def _main() -> None:
    # Imported once here, not in each child.
    import filelock
    import httpx2
    import huggingface_hub.hf_api

    import localrun.store.download
    import localrun.store.hub

    assert all((filelock, httpx2, huggingface_hub, localrun))
    for line in sys.stdin:
        job = json.loads(line)
        pids = []
        for _ in range(job.get("count", 1)):
            pid = os.fork()
            if pid == 0:
                try:
                    _pull(job)
                finally:
                    os._exit(0)
            pids.append(pid)
        exits = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        os.write(1, (json.dumps({"exits": exits}) + "\n").encode())


if __name__ == "__main__":
    _main()
