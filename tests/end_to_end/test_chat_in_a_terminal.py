"""The chat as a person sees it: a real process in a real terminal, its screen read back."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyte
import pytest

COLUMNS, ROWS = 100, 32
DEADLINE_S = 60.0
ENTER, ESCAPE = "\r", "\x1b"
CTRL_N, CTRL_Q, CTRL_S = "\x0e", "\x11", "\x13"


class Terminal:
    """A process on a pseudo-terminal; ``screen()`` is what it shows."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._descriptor = descriptor
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.Stream(self._screen)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def screen(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display)

    def wait_for(self, what: str, seen: Callable[[str], bool]) -> str:
        """Read until the screen shows it; the last screen is in the failure when it never does."""
        end = time.monotonic() + DEADLINE_S
        while not seen(self.screen()):
            left = end - time.monotonic()
            assert left > 0, f"never saw {what}:\n{self.screen()}"
            if select.select([self._descriptor], [], [], left)[0]:
                self._stream.feed(self._decoder.decode(self._read()))
        return self.screen()

    def wait(self) -> int:
        """The exit code. What is still printed is read, or the process could not end."""
        end = time.monotonic() + DEADLINE_S
        while self.process.poll() is None:
            assert time.monotonic() < end, f"did not end:\n{self.screen()}"
            if select.select([self._descriptor], [], [], 0.05)[0]:
                self._read()
        return self.process.returncode

    def _read(self) -> bytes:
        try:
            return os.read(self._descriptor, 65536)
        except OSError:  # Linux says so when the other end is closed
            return b""


@contextmanager
def chat(*arguments: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "localrun.cli", "chat", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        os.close(ours)


@pytest.fixture
def model(smollm2_path: Path, home: Path) -> str:
    return str(smollm2_path)


def test_a_conversation_a_cancel_and_an_old_chat_resumed(model: str) -> None:
    with chat(model, "--temperature", "0") as terminal:
        terminal.wait_for("the model loaded", lambda text: "llama.cpp" in text)
        terminal.type("Name the capital of France." + ENTER)
        terminal.wait_for("the answer", lambda text: "capital of France is Paris" in text)
        terminal.wait_for("its speed", lambda text: "tok/s" in text)

        terminal.type("Tell me a very long story about a river and a boat." + ENTER)
        terminal.wait_for("a beginning of the story", lambda text: text.count("river") > 1)
        terminal.type(ESCAPE)
        terminal.wait_for(
            "the mark of a cancelled answer", lambda text: "cancelled" in text.lower()
        )

        terminal.type(CTRL_N)
        terminal.wait_for("an empty chat", lambda text: "Paris" not in text)
        terminal.type(CTRL_S)
        terminal.wait_for("the list", lambda text: "Name the capital of France." in text)
        terminal.type(ENTER)
        terminal.wait_for("the old chat", lambda text: "a river and a boat" in text)
        terminal.type(CTRL_Q)

        assert terminal.wait() == 0


def test_a_chat_is_kept_from_one_start_to_the_next(model: str) -> None:
    with chat(model, "--temperature", "0") as terminal:
        terminal.wait_for("the model loaded", lambda text: "llama.cpp" in text)
        terminal.type("Name the capital of France." + ENTER)
        terminal.wait_for("the answer", lambda text: "capital of France is Paris" in text)
        terminal.wait_for("its end", lambda text: "tok/s" in text)
        terminal.process.kill()

    with chat(model) as terminal:
        terminal.wait_for("the model loaded", lambda text: "llama.cpp" in text)
        terminal.type(CTRL_S)
        terminal.wait_for("the list", lambda text: "Name the capital of France." in text)
        terminal.type(ENTER)

        terminal.wait_for("the old answer", lambda text: "capital of France is Paris" in text)
