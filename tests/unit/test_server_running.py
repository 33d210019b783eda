"""Which servers run: what is listed runs, what does not run is swept, nothing else is stopped."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from localrun.config import Settings
from localrun.errors import ServerError
from localrun.server.running import RunningServer, register, running, stop, update

SLEEPER = "import signal; print(flush=True); signal.pause()"
STUBBORN = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()"


def _start(code: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
    return process


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = _start(SLEEPER)
    yield process
    process.kill()
    process.wait()


def _server(pid: int, *, born: float = 0.0) -> RunningServer:
    create_time = psutil.Process(pid).create_time() + born
    return RunningServer(pid, create_time, "127.0.0.1", 7411, ("m",))


def _file(here: Settings, content: str | bytes, name: str = "1.json") -> Path:
    place = here.state / "servers"
    place.mkdir(parents=True, exist_ok=True)
    file = place / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def _fields(server: RunningServer) -> dict[str, object]:
    names = ("pid", "create_time", "host", "port", "models")
    return {name: getattr(server, name) for name in names}


def test_a_registered_server_is_listed_until_it_ends(here: Settings) -> None:
    with register(here, host="127.0.0.1", port=7411, models=["a", "b"]) as server:
        file = here.state / "servers" / f"{os.getpid()}.json"
        assert running(here) == (server,)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        assert (server.models, server.url) == (("a", "b"), "http://127.0.0.1:7411")

    assert running(here) == ()
    assert list(file.parent.iterdir()) == []


def test_what_a_server_has_loaded_is_listed_as_it_changes(here: Settings) -> None:
    with register(here, host="127.0.0.1", port=7411, models=[]) as server:
        update(here, server, ["a", "b"])
        assert [each.models for each in running(here)] == [("a", "b")]
        update(here, server, [])
        assert running(here) == (server,)

    assert running(here) == ()


def test_a_list_that_cannot_be_written_is_no_ones_failure(here: Settings) -> None:
    with register(here, host="127.0.0.1", port=7411, models=["a"]) as server:
        # What is in the way cannot be removed as a file is.
        (here.state / "servers" / f"{os.getpid()}.new").mkdir()
        update(here, server, ["b"])
        assert running(here) == (server,)


def test_an_ipv6_server_has_a_url_in_brackets() -> None:
    assert RunningServer(1, 0.0, "::1", 80, ()).url == "http://[::1]:80"


def test_no_directory_means_no_server(here: Settings) -> None:
    assert running(here) == ()


BROKEN: dict[str, str | bytes] = {
    "empty": "",
    "half written": '{"pid": 1',
    "not an object": "[]",
    "a field missing": '{"pid": 1}',
    "a pid that is a word": '{"pid":"x","create_time":0,"host":"h","port":1,"models":[]}',
    "a pid beyond": '{"pid":9e99,"create_time":0,"host":"h","port":1,"models":[]}',
    "a negative pid": '{"pid":-1,"create_time":0,"host":"h","port":1,"models":[]}',
    "not utf-8": b"\xff\xfe",
    "deep": "[" * 60_000,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_swept(here: Settings, content: str | bytes) -> None:
    file = _file(here, content)

    assert running(here) == ()
    assert not file.exists()


def test_a_process_id_that_was_used_again_is_neither_listed_nor_stopped(
    here: Settings, sleeper: subprocess.Popen[bytes]
) -> None:
    other = _server(sleeper.pid, born=-100.0)
    file = _file(here, json.dumps(_fields(other)))

    assert running(here) == ()
    assert not file.exists()
    stop(other)
    assert sleeper.poll() is None


def test_a_link_planted_as_a_file_is_swept_and_not_followed(here: Settings) -> None:
    victim = here.state.parent / "victim"
    with register(here, host="h", port=1, models=[]) as server:
        victim.write_text(json.dumps(_fields(server)))
        link = here.state / "servers" / "9.json"
        link.symlink_to(victim)
        assert running(here) == (server,)

    assert not link.is_symlink()
    assert victim.exists()


def test_a_link_planted_where_we_write_is_not_written_through(here: Settings) -> None:
    victim = _file(here, "untouched", "victim")
    for name in (f"{os.getpid()}.json", f"{os.getpid()}.new"):
        (here.state / "servers" / name).symlink_to(victim)
    with register(here, host="h", port=1, models=[]) as server:
        assert running(here) == (server,)

    assert victim.read_text() == "untouched"


def test_a_state_directory_that_cannot_be_written_is_named(here: Settings) -> None:
    here.state.parent.mkdir(parents=True)
    here.state.write_text("a file")

    with (
        pytest.raises(ServerError, match="servers"),
        register(here, host="h", port=1, models=[]),
    ):
        pass


def test_stop_ends_the_server(sleeper: subprocess.Popen[bytes]) -> None:
    server = _server(sleeper.pid)
    stop(server)

    assert not psutil.pid_exists(sleeper.pid)
    stop(server)


def test_a_server_that_does_not_listen_is_made_to_end() -> None:
    process = _start(STUBBORN)
    stop(_server(process.pid), timeout=0.1)

    assert not psutil.pid_exists(process.pid)
    process.wait()
