"""Drives `localrun chat` in tmux through a conversation and captures the screen as SVG.

    python docs/screenshot.py docs/chat.svg

What it types is what a person would: a question, a second one that is cancelled with Esc, a new
chat, and the old one again from the list. Needs tmux. Everything is kept in a temporary home.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

COLUMNS, ROWS = 100, 32
SESSION = f"localrun-screenshot-{os.getpid()}"
DEADLINE_S = 60.0
# The chat draws in true colours of its dark theme; only background and text are the terminal's.
PLAIN = [(0x80, 0x80, 0x80)] * 8
SCREEN = TerminalTheme((0x13, 0x15, 0x1A), (0xD9, 0xDC, 0xE3), PLAIN)


def tmux(*arguments: str) -> str:
    return subprocess.run(
        ["tmux", *arguments], check=True, capture_output=True, text=True, timeout=30
    ).stdout


def screen() -> str:
    return tmux("capture-pane", "-p", "-t", SESSION)


def wait_for(what: str, seen: Callable[[str], object]) -> str:
    """The screen once ``seen`` holds; the last screen is printed when it never does."""
    end = time.monotonic() + DEADLINE_S
    text = ""
    while time.monotonic() < end:
        text = screen()
        if seen(text):
            return text
        time.sleep(0.1)
    raise SystemExit(f"never saw {what}:\n{text}")


def type_line(text: str) -> None:
    tmux("send-keys", "-t", SESSION, "-l", text)
    tmux("send-keys", "-t", SESSION, "Enter")


def key(name: str) -> None:
    tmux("send-keys", "-t", SESSION, name)


def finished(text: str) -> object:
    return re.search(r"tok/s", text) and "generating" not in text.lower()


def drive() -> str:
    """Returns the screen with its colours at the end of the walk."""
    wait_for("the model loaded", lambda text: "llama.cpp" in text)
    type_line("Name the capital of France.")
    wait_for("an answer that names Paris", lambda text: text.count("Paris") and finished(text))
    type_line("Write a very long story about a river.")
    wait_for("the story's beginning", lambda text: text.count("river") > 1)
    time.sleep(1)
    key("Escape")
    wait_for("the cancelled mark", lambda text: "cancelled" in text.lower())
    key("C-n")
    wait_for("an empty chat", lambda text: "Paris" not in text)
    key("C-s")
    wait_for("the list of chats", lambda text: "Name the capital" in text)
    key("Enter")
    wait_for("the old chat", lambda text: "story about a river" in text)
    return tmux("capture-pane", "-p", "-e", "-N", "-t", SESSION)


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        localrun = [sys.executable, "-P", "-m", "localrun.cli"]
        subprocess.run(
            [*localrun, "pull", "smollm2"],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "LOCALRUN_HOME": home},
            timeout=300,
        )
        command = " ".join([*localrun, "chat", "smollm2", "--temperature", "0"])
        size = ["-x", str(COLUMNS), "-y", str(ROWS)]
        environment = ["-e", f"LOCALRUN_HOME={home}", "-e", "COLORTERM=truecolor"]
        tmux("new-session", "-d", "-s", SESSION, *size, *environment, command)
        try:
            captured = drive()
        finally:
            subprocess.run(["tmux", "kill-session", "-t", SESSION], check=False, timeout=30)
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(captured))
    # The picture is whole by itself: no font is fetched from anywhere.
    form = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    svg = console.export_svg(title="localrun chat", theme=SCREEN, code_format=form)
    Path(sys.argv[1]).write_text(svg)


if __name__ == "__main__":
    main()
