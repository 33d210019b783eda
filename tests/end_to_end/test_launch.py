"""An agent started on the default model: a server for as long as it runs, and further ports."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from localrun.server.serving import COMPAT_PORTS

LOCALRUN = [sys.executable, "-P", "-m", "localrun.cli"]
# What an agent does first, then the end that a test chose.
AGENT = f"""#!{sys.executable}
import json, os, sys, urllib.request
url = os.environ["ANTHROPIC_BASE_URL"]
with urllib.request.urlopen(url + "/v1/models", timeout=60) as answer:
    models = json.load(answer)
with urllib.request.urlopen(url + "/health", timeout=60) as answer:
    health = json.load(answer)
told = dict(models=models, health=health, url=url, arguments=sys.argv[1:], pid=os.getpid())
told["model"] = os.environ["ANTHROPIC_MODEL"]
told["n_ctx"] = os.environ["CLAUDE_CODE_MAX_CONTEXT_TOKENS"]
print(json.dumps(told), flush=True)
if "wait" in sys.argv:
    sys.stdin.read()
sys.exit(9)
"""


@pytest.fixture
def agent(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An agent that stands on PATH as `claude`."""
    folder = home / "bin"
    folder.mkdir()
    program = folder / "claude"
    program.write_text(AGENT)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(home))
    return program


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.usefixtures("agent")
def test_a_server_runs_for_as_long_as_the_agent_does(smollm2_path: Path) -> None:
    outcome = subprocess.run(
        [*LOCALRUN, "launch", "claude", str(smollm2_path), "--ctx", "2048", "--", "hello"],
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert outcome.returncode == 9, outcome.stderr
    told = json.loads(outcome.stdout)
    assert told["health"] == {"status": "ok"}
    assert told["arguments"] == ["hello"]
    assert (told["model"], told["n_ctx"]) == (str(smollm2_path), "2048")
    assert str(smollm2_path) in [model["id"] for model in told["models"]["data"]]
    assert not listens(port_of(told["url"]))
    assert "better off with 65536" in outcome.stderr


@contextmanager
def launched(model: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    """An agent that waits, and what it told."""
    with subprocess.Popen(
        [*LOCALRUN, "launch", "claude", str(model), "--ctx", "512", "--", "wait"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        below: list[psutil.Process] = []
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            below = psutil.Process(process.pid).children(recursive=True)
            yield process, told
            assert psutil.wait_procs(below, timeout=20)[1] == []
        finally:
            for each in below:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            process.kill()


@pytest.mark.usefixtures("agent")
def test_when_it_is_told_to_end_so_do_the_agent_and_the_server(smollm2_path: Path) -> None:
    with launched(smollm2_path) as (process, told):
        process.send_signal(signal.SIGTERM)

        assert process.wait(30) == 128 + signal.SIGTERM

    assert not listens(port_of(str(told["url"])))


@pytest.mark.usefixtures("agent")
def test_ctrl_c_is_the_agents_and_the_server_stays(smollm2_path: Path) -> None:
    with launched(smollm2_path) as (process, told):
        process.send_signal(signal.SIGINT)

        assert listens(port_of(str(told["url"])))
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 9


@pytest.mark.usefixtures("agent")
def test_a_server_that_does_not_start_is_answered_with_its_words_and_its_code(
    smollm2_path: Path,
) -> None:
    # A limit that nobody but the server is told.
    outcome = subprocess.run(
        [*LOCALRUN, "launch", "claude", str(smollm2_path), "--ctx", "512"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"LOCALRUN_RAM": "1MB"},
    )

    assert outcome.returncode == 4, outcome.stderr
    assert "error: " in outcome.stderr
    assert "hint: " in outcome.stderr
    assert outcome.stdout == ""


@pytest.mark.usefixtures("home")
def test_further_ports_are_opened_where_they_are_free_and_told() -> None:
    with ExitStack() as stack:
        with suppress(OSError):  # somebody else's is in use just as well
            stack.enter_context(socket.create_server(("127.0.0.1", COMPAT_PORTS[1])))
        server = stack.enter_context(
            subprocess.Popen(
                [*LOCALRUN, "serve", "--port", "auto", "--compat-ports"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(server.kill)
        assert server.stdout is not None
        assert server.stderr is not None
        url = server.stdout.readline().strip()
        listed = subprocess.run(
            [*LOCALRUN, "ps", "--json"], capture_output=True, text=True, timeout=60
        )
        server.terminate()
        said = server.stderr.read()
        assert server.wait(30) == 0

    (told,) = json.loads(listed.stdout)["servers"]
    opened = told["compat_ports"]
    assert url.startswith("http://127.0.0.1:")
    assert COMPAT_PORTS[1] not in opened
    assert f"127.0.0.1:{COMPAT_PORTS[1]}" in said.partition("in use by another program: ")[2]
    for port in opened:
        assert f"also at http://127.0.0.1:{port}" in said
