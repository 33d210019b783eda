"""Knows no socket: which servers of this user run, for ``localrun ps`` and ``localrun stop``.

One file a server, ``servers/<pid>.json`` in the state directory, made with 0600 and renamed into
place. A process id alone proves nothing, as ids are used again: the process must also have begun
when the file says. What does not match is swept, never signalled.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from localrun.config import Settings
from localrun.errors import ServerError
from localrun.store.disk import make_private

# Start times come from the kernel in ticks; two readings of one process differ by less.
SAME_START_S = 0.5
MAX_FILE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class RunningServer:
    """``create_time``: when the process began, seconds since 1970; ``models``: those loaded;
    ``compat_ports``: further ports of 127.0.0.1 where it listens."""

    pid: int
    create_time: float
    host: str
    port: int
    models: tuple[str, ...]
    compat_ports: tuple[int, ...] = ()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


@contextlib.contextmanager
def register(
    settings: Settings,
    *,
    host: str,
    port: int,
    models: Sequence[str],
    compat_ports: Sequence[int] = (),
) -> Iterator[RunningServer]:
    """Say that this process serves there, until the block ends.

    Raises:
        ServerError: the state directory cannot be written.
    """
    pid = os.getpid()
    born = psutil.Process(pid).create_time()
    server = RunningServer(pid, born, host, port, tuple(models), tuple(compat_ports))
    place = _file(settings, server)
    try:
        _write(place, server)
    except OSError as error:
        raise ServerError(f"{place}: {error.strerror}", hint="check who owns it") from error
    try:
        yield server
    finally:
        place.unlink(missing_ok=True)


def update(settings: Settings, server: RunningServer, models: Sequence[str]) -> None:
    """Say which models a registered server has loaded now."""
    # What `ps` shows is not worth the request that loaded a model.
    with contextlib.suppress(OSError):
        _write(_file(settings, server), replace(server, models=tuple(models)))


def running(settings: Settings) -> tuple[RunningServer, ...]:
    """The servers that run, oldest first. Files of those that ended are removed."""
    servers = []
    for file in sorted(_place(settings).glob("*.json")):
        server = _read(file)
        if server is not None and _process(server) is not None:
            servers.append(server)
        else:
            file.unlink(missing_ok=True)
    return tuple(sorted(servers, key=lambda server: server.create_time))


def stop(server: RunningServer, *, timeout: float = 10.0) -> None:
    """Ask a server to end, and after ``timeout`` seconds make it. Does nothing if it has ended.

    Raises:
        ServerError: it is not ours to stop, or it cannot be killed.
    """
    process = _process(server)
    if process is None:
        return
    try:
        process.terminate()
        try:
            process.wait(timeout)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(timeout)
    except psutil.NoSuchProcess:
        return
    except psutil.Error as error:
        raise ServerError(f"process {server.pid} cannot be stopped: {error}") from error


def _place(settings: Settings) -> Path:
    return settings.state / "servers"


def _file(settings: Settings, server: RunningServer) -> Path:
    return _place(settings) / f"{server.pid}.json"


def _process(server: RunningServer) -> psutil.Process | None:
    """The process, if the one with that id is still the one that registered."""
    try:
        process = psutil.Process(server.pid)
        same = abs(process.create_time() - server.create_time) < SAME_START_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, ValueError):
        return None


def _write(place: Path, server: RunningServer) -> None:
    make_private(place.parent)
    draft = place.with_suffix(".new")
    # Left by an earlier process of the same id, or planted: either way not ours to write through.
    draft.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with open(os.open(draft, flags, 0o600), "wb") as file:
        file.write(json.dumps(asdict(server)).encode())
    draft.rename(place)


def _read(file: Path) -> RunningServer | None:
    try:
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | os.O_NONBLOCK)
        with open(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            fields = json.loads(stream.read(MAX_FILE_BYTES))
        return RunningServer(
            pid=int(fields["pid"]),
            create_time=float(fields["create_time"]),
            host=str(fields["host"]),
            port=int(fields["port"]),
            models=tuple(str(model) for model in fields["models"]),
            compat_ports=tuple(int(port) for port in fields.get("compat_ports", ())),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
