"""Knows no weights: how a long command is stopped, and what it says of what it leaves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from localrun.cli.output import note
from localrun.errors import DiskFullError, LocalrunError, UsageError

# What service managers and closing terminals send; Windows has no hang-up.
_STOPS: Final = ("SIGTERM", "SIGHUP")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[None]:
    """Signals that ask a program to end do so as Ctrl-C does: what is temporary is removed.

    A signal that is ignored, as under nohup, stays ignored. Only the main thread may change them.
    """
    changed = {}
    if threading.current_thread() is threading.main_thread():
        for name in _STOPS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                changed[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in changed.items():
            signal.signal(number, handler)


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Says how to go on where the work ends early and its part of ``out`` stays."""
    from localrun.quantize.part import part_of

    try:
        yield
    except (KeyboardInterrupt, LocalrunError) as error:
        part = part_of(out)
        left = part.exists()
        if isinstance(error, DiskFullError):
            error.hint = "free some space, then run the same command" + " with --resume" * left
        if left and not isinstance(error, UsageError):
            note(f"{part} keeps what is done: the same command with --resume goes on with it")
        raise
