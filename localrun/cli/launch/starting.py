"""Knows no setting: a server for as long as a program runs, and the program in this terminal."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

import typer

from localrun.cli.launch.description import KEY_VARIABLE, Agent, Connection
from localrun.cli.output import note
from localrun.config import environment
from localrun.errors import BackendMissingError

END_S = 10.0
LOG = "launch.log"
# Of a server that did not start, the end of what it said.
TOLD_LINES = 20


def program(agent: Agent) -> str:
    """The path of the agent's program.

    Raises:
        BackendMissingError: it is not installed.
    """
    for name in agent.programs:
        if found := shutil.which(name):
            return found
    names = " or ".join(agent.programs)
    raise BackendMissingError(
        f"{agent.title} is not installed: no {names} on PATH", hint=agent.install
    )


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal unwind what was started, as an end of the program does."""

    def leave(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def own_server(connection: Connection, state: Path, api_key: str | None) -> Iterator[Connection]:
    """A server of our own that has loaded the model, until the block ends.

    Raises:
        typer.Exit: it did not start, with its exit code; what it said was shown.
    """
    log = state / LOG
    state.mkdir(parents=True, exist_ok=True)
    # -P: nothing of the directory that the agent works in is imported.
    command = [sys.executable, "-P", "-m", "localrun.cli", "serve", connection.model]
    command += ["--host", "127.0.0.1", "--port", "auto", "--keep-alive", "-1"]
    command += ["--ctx", str(connection.n_ctx)]
    env = environment() | ({KEY_VARIABLE: api_key} if api_key else {})
    note(f"starting a server for {connection.model}; its log is {log}")
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        # A session of its own: Ctrl-C in this terminal is the agent's alone.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stream,
            env=env,
            text=True,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        with process.stdout:
            # The one line of its answer comes when it listens and the model is loaded.
            url = process.stdout.readline().strip()
        if not url:
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            for line in log.read_text(errors="replace").splitlines()[-TOLD_LINES:]:
                note(line)
            raise typer.Exit(process.returncode or 1)
        yield replace(connection, url=url.removesuffix("/v1"))
        if process.poll() is not None:
            note(f"the server had ended before; its log is {log}")
    finally:
        _end(process)


def run(command: Sequence[str], env: Mapping[str, str], unset: Sequence[str]) -> int:
    """Run a program in this terminal; returns its exit code, 128 + n for one that signal n ended.

    Ctrl-C goes to it alone: what it means there is its own affair.
    """
    whole = {key: value for key, value in environment().items() if key not in unset}
    interrupted = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        process = subprocess.Popen(list(command), env=whole | dict(env))
        try:
            code = process.wait()
        finally:
            _end(process)
    finally:
        signal.signal(signal.SIGINT, interrupted)
    return code if code >= 0 else 128 - code


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
