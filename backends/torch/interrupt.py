"""Knows no step: whether somebody wants the running one to end."""

from __future__ import annotations

import threading

from localrun.engine.runner import ForwardAborted


class Interrupt:
    """Asked from any thread; whoever computes or waits calls it now and then. What is asked for
    while nothing runs is forgotten."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._lock = threading.Lock()
        self._armed = False

    def __call__(self) -> None:
        """Raises ForwardAborted where the step is to end."""
        if self._asked.is_set():
            raise ForwardAborted

    def ask(self) -> None:
        with self._lock:
            if self._armed:
                self._asked.set()

    def arm(self, armed: bool) -> None:
        """A step begins, or ends."""
        with self._lock:
            self._armed = armed
            if not armed:
                self._asked.clear()
