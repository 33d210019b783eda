"""Knows no model: a command inside a limit of memory, and the most that it took.

Where the kernel has control groups and we may make one (Linux, as root), the limit is a group's:
what the command holds of its own is killed beyond it, what lies in the page cache is only dropped.
Elsewhere the most that was ever resident of the process is looked at a few times a second, and the
process is killed; what it does between two looks is not seen.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from localrun.hardware.cgroup import read_number, read_text

GROUPS = Path("/sys/fs/cgroup")
LOOK_S = 0.05
_SHELL = 'echo $$ > "$0" && exec "$@"'
_NUMBERS = itertools.count()


@dataclass(frozen=True, slots=True)
class Outcome:
    """``resident`` is the most that the largest of its processes held in memory, shared libraries
    included; ``own`` the most that all together held of their own, as seen between two looks;
    ``charged`` the most that the group was charged with, page cache included, 0 without a group.
    ``killed`` says that the limit ended it."""

    code: int
    out: str
    err: str
    seconds: float
    resident: int
    own: int
    charged: int
    killed: bool
    held_by: str


class Group:
    """A control group beside all others, since groups with processes may have none inside."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.v2 = (folder / "memory.max").exists()
        if self.v2:
            self._write("memory.swap.max", 0)
            self._write("memory.max", limit)
        else:
            self._write("memory.limit_in_bytes", limit)
            self._write("memory.memsw.limit_in_bytes", limit)

    def _write(self, name: str, value: int) -> None:
        path = self.folder / name
        if path.exists():  # kernels without swap have no such limit
            path.write_text(str(value))

    @property
    def command(self) -> list[str]:
        """What a command line begins with to run inside."""
        return ["/bin/sh", "-c", _SHELL, str(self.folder / "cgroup.procs")]

    def own(self) -> int:
        """What its processes hold now that is no file's."""
        key = "anon" if self.v2 else "total_rss"
        return _counted(read_text(self.folder / "memory.stat") or "", key)

    def charged(self) -> int:
        name = "memory.peak" if self.v2 else "memory.max_usage_in_bytes"
        return read_number(self.folder / name) or 0

    def kills(self) -> int:
        name = "memory.events" if self.v2 else "memory.oom_control"
        return _counted(read_text(self.folder / name) or "", "oom_kill")

    def processes(self) -> list[int]:
        return [int(word) for word in (read_text(self.folder / "cgroup.procs") or "").split()]

    def remove(self) -> None:
        """With whatever is left in it."""
        for _ in range(100):
            for process in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            try:
                self.folder.rmdir()
            except FileNotFoundError:
                return
            except OSError:  # the last process is still going
                time.sleep(LOOK_S)


def _counted(text: str, key: str) -> int:
    found = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    return int(found.get(key, "0"))


@contextlib.contextmanager
def group(limit: int) -> Iterator[Group | None]:
    """A new group with a limit; None where none can be made."""
    made: Group | None = None
    for parent in (GROUPS / "memory", GROUPS):
        folder = parent / f"localrun-bench-{os.getpid()}-{next(_NUMBERS)}"
        try:
            folder.mkdir()
            made = Group(folder, limit)
            if not (folder / "cgroup.procs").exists() or not _limited(folder):
                raise OSError("no memory controller")
            break
        except OSError:
            made = None
            with contextlib.suppress(OSError):
                folder.rmdir()
    try:
        yield made
    finally:
        if made is not None:
            made.remove()


def _limited(folder: Path) -> bool:
    return any(
        (read_number(folder / name) or 0) > 0 for name in ("memory.max", "memory.limit_in_bytes")
    )


def confined(
    command: Sequence[str],
    limit: int,
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    grouped: bool = True,
) -> Outcome:
    """Run ``command`` with ``limit`` bytes of memory. ``grouped`` false watches instead.

    Whatever ends this, an interrupt too, ends the command.

    Raises:
        TimeoutError: it ran longer than ``timeout`` seconds.
    """
    with (
        group(limit) if grouped else contextlib.nullcontext() as made,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        line = [*(made.command if made else ()), *command]
        start = time.monotonic()
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, cwd=cwd
        )
        watched = _Watch(process, made, limit)
        try:
            watched.until(start + timeout)
        finally:
            process.kill()
            process.wait()
        seconds = time.monotonic() - start
        out.seek(0)
        err.seek(0)
        return Outcome(
            code=process.returncode,
            out=out.read(),
            err=err.read(),
            seconds=seconds,
            resident=watched.resident,
            own=watched.own,
            charged=made.charged() if made else 0,
            killed=watched.killed or bool(made and made.kills()),
            held_by="a control group" if made else "watching the resident size",
        )


class _Watch:
    """Looks at a command until it ends."""

    def __init__(self, process: subprocess.Popen[Any], made: Group | None, limit: int) -> None:
        self._process, self._group, self._limit = process, made, limit
        self.resident = self.own = 0
        self.killed = False

    def until(self, deadline: float) -> None:
        while self._process.poll() is None:
            self._look()
            if time.monotonic() > deadline:
                raise TimeoutError("the command took too long")
            time.sleep(LOOK_S)

    def _look(self) -> None:
        sizes = [_resident(pid) for pid in self._family()]
        self.resident = max([self.resident, *sizes])
        self.own = max(self.own, self._group.own() if self._group else sum(sizes))
        if self._group is None and self.own > self._limit:
            self.killed = True
            self._process.kill()

    def _family(self) -> list[int]:
        if self._group is not None:
            return self._group.processes()
        try:
            inside = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.Error:
            inside = []
        return [self._process.pid, *(child.pid for child in inside)]


def _resident(pid: int) -> int:
    """The most that was ever resident; where the kernel does not say, what is now."""
    for line in (read_text(Path(f"/proc/{pid}/status")) or "").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
