"""Knows no frame: bytes to a socket from any thread, none of which ever waits for its reader."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable


class Outbox:
    """Sends at once what the socket takes; the rest is sent in order by a thread of its own.

    ``behind`` tells that some is left: who can wait should, until ``on_caught_up`` is called from
    that thread. A reader that is gone is noticed by whoever reads from it: here it is nothing.
    """

    def __init__(self, channel: socket.socket, on_caught_up: Callable[[], None]) -> None:
        self._channel = channel
        self._on_caught_up = on_caught_up
        self._lock = threading.Lock()
        self._waiting: deque[bytes | memoryview] = deque()
        self._gone = False

    @property
    def behind(self) -> bool:
        return bool(self._waiting)

    def send(self, data: bytes) -> None:
        """Never blocks. From any thread."""
        with self._lock:
            was_behind = self.behind
            sent = 0 if was_behind else self._send_now(data)
            if sent == len(data) or self._gone:
                return
            self._waiting.append(memoryview(data)[sent:])
        if not was_behind:
            threading.Thread(target=self._catch_up, name="outbox", daemon=True).start()

    def _send_now(self, data: bytes) -> int:
        try:
            return self._channel.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            self._gone = True
            return 0

    def _catch_up(self) -> None:
        behind = True
        while behind:
            try:
                self._channel.sendall(self._waiting[0])
            except OSError:
                self._gone = True
            with self._lock:
                # Only now, as nobody may send past it.
                self._waiting.popleft()
                if self._gone:
                    self._waiting.clear()
                behind = self.behind
        self._on_caught_up()
