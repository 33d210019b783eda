"""Drives `localrun chat` in tmux through a conversation and captures the screen as SVG.

    python docs/screenshot.py docs/chat.svg

What it types is what a person would: a question, a second one that is cancelled with Esc, a new
chat, and the old one again from the list. Needs tmux and a pulled default model. The conversation
is kept in a temporary home; the model is the developer's own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from localrun.config import settings
from localrun.ref import parse
from localrun.store.library import Library

COLUMNS, ROWS = 100, 32
SESSION = f"localrun-screenshot-{os.getpid()}"
DEADLINE_S = 60.0


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
    wait_for("the prompt", lambda text: "ready" in text.lower())
    type_line("What is the capital of France? Answer in one sentence.")
    wait_for("an answer that names Paris", lambda text: text.count("Paris") and finished(text))
    type_line("Write a very long story about a river.")
    wait_for("the story's beginning", lambda text: "generating" in text.lower())
    time.sleep(1)
    key("Escape")
    wait_for("the cancelled mark", lambda text: "cancelled" in text.lower())
    key("C-n")
    wait_for("an empty chat", lambda text: "Paris" not in text)
    key("C-s")
    wait_for("the list of chats", lambda text: "What is the capital" in text)
    key("Enter")
    wait_for("the old chat", lambda text: "cancelled" in text.lower())
    return tmux("capture-pane", "-p", "-e", "-t", SESSION)


def main() -> None:
    model = Library(settings()).find(parse("smollm2"))
    if model is None or model.weights[0].path is None:
        raise SystemExit("pull the model first: localrun pull smollm2")
    with tempfile.TemporaryDirectory() as home:
        command = f"{sys.executable} -P -m localrun.cli chat {model.weights[0].path}"
        size = ["-x", str(COLUMNS), "-y", str(ROWS)]
        environment = ["-e", f"LOCALRUN_HOME={home}", "-e", "COLORTERM=truecolor"]
        tmux("new-session", "-d", "-s", SESSION, *size, *environment, command)
        try:
            captured = drive()
        finally:
            subprocess.run(["tmux", "kill-session", "-t", SESSION], check=False, timeout=30)
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(Text.from_ansi(captured))
    Path(sys.argv[1]).write_text(console.export_svg(title="localrun chat", theme=MONOKAI))


if __name__ == "__main__":
    main()
