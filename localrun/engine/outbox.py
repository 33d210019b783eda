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
        self._changed = threading.Condition()
        self._waiting: deque[bytes | memoryview] = deque()
        self._gone = False
        self._writer: threading.Thread | None = None

    @property
    def behind(self) -> bool:
        return bool(self._waiting)

    def send(self, data: bytes) -> None:
        """Never blocks. From any thread."""
        with self._changed:
            if self._gone:
                return
            sent = 0 if self._waiting else self._send_now(data)
            if sent == len(data) or self._gone:
                return
            self._waiting.append(memoryview(data)[sent:])
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="outbox", daemon=True)
                self._writer.start()
            self._changed.notify()

    def _send_now(self, data: bytes) -> int:
        try:
            return self._channel.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            self._gone = True
            return 0

    def _write(self) -> None:
        while not self._gone:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                first = self._waiting[0]
            try:
                self._channel.sendall(first)
            except OSError:
                self._gone = True
            with self._changed:
                # It stays until it is sent: nobody may send past it.
                self._waiting.popleft()
                caught_up = not self._waiting
            if caught_up:
                self._on_caught_up()
